"""The figures of the testbed on the record of all benchmarks, docs/benchmarks.md."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import record
from page import BASELINES, MAPE_GOAL, MAPE_LOAD, MEAN_GOAL, OURS
from results import EMULATED, Found, Key
from rig import Figure

COMMAND = "make bench-testbed TRACES=DIR"
#: Milliseconds per decision: what the paper says of its policy, on every workload.
DECISION_MS = 3.0


def testbed(founds: Mapping[Key, Found]) -> list[Figure]:
    """How much less our policies take than the best and the worst baseline, and what a decision of theirs costs."""
    figures = []
    for key, found in founds.items():
        if not found.runs:
            continue
        where = f"{key.workload}, load {key.load:g}, {'emulated' if key.engine == EMULATED else 'vLLM'}"
        known = sorted((b for b in BASELINES if b in found.runs), key=found.mean)
        for policy in OURS:
            if policy not in found.runs:
                continue
            for baseline in dict.fromkeys((known[0], known[-1])) if known else ():
                less = found.reduction(policy, baseline)[0]
                figures.append(Figure(f"mean of {policy} less than that of {baseline}: {where}", less, "%"))
            cost = found.runs[policy]["decision_ms"]["mean"]
            if key.engine == EMULATED:
                figures.append(Figure(f"decision of {policy}, mean: {where}", cost, "ms", DECISION_MS))
    return figures


def fidelity(founds: Mapping[Key, Found]) -> list[Figure]:
    """How far the simulator is off, its worst policy; policies that change places beyond doubt."""
    figures = []
    for key, found in founds.items():
        if not found.runs:
            continue
        where = f"{key.workload}, load {key.load:g}, {'emulated' if key.engine == EMULATED else 'vLLM'}"
        offs = [found.error(policy) for policy in found.runs]
        worst = max(abs(off.ratio - 1) * 100 for off in offs)
        figures.append(Figure(f"simulated mean off by, worst policy: {where}", worst, "%", MEAN_GOAL[key.engine]))
        mape = max(off.mape for off in offs)
        goal = MAPE_GOAL[key.engine] if key.load <= MAPE_LOAD else None
        figures.append(Figure(f"error of single jobs (MAPE), worst policy: {where}", mape, "%", goal))
        sure = sum(is_sure for *_, is_sure in found.flips())
        figures.append(Figure(f"pairs of policies in another order, beyond doubt: {where}", float(sure), "", 0.0))
    return figures


def save(founds: Mapping[Key, Found], results: Path) -> None:
    """Puts both on record."""
    conditions = record.conditions(results)
    record.save("testbed", "Testbed: policies on a running service", COMMAND, testbed(founds), conditions)
    record.save("fidelity", "Fidelity: the simulator against the service", COMMAND, fidelity(founds), conditions)
