"""Figure 5: Pearson correlations of stage durations in sorting and code generation, 0 s for a stage that did not run.

    python benchmarks/reproduction/figure_5.py [--traces DIR] [--out DIR]

Sorting is correlated per configuration: across configurations the two halves go together merely because the number of
parallel calls is the same.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pictures
from document import Options, options, table
from shapes import (
    CODE,
    PAIRS,
    SORTING,
    Jobs,
    configuration,
    durations,
    interval_of_pearson,
    jobs_of,
    of_configuration,
    pearson,
    sources,
)

NAME = "figure-5"
#: The configuration whose lists are 16 to 64 numbers long, as in the paper.
LISTS = "len16-64 GoT 5/5/10/10"


def groups(given: Options) -> dict[str, dict[str, Jobs]]:
    """application -> what is correlated together -> jobs."""
    found: dict[str, dict[str, Jobs]] = {SORTING: {}, CODE: {}}
    for source in sources(given.traces):
        name = pictures.SOURCE_NAMES[source]
        sorting = jobs_of(source, SORTING, given.traces)
        found[SORTING][f"{name}, lists of 16 to 64"] = of_configuration(sorting, LISTS)
        if source == "traces":
            logged = sorted({configuration(job) for job in sorting} - {LISTS})
            found[SORTING] |= {f"{name}, {one}": of_configuration(sorting, one) for one in logged}
            found[SORTING][f"{name}, all 8 configurations together (a trap)"] = sorting
        found[CODE][name] = jobs_of(source, CODE, given.traces)
    return found


def measure(jobs: dict[str, dict[str, Jobs]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for application, by_group in jobs.items():
        a, b, published = PAIRS[application]
        for group, listed in by_group.items():
            names, columns = durations(listed)
            r = pearson(columns)
            quoted = float(r[a, b])
            found.setdefault(application, {})[group] = {
                "jobs": len(listed),
                "stages": names,
                "pearson": [[None if np.isnan(x) else round(float(x), 3) for x in row] for row in r],
                "quoted": {
                    "stages": [names[a], names[b]],
                    "paper": published,
                    "r": None if np.isnan(quoted) else round(quoted, 3),
                    "ci95": None
                    if np.isnan(quoted)
                    else [round(x, 3) for x in interval_of_pearson(columns[:, a], columns[:, b])],
                },
            }
    return found


def draw(found: dict[str, Any], given: Options) -> None:
    from matplotlib import colormaps
    from matplotlib.patches import Rectangle

    rows = {application: _shown(found[application]) for application in found}
    most = max(map(len, rows.values()))
    figure = pictures.figure(
        3.2 * most + 0.9,
        7.4,
        "Figure 5: correlation of stage durations",
        "a stage that did not run counts as 0 s; grey: it always takes the same; framed: the pair the paper quotes",
    )
    colours = colormaps["RdBu_r"].with_extremes(bad="#d9d9d9")
    panels = figure.subplots(2, most, squeeze=False)
    shown = None
    for row, (application, names) in zip(panels, rows.items(), strict=True):
        a, b, published = PAIRS[application]
        for axes, name in zip(row, names, strict=False):
            entry = found[application][name]
            matrix = np.array(entry["pearson"], dtype=float)
            shown = axes.imshow(np.ma.masked_invalid(matrix), cmap=colours, vmin=-1, vmax=1)
            for x, y in ((a, b), (b, a)):
                axes.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, fill=False, edgecolor="black", linewidth=1.4))
            r = entry["quoted"]["r"]
            value = "undefined" if r is None else f"{r:.2f}"
            axes.set_title(
                f"{application.replace('_', ' ')}\n{_brief(name)}\nstages {a} and {b}: {value} (paper {published:g})",
                fontsize=9,
            )
            ticks = range(0, len(matrix), 2)
            axes.set_xticks(ticks)
            axes.set_yticks(ticks)
            axes.tick_params(labelsize=7, length=2)
            axes.spines[:].set_visible(False)
        for axes in row[len(names) :]:
            axes.set_visible(False)
    assert shown is not None
    figure.colorbar(
        shown, ax=panels[:, -1] if len(rows[CODE]) == most else panels[0, -1], shrink=0.8, label="Pearson's r"
    )
    pictures.save(figure, given.places.image(NAME))


def _shown(by_group: dict[str, Any]) -> list[str]:
    """Of the logged configurations one, the one with most calls, stands for all."""
    logged = [g for g in by_group if "len32" in g]
    one = [g for g in logged if "x10 merge x10" in g][:1]
    return [g for g in by_group if g not in logged and "trap" not in g] + one


def _brief(group: str) -> str:
    return group.replace(
        "public traces, len32 sort x10 merge x10 (l405)", "public traces, lists of 32 (one configuration)"
    )


def section(found: dict[str, Any], given: Options) -> str:
    rows = []
    for application, by_group in found.items():
        a, b, published = PAIRS[application]
        rows.append([f"**{application.replace('_', ' ')}, stages {a} and {b}**, paper", "", f"{published:g}", ""])
        for group, entry in by_group.items():
            r, interval = entry["quoted"]["r"], entry["quoted"]["ci95"]
            rows.append(
                [
                    group,
                    f"{entry['jobs']:,}",
                    "undefined" if r is None else f"{r:.2f}",
                    "" if interval is None else f"{interval[0]:.2f} … {interval[1]:.2f}",
                ]
            )
    return f"""
## Figure 5: stages that tell about each other

{given.places.link(NAME, "Heat maps of the correlations of stage durations")}

Intervals are bootstrap 95 % over jobs.

{table(["", "jobs", "r", "95 % interval"], rows)}

Deviations. The traced sorting jobs with lists of 16 to 64 numbers are derived from the lists, so all their stages
follow the length and correlate by construction; in the logged runs every list has 32 numbers, the split always writes
equally many tokens, and the coefficient does not exist. Public runs can thus neither confirm nor refute the paper's
0.7; the paper-like generator was made to have it. Across configurations the coefficient tells only which one a job was.
Code generation is real, and so is its correlation: later stages run, or do not run, together.
"""


def main(argv: Sequence[str] | None = None) -> int:
    given = options(__doc__, argv)
    found = measure(groups(given))
    path = given.places.results / f"reproduction-{NAME}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found) + "\n")
    draw(found, given)
    given.places.write(NAME, section(found, given))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
