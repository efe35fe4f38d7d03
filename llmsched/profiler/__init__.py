"""What we believe about jobs: profiles learned from history, and estimators of what is left.

```
recordings ──fit──▶ Profile ──Knowledge──▶ Estimator: job so far ──▶ what is left, per pool
                    ├ history   (history.py)     ├ history   (kernel.py)    finished jobs that looked alike
                    └ network   (stages.py)      ├ bayesnet  (bayesnet.py)  posterior of a Bayesian network
                                                 ├ mean      (cases.py)     historical means
                                                 ├ declared  (declared.py)  the template's hints
                                                 └ truth     (truth.py)     for oracles
```
"""

from llmsched.profiler.estimator import Estimator, Outlook, Remaining, Work
from llmsched.profiler.history import Curves, History
from llmsched.profiler.knowledge import DECLARED, ESTIMATORS, Knowledge
from llmsched.profiler.learn import MAX_JOBS, MIN_JOBS, fit
from llmsched.profiler.profile import Profile
from llmsched.profiler.truth import Truth

__all__ = [
    "DECLARED",
    "ESTIMATORS",
    "MAX_JOBS",
    "MIN_JOBS",
    "Curves",
    "Estimator",
    "History",
    "Knowledge",
    "Outlook",
    "Profile",
    "Remaining",
    "Truth",
    "Work",
    "fit",
]
