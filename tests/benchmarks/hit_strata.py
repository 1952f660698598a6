"""Scores by identity to the best hit, of arms that read known structures and of those that do not.

    python tests/benchmarks/hit_strata.py runs/crop200 runs/retrieval --out DIR

writes hits.csv and prints the tables of tests/benchmarks/retrieval.md.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))
from contactlm.atomic import write_csv
from contactlm.metrics.part_scores import COPY, HIT_IDENTITY, HIT_STRATA, hit_stratum
from contactlm.report.compare import Spread, by_arm
from contactlm.report.read import Run, find_runs
from contactlm.report.table import grid

SCORES = ("mcc_sep6", "mcc_sep6_tuned", "p_at_L_long")
HIT_TITLES = ("no hit", "below 30 %", "30–50 %", "50 % and above")  # of the strata
COPYING = "copy the homolog"
DIGITS = 6

Protein = tuple[str, str]  # id and index in the test set
Table = Mapping[Protein, Mapping[str, float]]
Values = dict[str, dict[str, float]]  # score by stratum and name


@dataclass
class Strata:
    """Test scores of all arms by stratum.

    Attributes:
        proteins: Number of proteins by stratum.
        arms: Of each arm, its runs' scores; then those of copying the hits of the arms that have some.
        remarks: What could not be used, or does not agree.
    """

    proteins: dict[str, int] = field(default_factory=dict)
    arms: dict[str, list[Values]] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)


def hit_strata(runs: Sequence[Run]) -> Strata | None:
    """Take the test scores of some runs apart by the identity of each protein's best hit.

    Which protein belongs where is told by a run that knows its hits (see :class:`contactlm.RetrievalModule`), of
    several the one with most proteins, and holds for all runs. Runs without scores of the same proteins are left out
    and named.

    Args:
        runs: Runs with one test set.

    Returns:
        The scores; None where no run knows hits.
    """
    strata, tables = Strata(), dict[int, Table]()
    for run in runs:
        tables[id(run)] = run.proteins() if run.test else {}
    knowing = [run for run in runs if any(HIT_IDENTITY in row for row in tables[id(run)].values())]
    if not knowing:
        return None
    chosen = max(knowing, key=lambda run: len(tables[id(run)]))
    nearest = _nearest(tables[id(chosen)])
    strata.proteins = {name: sum(own == name for own in nearest.values()) for name in HIT_STRATA}
    used = [run for run in runs if tables[id(run)].keys() == nearest.keys()]
    strata.remarks += [
        f"{run.path}: left out by stratum, has no scores of the same proteins" for run in runs if run not in used
    ]
    knowing = [run for run in knowing if run in used]
    others = [str(run.path) for run in knowing if _nearest(tables[id(run)]) != nearest]
    if others:
        strata.remarks.append(f"strata are those of the hits of {chosen.path}; other hits in {', '.join(others)}")
    for arm, members in by_arm(used).items():
        strata.arms[arm] = [_means(tables[id(run)], nearest, "") for run in members]
    strata.arms |= _copying(knowing, tables, nearest)
    return strata


def _nearest(table: Table) -> dict[Protein, str]:
    return {name: hit_stratum(row.get(HIT_IDENTITY)) for name, row in table.items()}


def _means(table: Table, nearest: Mapping[Protein, str], prefix: str) -> Values:
    """Means over the proteins where a score is defined, by stratum."""
    means: Values = {}
    for stratum in HIT_STRATA:
        rows = [table[name] for name, own in nearest.items() if own == stratum]
        values = {score: [row.get(prefix + score, math.nan) for row in rows] for score in SCORES}
        known = {score: [v for v in each if not math.isnan(v)] for score, each in values.items()}
        means[stratum] = {score: float(np.mean(each)) for score, each in known.items() if each}
    return means


def _copying(
    runs: Sequence[Run], tables: Mapping[int, Table], nearest: Mapping[Protein, str]
) -> dict[str, list[Values]]:
    """Copying does not depend on training: arms whose runs had the same hits share a row.

    A row has several values only where the runs of one arm had different hits.
    """
    of_arms = {
        arm: _distinct(_means(tables[id(run)], nearest, COPY) for run in members)
        for arm, members in by_arm(runs).items()
    }
    shared: dict[str, list[str]] = {}
    for arm, values in of_arms.items():
        shared.setdefault(repr(_rounded(values)), []).append(arm)
    if len(shared) == 1:
        return {COPYING: next(iter(of_arms.values()))}
    return {f"{COPYING} ({', '.join(arms)})": of_arms[arms[0]] for arms in shared.values()}


def _distinct(values: Iterable[Values]) -> list[Values]:
    return list({repr(_rounded([each])): each for each in values}.values())


def _rounded(values: Sequence[Values]) -> Any:
    """For comparing: the last digits may differ between machines."""
    return [
        {name: {score: round(value, DIGITS) for score, value in each.items()} for name, each in one.items()}
        for one in values
    ]


def hit_rows(strata: Strata) -> list[dict[str, Any]]:
    """Rows of ``hits.csv``: mean and sd over the runs of each arm, by score and stratum."""
    rows: list[dict[str, Any]] = []
    for arm, runs in strata.arms.items():
        for score in _known(strata):
            for stratum, number in strata.proteins.items():
                spread = spread_of(runs, stratum, score)
                about = {"arm": arm, "score": score, "stratum": stratum, "proteins": number}
                if spread is None:
                    rows.append({**about, "mean": None, "sd": None, "seeds": 0})
                else:
                    rows.append({**about, "mean": spread.mean, "sd": spread.sd, "seeds": spread.n})
    return rows


def hit_markdown(strata: Strata) -> str:
    """A table a score: arms by stratum."""
    header = [f"{title} ({number})" for title, number in zip(HIT_TITLES, strata.proteins.values(), strict=True)]
    parts = ["### By identity to the best hit of known structure (number of test proteins)"]
    for score in _known(strata):
        rows = [
            [arm, *(_text(arm, spread_of(runs, stratum, score)) for stratum in HIT_STRATA)]
            for arm, runs in strata.arms.items()
        ]
        parts.append(grid([f"test {score}", *header], rows))
    remarks = "\n".join(f"- {remark}" for remark in strata.remarks)
    return "\n\n".join([*parts, *([remarks] if remarks else [])])


def _known(strata: Strata) -> list[str]:
    found = {score for runs in strata.arms.values() for run in runs for values in run.values() for score in values}
    return [score for score in SCORES if score in found]


def spread_of(runs: Sequence[Values], stratum: str, score: str) -> Spread | None:
    """A score of an arm in a stratum, over its runs; None where no protein of it has one."""
    return Spread.of(run[stratum].get(score) for run in runs)


def _text(arm: str, spread: Spread | None) -> str:
    """Copying is not trained, so that it has no seeds to tell of."""
    if spread is None:
        return ""
    return f"{spread.mean:.3f}" if arm.startswith(COPYING) and spread.n == 1 else spread.text()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    runs = find_runs(given.runs).runs
    strata = hit_strata(runs)
    if strata is None:
        raise SystemExit("no run knows the hits of its test proteins")
    write_csv(given.out / "hits.csv", hit_rows(strata))
    sys.stdout.write(f"{hit_markdown(strata)}\n")


if __name__ == "__main__":
    main()
