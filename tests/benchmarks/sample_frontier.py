"""What every arm reaches with how many tokens, FLOPs and seconds, and differences at equal cost, for bench_samples.py.

At equal FLOPs or seconds an arm's score is interpolated between its budgets, linearly in the logarithm of the cost, and
never extrapolated: an arm whose runs all cost less is taken at the end of its longest one, and one whose runs all cost
more is not compared.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter

from contactlm.report.compare import by_arm, samples_a_step
from contactlm.report.figure import FIGURES, arm_styles
from contactlm.report.read import Pair, Run
from contactlm.report.summary import PAIRED_SCORES as SCORES
from contactlm.report.summary import difference, difference_text
from contactlm.report.table import grid

DRAWN = ("mcc_sep6", "p_at_L_long")
AXES = {"tokens": "training tokens", "FLOPs": "FLOPs of training", "seconds": "seconds of training"}
COSTS: dict[str, Callable[[Run], float | None]] = {
    "tokens": lambda run: run.record["tokens"],
    "FLOPs": lambda run: run.record["flops"],
    "seconds": lambda run: (run.record.get("seconds") or {}).get("training"),
}
SLACK = 0.01  # of a cost: budgets end with a batch, never at the token


@dataclass(frozen=True)
class Point:
    """What an arm reaches with a budget.

    Attributes:
        arm: The arm.
        budget: Tokens.
        runs: One for each backbone and seed.
    """

    arm: str
    budget: int
    runs: list[Run]

    def mean(self, value: Callable[[Run], float | None]) -> float | None:
        """Mean over the runs; None where one does not know it."""
        values = [value(run) for run in self.runs]
        return None if None in values else float(np.mean(values))  # type: ignore[arg-type]  # none is None

    def error(self, score: str) -> float:
        """Standard error of a score's mean over the runs; 0 for one run."""
        values = [run.test[score] for run in self.runs if score in run.test]
        return float(np.std(values, ddof=1) / np.sqrt(len(values))) if len(values) > 1 else 0.0


def frontier_points(runs: Sequence[Run]) -> tuple[list[Point], list[str]]:
    """Points over the backbones and seeds that every arm was run with; a budget that lacks one of them gives no point.

    Args:
        runs: Of one experiment; see :func:`contactlm.report.summary.whole_experiments`.

    Returns:
        The points, arm by arm; and what had to be left out for it, in words.
    """
    cells: dict[tuple[str, int], list[Run]] = {}
    for run in sorted(runs, key=lambda run: (run.arm, run.budget)):
        cells.setdefault((run.arm, run.budget), []).append(run)
    common = set.intersection(*({run.pair for run in members} for members in by_arm(runs).values()))
    shared = {cell: [run for run in members if run.pair in common] for cell, members in cells.items()}
    points = [Point(*cell, members) for cell, members in shared.items() if {run.pair for run in members} == common]
    left_out = sum(len(members) for members in cells.values()) - sum(len(point.runs) for point in points)
    if not common:
        return [], ["no frontier: there is no backbone and seed that every arm was run with"]
    why = f"left out of the frontier: {left_out} runs, so that every point is of the same backbones and seeds"
    return points, [why] if left_out else []


def frontier_rows(points: Sequence[Point]) -> list[dict[str, Any]]:
    """Rows of a table of the points."""
    return [
        {
            "arm": point.arm,
            "budget": point.budget,
            "runs": len(point.runs),
            "backbones": len({run.pair[0] for run in point.runs}),
            **{name.lower(): point.mean(value) for name, value in COSTS.items()},
            "steps": point.mean(lambda run: run.record["steps"]),
            "samples_a_step": samples_a_step(point.runs[0]),
            **{f"test_{score}": point.mean(lambda run, s=score: run.test.get(s)) for score in SCORES},  # type: ignore[misc]  # the default binds it
            **{f"se_{score}": point.error(score) for score in SCORES},
        }
        for point in points
    ]


def draw_frontier(points: Sequence[Point]) -> Figure:
    """Draw test scores by tokens, FLOPs and seconds of training, a line for each arm through its budgets.

    Points are means over backbones and seeds, bars their standard errors. What is not known of any run is left out.
    """
    arms = list(dict.fromkeys(point.arm for point in points))
    styles = arm_styles(arms)
    costs = [cost for cost in COSTS if any(point.mean(COSTS[cost]) for point in points)]
    rows = -(-len(arms) // 5)
    figure = Figure(figsize=(4 * len(costs), 3.4 * len(DRAWN) + 0.3 * rows), dpi=150, layout="constrained")
    grid = figure.subplots(len(DRAWN), len(costs), sharey="row", squeeze=False)
    for row, score in zip(grid, DRAWN, strict=True):
        for ax, cost in zip(row, costs, strict=True):
            for arm in arms:
                _draw(ax, [point for point in points if point.arm == arm], cost, score, styles[arm])
            _label(ax, cost)
        row[0].set_ylabel(f"test {FIGURES[score]}")
    handles = [Line2D([], [], marker="o", markersize=4, label=arm, **styles[arm]) for arm in arms]
    figure.legend(handles=handles, loc="outside lower center", ncols=5, frameon=False, fontsize="small")
    return figure


def _draw(ax: Axes, points: Sequence[Point], cost: str, score: str, style: dict[str, Any]) -> None:
    known = [(p.mean(COSTS[cost]), p.mean(lambda run: run.test.get(score)), p.error(score)) for p in points]
    placed = sorted((x, y, error) for x, y, error in known if x and y is not None)
    if placed:
        x, y, errors = zip(*placed, strict=True)
        ax.errorbar(x, y, yerr=errors, marker="o", markersize=4, linewidth=1.5, elinewidth=1, capsize=2, **style)


def _label(ax: Axes, cost: str) -> None:
    ax.set_xscale("log")
    ax.set_xlabel(AXES[cost])
    ax.xaxis.set_major_formatter(EngFormatter(sep=""))
    ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.tick_params(axis="x", which="both", labelsize="x-small")
    ax.grid(color="#dddddd", linewidth=0.6)
    ax.spines[["top", "right"]].set_visible(False)
    ax.set_axisbelow(True)


def equal_cost(runs: Sequence[Run], reference: str, budget: int, cost: str) -> list[dict[str, Any]]:
    """Differences to the reference at what its runs of a budget cost, each with the share of it that was spent."""
    arms = {arm: _courses(members) for arm, members in by_arm(runs).items()}
    theirs = {pair: run for pair, course in arms.pop(reference).items() for run in course if run.budget == budget}
    found = []
    for arm, ours in arms.items():
        for score in SCORES:
            values: dict[Pair, float] = {}
            shares = []
            for pair in sorted(ours.keys() & theirs.keys(), key=str):
                reached = score_at_cost(ours[pair], cost, COSTS[cost](theirs[pair]), score)
                if reached is not None and score in theirs[pair].test:
                    values[pair] = reached[0] - theirs[pair].test[score]
                    shares.append(reached[1])
            if values:
                share = float(np.mean(shares))
                found.append({"arm": arm, "score": score, "share": share, "values": values, **difference(values)})
    return found


def equal_cost_table(runs: Sequence[Run], reference: str, budget: int, cost: str) -> str:
    """Differences at equal cost, as a Markdown table."""
    arms: dict[str, dict[str, dict[str, Any]]] = {}
    for each in equal_cost(runs, reference, budget, cost):
        arms.setdefault(each["arm"], {})[each["score"]] = each
    rows = []
    for arm, own in arms.items():
        first = next(iter(own.values()))
        scores = [difference_text(own[score]) if score in own else "" for score in SCORES]
        rows.append([arm, str(first["pairs"]), f"{first['share']:.2f}", *scores])
    return grid([f"above {reference} at its {cost}", "pairs", "spent", *SCORES], rows)


def _courses(runs: Sequence[Run]) -> dict[Pair, list[Run]]:
    courses: dict[Pair, list[Run]] = {}
    for run in sorted(runs, key=lambda run: run.record["tokens"]):
        courses.setdefault(run.pair, []).append(run)
    return courses


def score_at_cost(runs: Sequence[Run], cost: str, most: float | None, score: str) -> tuple[float, float] | None:
    """An arm's score at a cost, and how much of the cost it has spent; None where it has no run so cheap.

    Args:
        runs: Of one arm, backbone and seed, each of another budget.
        cost: See :data:`COSTS`.
        most: Of that.
        score: Such as ``mcc_sep6``.
    """
    points = [(spent, run.test[score]) for run in runs if (spent := COSTS[cost](run)) and score in run.test]
    if not points or not most:
        return None
    x, y = (np.array(column, dtype=float) for column in zip(*sorted(points), strict=True))
    if most < x[0] * (1 - SLACK):
        return None
    return float(np.interp(np.log(most), np.log(x), y)), float(np.clip(most, x[0], x[-1]) / most)
