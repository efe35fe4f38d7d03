"""How much of the gain of knowing the future each policy gets, and how much of what can be known at all.

    python benchmarks/clairvoyance.py --traces DIR [--train DIR] [--seeds 20] [--workloads …] [--loads …] [--write]

Share = (FCFS - X) / (FCFS - the better oracle) in mean job completion time over the seeds, with bootstrap intervals;
the ceiling is `oracle-ready`, which knows the length of every ready task and believes the rest. Jobs of held-out
queries run, profiles learn from the others (with --train, from that folder). --write puts the table into
docs/policies.md.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llmsched.catalogue import installed_applications
from llmsched.model.latency import GENERIC_7B
from llmsched.simulator.experiment import Comparison, Work, compare, learn, parse_policies, prepare, size, to_json

ROOT = Path(__file__).parent.parent
WORKLOADS = ("mixed-nodoc", "chain", "planning", "mixed", "predefined")
LOADS = (0.85, 1.0, 1.2)
REFERENCES = ("fcfs", "oracle-pool", "oracle-srtf", "oracle-ready")
POLICIES = ("llmsched-pool", "llmsched-pool:rank=mean", "srpt", "llmsched", "sjf")
#: Document merging makes a run several times as long: these have a quarter of the seeds.
HEAVY = ("mixed", "predefined")


def measure(
    traces: Path, train: Path | None, workload: str, loads: Sequence[float], seeds: int, policies: Sequence[str]
) -> dict[str, Any]:
    """The document of `simulate` for one workload and several loads."""
    applications = installed_applications()
    source = prepare(workload, traces, train)
    knowledge = learn(source.training, applications, GENERIC_7B)
    work = Work.of(source.workload, applications, GENERIC_7B)
    sizings = tuple(size(work, 0.9, load, GENERIC_7B) for load in loads)
    choices = parse_policies(",".join([*REFERENCES, *policies]))
    comparison = Comparison(
        source.workload, choices, sizings, tuple(range(seeds)), 300, applications, GENERIC_7B, knowledge
    )
    settings = {"workload": workload, "load": list(loads), "seeds": seeds, "split": source.split}
    return to_json(settings, compare(comparison))


def rows(document: Mapping[str, Any], policies: Sequence[str]) -> list[str]:
    """One row of the table per load."""
    lines = []
    for load in document["settings"]["load"]:
        here = {e["policy"]: e for e in document["summary"] if e.get("load", load) == load}
        cells = [document["settings"]["workload"], f"{load:g}"]
        cells += [f"{here['fcfs']['mean_jct']:.1f}", f"{here['llmsched-pool']['mean_jct']:.1f}"]
        ceiling = here["oracle-ready"]["clairvoyant_share"]
        cells.append(_share(ceiling))
        for policy in policies:
            share = here[policy]["clairvoyant_share"]
            cells.append(_share(share, bold=policy == "llmsched-pool"))
        mine = here["llmsched-pool"]["clairvoyant_share"]
        of_ceiling = 100 * mine["share_pct"] / ceiling["share_pct"] if mine and ceiling else float("nan")
        cells.insert(6, f"{of_ceiling:.0f} %")
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _share(share: Mapping[str, Any] | None, *, bold: bool = False) -> str:
    if share is None:
        return "–"
    low, high = share["ci95"] or (share["share_pct"],) * 2
    text = f"**{share['share_pct']:.0f} %**" if bold else f"{share['share_pct']:.0f} %"
    return f"{text} ({low:.0f} … {high:.0f})"


def write(page: Path, marker: str, lines: Sequence[str]) -> None:
    """Puts lines between the markers of a page."""
    text = page.read_text()
    head, _, rest = text.partition(f"<!-- {marker} -->\n")
    _, _, tail = rest.partition(f"<!-- /{marker} -->")
    page.write_text(f"{head}<!-- {marker} -->\n" + "\n".join(lines) + f"\n<!-- /{marker} -->{tail}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--traces", type=Path, default=os.environ.get("LLMSCHED_TRACES"))
    parser.add_argument("--train", type=Path)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--workloads", default=",".join(WORKLOADS))
    parser.add_argument("--loads", default=",".join(map(str, LOADS)))
    parser.add_argument("--policies", default=",".join(POLICIES))
    parser.add_argument("--json", type=Path, help="where the documents go, one file per workload")
    parser.add_argument("--write", action="store_true", help="write the table into docs/policies.md")
    options = parser.parse_args()
    if options.traces is None:
        parser.error("--traces DIR is needed")
    policies = options.policies.split(",")
    loads = [float(load) for load in options.loads.split(",")]
    shown = [p for p in policies if p != "llmsched-pool"]
    head = ["workload", "load", "FCFS, s", "default, s", "ceiling", "**default**", "of the ceiling", *shown]
    lines = ["| " + " | ".join(head) + " |", "|---|" + "---:|" * (len(head) - 1)]
    print("\n".join(lines), flush=True)
    for workload in options.workloads.split(","):
        seeds = max(1, options.seeds // 4) if workload in HEAVY else options.seeds
        document = measure(options.traces, options.train, workload, loads, seeds, policies)
        if options.json is not None:
            options.json.mkdir(parents=True, exist_ok=True)
            (options.json / f"clairvoyance-{workload}.json").write_text(json.dumps(document))
        new = rows(document, ["llmsched-pool", *shown])
        lines += new
        print("\n".join(new), flush=True)
    if options.write:
        write(ROOT / "docs/policies.md", "clairvoyance", lines)


if __name__ == "__main__":
    main()
