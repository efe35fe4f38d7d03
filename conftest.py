"""Modules that need an optional package are not looked through for examples where it is not installed."""

from importlib.util import find_spec

collect_ignore = [] if find_spec("torch") else [f"llmsched/training/decima/{name}.py" for name in ("learn", "model")]
