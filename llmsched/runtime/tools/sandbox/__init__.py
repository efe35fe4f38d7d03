"""Runs Python code that nobody has read, in a process that can reach nothing: `run_python`.

```
service ── worker ── handler: run_python ──job, channel──> python, locked in (bootstrap.py)
                                                             cwd: a directory of its own, deleted afterwards
```

* `run.py`: starts the process, watches it, ends it, and says what became of it;
* `bootstrap.py`: what runs in it first: limits, no privileges, Landlock, seccomp, and then the code;
* `landlock.py`, `seccomp.py`: which files it may open, which system calls it may make;
* `directory.py`: where it may write.

What this protects against and what it does not, is in `docs/sandbox.md`.
"""

from llmsched.runtime.tools.sandbox.run import Check, Limits, Outcome, Status, run_python

__all__ = ["Check", "Limits", "Outcome", "Status", "run_python"]
