"""Differences between arms, paired: two runs from the same backbone and seed, at equal tokens, FLOPs and time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from contactlm.report.compare import by_arm
from contactlm.report.read import Pair, Run
from contactlm.report.table import grid
from contactlm.types import ContactLMError

SCORES = ("mcc_sep6", "mcc_long", "p_at_L_long", "auprc_sep6")
COSTS: dict[str, Callable[[Run], float | None]] = {
    "tokens": lambda run: run.record["tokens"],
    "FLOPs": lambda run: run.record["flops"],
    "seconds": lambda run: (run.record.get("seconds") or {}).get("training"),
}
USUAL_REFERENCE = "crop200"
ENOUGH = 2  # standard errors
SLACK = 0.01  # of a cost: budgets end with a batch, never at the token


@dataclass(frozen=True)
class Difference:
    """How far an arm's test score is above that of the reference, at equal cost.

    Attributes:
        arm: The arm.
        budget: Tokens of the reference's runs.
        cost: What is equal; see :data:`COSTS`.
        score: Such as ``mcc_sep6``.
        share: How much of the reference's cost the arm has spent, on average; below 1 where its runs end before.
        values: One difference for each pair of runs, by backbone and seed.
    """

    arm: str
    budget: int
    cost: str
    score: str
    share: float
    values: dict[Pair, float]

    @property
    def mean(self) -> float:
        """Mean over pairs."""
        return float(np.mean(list(self.values.values())))

    @property
    def backbones(self) -> dict[str, float]:
        """The mean difference on each backbone."""
        names = dict.fromkeys(backbone for backbone, _ in self.values)
        return {name: float(np.mean([v for (b, _), v in self.values.items() if b == name])) for name in names}

    @property
    def se_pairs(self) -> float | None:
        """Standard error of the mean over pairs; None for one pair."""
        return _standard_error(list(self.values.values()))

    @property
    def se_backbones(self) -> float | None:
        """Standard error of the mean over backbones, pairs on one backbone being alike; None for one backbone."""
        return _standard_error(list(self.backbones.values()))

    @property
    def se(self) -> float | None:
        """The larger of both standard errors; None for one pair."""
        return max(filter(None, (self.se_pairs, self.se_backbones)), default=None)

    @property
    def is_ahead(self) -> bool:
        """Whether the arm is above the reference by more than two standard errors."""
        return self.se is not None and self.mean > ENOUGH * self.se

    def text(self) -> str:
        """Mean ± standard error."""
        return f"{self.mean:+.3f}" + (" (one pair)" if self.se is None else f" ± {self.se:.3f}")


def _standard_error(values: Sequence[float]) -> float | None:
    return float(np.std(values, ddof=1) / np.sqrt(len(values))) if len(values) > 1 else None


def comparable(runs: Sequence[Run]) -> list[Run]:
    """Runs that can be paired: trained, and scored on test."""
    return [run for run in runs if run.trained and run.test]


def check_reference(runs: Sequence[Run], wanted: str | None) -> None:
    """Complain about an arm to compare with that is not there.

    Raises:
        ContactLMError: No run that was trained and tested is of that arm.
    """
    arms = list(by_arm(comparable(runs)))
    if wanted is not None and wanted not in arms:
        known = ", ".join(arms) or "none"
        raise ContactLMError(
            f"reference: {wanted}: no trained run of that arm has test scores; arms that have: {known}"
        )


def choose_reference(runs: Sequence[Run], wanted: str | None = None) -> str:
    """The arm that others are compared with: the one asked for, else ``crop200``, else the first."""
    arms = list(by_arm(runs))
    return next((arm for arm in (wanted, USUAL_REFERENCE) if arm in arms), arms[0])


def paired_differences(runs: Sequence[Run], reference: str) -> list[Difference]:
    """Compare every arm with the reference, at each of its budgets and at equal tokens, FLOPs and seconds.

    At equal tokens runs of one budget are compared. At equal FLOPs or seconds the arm's score is interpolated between
    its budgets, linearly in the logarithm of the cost, and never extrapolated: an arm whose runs all cost less is
    taken at the end of its longest one, and one whose runs all cost more is not compared.

    Args:
        runs: Runs that differ in nothing but the arm, the budget, the backbone and the seed.
        reference: Arm to compare with.
    """
    courses = {arm: _courses(members) for arm, members in by_arm(comparable(runs)).items()}
    theirs = courses.pop(reference)
    budgets = sorted({run.budget for course in theirs.values() for run in course})
    found = []
    for budget in budgets:
        for cost in COSTS:
            for arm, ours in courses.items():
                for score in SCORES:
                    values, shares = _compare(ours, theirs, budget, cost, score)
                    if values:
                        found.append(Difference(arm, budget, cost, score, float(np.mean(shares)), values))
    return found


def _courses(runs: Sequence[Run]) -> dict[Pair, list[Run]]:
    """Runs of one arm by backbone and seed, the smallest budget first."""
    courses: dict[Pair, list[Run]] = {}
    for run in sorted(runs, key=lambda run: run.record["tokens"]):
        courses.setdefault(run.pair, []).append(run)
    return courses


def _compare(
    ours: dict[Pair, list[Run]], theirs: dict[Pair, list[Run]], budget: int, cost: str, score: str
) -> tuple[dict[Pair, float], list[float]]:
    values, shares = {}, []
    for pair in ours.keys() & theirs.keys():
        other = next((run for run in theirs[pair] if run.budget == budget), None)
        if other is None or other.test.get(score) is None:
            continue
        most = COSTS[cost](other)
        course = [run for run in ours[pair] if run.budget == budget] if cost == "tokens" else ours[pair]
        reached = score_at_cost(course, cost, most, score)
        if reached is not None:
            values[pair] = reached[0] - other.test[score]
            shares.append(reached[1])
    return dict(sorted(values.items(), key=str)), shares


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
    if cost == "tokens":  # one run, of the same budget
        return float(y[-1]), float(x[-1] / most)
    if most < x[0] * (1 - SLACK):
        return None
    return float(np.interp(np.log(most), np.log(x), y)), float(np.clip(most, x[0], x[-1]) / most)


def difference_rows(differences: Sequence[Difference], reference: str) -> list[dict[str, Any]]:
    """Rows of ``paired.csv``."""
    return [
        {
            "reference": reference,
            "reference_budget": each.budget,
            "equal": each.cost,
            "arm": each.arm,
            "score": each.score,
            "difference": each.mean,
            "se_pairs": each.se_pairs,
            "se_backbones": each.se_backbones,
            "pairs": len(each.values),
            "backbones": len(each.backbones),
            "share_of_cost": each.share,
        }
        for each in differences
    ]


def difference_tables(differences: Sequence[Difference], reference: str) -> str:
    """Tables at the reference's largest budget: at equal tokens, FLOPs and seconds."""
    budget = max(each.budget for each in differences)
    parts = [
        f"### Test scores above those of {reference} at {budget:,} tokens, paired by backbone and seed",
        "Mean ± standard error (over pairs, or over backbones where that is larger). *Spent*: of the reference's cost.",
    ]
    for cost in COSTS:
        cells = _cells([each for each in differences if (each.budget, each.cost) == (budget, cost)])
        if cells:
            parts.append(grid([f"at equal {cost}", "pairs", "backbones", "spent", *SCORES], cells))
    return "\n\n".join(parts)


def _cells(differences: Sequence[Difference]) -> list[list[str]]:
    cells = []
    for arm in dict.fromkeys(each.arm for each in differences):
        of_arm = {each.score: each for each in differences if each.arm == arm}
        first = next(iter(of_arm.values()))
        scores = [of_arm[score].text() if score in of_arm else "" for score in SCORES]
        cells.append([arm, str(len(first.values)), str(len(first.backbones)), f"{first.share:.2f}", *scores])
    return cells


def ahead_line(differences: Sequence[Difference], reference: str) -> str:
    """Which arms are ahead of the reference on all scores at no more FLOPs than its largest budget takes."""
    budget = max(each.budget for each in differences)
    told = [each for each in differences if (each.budget, each.cost) == (budget, "FLOPs")]
    arms = [arm for arm in dict.fromkeys(each.arm for each in told)
            if [each.is_ahead for each in told if each.arm == arm] == [True] * len(SCORES)]  # fmt: skip
    what = f"ahead of {reference} by more than {ENOUGH} standard errors of the paired difference on {', '.join(SCORES)}"
    return f"{what}, at no more FLOPs than its {budget:,} tokens take: {', '.join(arms) or 'no arm'}"
