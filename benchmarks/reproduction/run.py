"""Runs every experiment of the reproduction, in order; what the results hold already is not run again.

    python benchmarks/reproduction/run.py [--traces DIR] [--seeds N] [--fresh] [--only NAME,NAME] [--out DIR]

Other arguments go to every script.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import figure_1
import figure_5
import figure_7
import figure_9
import figure_10
import settings

sys.path.append(str(Path(__file__).parents[1]))

import estimators

#: In the order of the page. Later ones use runs of earlier ones.
EXPERIMENTS: dict[str, Callable[[Sequence[str]], int]] = {
    "figure-1": figure_1.main,
    "figure-5": figure_5.main,
    "figure-7": figure_7.main,
    "figure-10": figure_10.main,
    "figure-9": figure_9.main,
    "settings": settings.main,
    "estimators": estimators.main,
}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", default=",".join(EXPERIMENTS), help=f"comma list of {', '.join(EXPERIMENTS)}")
    own, others = parser.parse_known_args(argv)
    for name in own.only.split(","):
        if name not in EXPERIMENTS:
            parser.error(f"there is no experiment {name!r}; there are {', '.join(EXPERIMENTS)}")
    for name in own.only.split(","):
        began = time.monotonic()
        print(f"== {name}", flush=True)
        EXPERIMENTS[name](others)
        print(f"== {name}: {time.monotonic() - began:.0f} s", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
