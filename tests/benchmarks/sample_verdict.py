"""What bench_samples.py was run for: is an arm ahead of both shipped ones at no more FLOPs than crop200 takes?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from contactlm.report.compare import by_arm, samples_a_step
from contactlm.report.read import Pair, Run
from contactlm.report.summary import PAIRED_SCORES as SCORES
from contactlm.report.summary import difference, difference_text, is_ahead
from contactlm.report.table import grid
from tests.benchmarks.sample_frontier import Point, frontier_points, score_at_cost

BUDGET, PRIMARY = 500_000, "mcc_sep6"
CHEAP, RIVALS = "crop200", ("crop200", "full1020")  # whose FLOPs, and whose scores, at the budget


def verdict_table(runs: Sequence[Run]) -> str:
    """Every arm at crop200's FLOPs against both shipped arms at their 500,000 tokens, paired."""
    rows = []
    for arm in by_arm(runs):
        for rival in RIVALS if arm not in RIVALS else ():
            found, shares = against(runs, arm, rival)
            if found:
                told, verdict = [difference_text(found[score]) for score in SCORES], verdict_of(list(found.values()))
                share = f"{sum(shares) / len(shares):.2f}"
                rows.append([arm, rival, str(found[PRIMARY]["pairs"]), share, *told, verdict])
    return grid(["arm, at the FLOPs of crop200", "against", "pairs", "spent", *SCORES, "ahead"], rows)


def outcome_table(runs: Sequence[Run]) -> str:
    """The table of tests/benchmarks/samples.md: scores of each arm, and differences to the shipped arms."""
    points = frontier_points(runs)[0]
    rows = []
    for arm in dict.fromkeys(point.arm for point in points):
        by_budget = {point.budget: point for point in points if point.arm == arm}
        last = by_budget[BUDGET]
        rate = last.runs[0].record["optimizer"][0]["lr"]
        costs = [f"{last.mean(value):,.0f}" for value in (lambda run: run.record["steps"], gigaflops)]
        reached = [f"{by_budget[budget].mean(primary):.3f}" for budget in sorted(by_budget)]
        above = [against(points_runs(points), arm, rival)[0] if arm not in RIVALS else {} for rival in RIVALS]
        told = [difference_text(above[0][PRIMARY]) if above[0] else ""]
        told += [difference_text(above[1][score]) if above[1] else "" for score in SCORES]
        rows.append([f"`{arm}`", samples_a_step(last.runs[0]), f"{rate:g}", *costs, *reached, *told])
    budgets = sorted({point.budget for point in points})
    header = ["arm", "samples a step", "rate", "steps", "GFLOPs", *(f"{budget:,}" for budget in budgets)]
    above_crops, above_full = f"{PRIMARY} above crop200", [f"{score} above full1020" for score in SCORES]
    return grid([*header, above_crops, *above_full], rows)


def points_runs(points: Sequence[Point]) -> list[Run]:
    return [run for point in points for run in point.runs]


def gigaflops(run: Run) -> float:
    return run.record["flops"] / 1e9


def primary(run: Run) -> float:
    return run.test[PRIMARY]


def verdict_of(differences: Sequence[dict[str, Any]]) -> str:
    return "yes" if all(map(is_ahead, differences)) else "no"


def against(runs: Sequence[Run], arm: str, rival: str) -> tuple[dict[str, dict[str, Any]], list[float]]:
    """Differences by score, and what share of the FLOPs was spent; empty where nothing can be paired."""
    arms = by_arm(runs)
    cheap = {run.pair: run for run in arms[CHEAP] if run.budget == BUDGET}
    theirs = {run.pair: run for run in arms[rival] if run.budget == BUDGET}
    found, shares = {}, []
    for score in SCORES:
        values: dict[Pair, float] = {}
        for pair in sorted(cheap.keys() & theirs.keys(), key=str):
            course = [run for run in arms[arm] if run.pair == pair]
            reached = score_at_cost(course, "FLOPs", cheap[pair].record["flops"], score)
            if reached is not None:
                values[pair] = reached[0] - theirs[pair].test[score]
                shares.append(reached[1])
        if values:
            found[score] = difference(values)
    return found, shares
