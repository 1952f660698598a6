"""What the runs show: which arm wins, how sure that is, what must be known with it, and paired differences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from contactlm.report.compare import Spread, arm_spread, by_arm, describe, differences, group_equal, remarks
from contactlm.report.read import Pair, Run
from contactlm.report.table import grid, trivial_scores
from contactlm.types import ContactLMError

JUDGED = {
    "mcc_sep6": "MCC at |i − j| ≥ 6",
    "mcc_sep6_tuned": "the same at the threshold tuned on dev",
    "mcc_long": "long-range MCC",
    "p_at_L_long": "long-range P@L",
}
RULE = "An arm wins when its mean − sd lies above every other arm's mean + sd; that is no test of significance."
PAIRED_SCORES = ("mcc_sep6", "mcc_long", "p_at_L_long", "auprc_sep6")
ENOUGH = 2  # standard errors
MAY_DIFFER = ("budget", "backbone")  # between runs of one experiment


@dataclass(frozen=True)
class Verdict:
    """Which arm scores best.

    Attributes:
        spreads: Each arm's spread, best mean first.
        rivals: Arms whose spread overlaps that of the best, or which have one seed or none to tell.
    """

    spreads: dict[str, Spread]
    rivals: list[str]

    @property
    def best(self) -> str:
        """The arm with the highest mean."""
        return next(iter(self.spreads))


def judge(runs: Sequence[Run], score: str) -> Verdict | None:
    """Find the best arm by a test score; None when no arm has the score.

    It wins when its mean − sd lies above every other arm's mean + sd. An arm of one seed has no spread: neither it
    nor an arm compared with it can be told apart.
    """
    spreads = {arm: arm_spread(members, lambda run: run.test.get(score)) for arm, members in by_arm(runs).items()}
    known = {arm: spread for arm, spread in spreads.items() if spread is not None}
    if not known:
        return None
    ordered = dict(sorted(known.items(), key=lambda item: -item[1].mean))
    best, *others = ordered
    return Verdict(ordered, [arm for arm in others if _overlap(ordered[best], ordered[arm])])


def _overlap(better: Spread, other: Spread) -> bool:
    if better.sd is None or other.sd is None:
        return True
    return better.mean - better.sd <= other.mean + other.sd


def summarize(runs: Sequence[Run]) -> list[str]:
    """Statements about a group of runs, one a line: terms, verdicts, and what bears on them."""
    arms = by_arm(runs)
    counts = ", ".join(f"{arm} ({len(members)})" for arm, members in arms.items())
    lines = [f"{_count(len(runs), 'run')} of {_count(len(arms), 'arm')}: {counts}"]
    lines += _terms(runs) + [_statement(runs, score) for score in JUDGED]
    without = [str(run.path) for run in runs if not run.test]
    if without:
        lines.append(f"without test scores: {', '.join(without)}")
    lines += [f"differs within this table: {name}: {describe(v)}" for name, v in differences(runs).items()]
    return lines + [f"note: {remark}" for remark in remarks(runs)]


def group_lines(groups: Sequence[Sequence[Run]]) -> list[str]:
    """What sets groups of runs apart, one line an option."""
    if len(groups) < 2:
        return []
    lines = [f"The runs fall into {len(groups)} groups that must not be mixed; each has tables and figures of its own."]
    for option, values in differences([run for group in groups for run in group]).items():
        lines.append(f"differs: {option}: {describe(values, arms=False)}")
    return lines


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"


def _terms(runs: Sequence[Run]) -> list[str]:
    lines = []
    budgets = {run.equal["budget"] for run in runs if run.equal.get("budget")}
    if budgets:
        lines.append("budget: " + " or ".join(f"{budget:,}" for budget in sorted(budgets)) + " tokens")
    families = {str(run.equal["family"]) for run in runs if run.equal.get("family")}
    if families:
        lines.append(f"language model: {' or '.join(sorted(families))}")
    if any(run.equal.get("weights") == "random" for run in runs):
        lines.append(
            "WEIGHTS ARE RANDOMLY INITIALISED, not those of a pretrained model: the numbers compare training schemes "
            "from scratch and say nothing about published ESM2."
        )
    starts = {str(run.record["pretrained"]) for run in runs if run.equal.get("weights") == "pretrained"}
    if starts:
        lines.append(f"training starts from the weights of {' or '.join(sorted(starts))}")
    if any(run.equal.get("synthetic") for run in runs):
        lines.append("PROTEINS ARE SYNTHETIC: the numbers say nothing about real proteins.")
    return lines


def _statement(runs: Sequence[Run], score: str) -> str:
    verdict = judge(runs, score)
    if verdict is None:
        return f"test {JUDGED[score]} ({score}): no arm has it"
    spreads = ", ".join(f"{arm} {spread.text()}" for arm, spread in verdict.spreads.items())
    trivial = trivial_scores(runs, "test").get(score)
    known = "" if trivial is None else f"; the trivial predictor has {trivial:.3f}"
    low = trivial is not None and verdict.spreads[verdict.best].mean <= trivial
    warning = ", and no arm is above it" if low else ""
    return f"test {JUDGED[score]} ({score}): {_outcome(verdict)}. {spreads}{known}{warning}"


def _outcome(verdict: Verdict) -> str:
    best, rivals = verdict.best, verdict.rivals
    if len(verdict.spreads) == 1:
        return "one arm only, so there is nothing to compare"
    if not rivals:
        return f"{best} wins"
    equal = [arm for arm, spread in verdict.spreads.items() if spread.mean == verdict.spreads[best].mean]
    if len(equal) > 1:
        return f"no clear winner; {', '.join(equal)} share the highest mean"
    single = [arm for arm, spread in verdict.spreads.items() if spread.sd is None and arm in (best, *rivals)]
    reasons = [f"the spread of {', '.join(single)} is unknown (one seed)"] if single else []
    overlapping = [arm for arm in rivals if arm not in single]
    if overlapping and best not in single:
        reasons.append(f"its spread overlaps that of {', '.join(overlapping)}")
    return f"no clear winner; {best} has the highest mean, but {' and '.join(reasons)}"


@dataclass(frozen=True)
class Difference:
    """How far an arm's test score is above that of the reference, at equal tokens.

    Attributes:
        arm: The arm.
        budget: Tokens of both.
        score: Such as ``mcc_sep6``.
        values: One difference for each pair of runs, by backbone and seed.
    """

    arm: str
    budget: int
    score: str
    values: dict[Pair, float]

    @property
    def mean(self) -> float:
        """Mean over pairs."""
        return float(np.mean(list(self.values.values())))

    @property
    def backbones(self) -> list[float]:
        """The mean difference on each backbone."""
        of_backbone: dict[str, list[float]] = {}
        for (backbone, _), value in self.values.items():
            of_backbone.setdefault(backbone, []).append(value)
        return [float(np.mean(values)) for values in of_backbone.values()]

    @property
    def errors(self) -> tuple[float | None, float | None]:
        """Standard error of the mean over pairs, and over backbones, pairs on one being alike; None: of one value."""
        return _standard_error(list(self.values.values())), _standard_error(self.backbones)

    @property
    def se(self) -> float | None:
        """The larger of both standard errors; None for one pair."""
        return max(filter(None, self.errors), default=None)

    @property
    def is_ahead(self) -> bool:
        """Whether the arm is above the reference by more than two standard errors."""
        return self.se is not None and self.mean > ENOUGH * self.se

    def text(self) -> str:
        """Mean ± standard error."""
        return f"{self.mean:+.3f}" + (" (one pair)" if self.se is None else f" ± {self.se:.3f}")


def _standard_error(values: Sequence[float]) -> float | None:
    return float(np.std(values, ddof=1) / np.sqrt(len(values))) if len(values) > 1 else None


def _comparable(runs: Sequence[Run]) -> list[Run]:
    return [run for run in runs if run.trained and run.test]


def whole_experiments(runs: Sequence[Run]) -> list[list[Run]]:
    """Groups of trained and tested runs that differ in nothing but arm, seed, budget and backbone."""
    return [group for group in group_equal(_comparable(runs), MAY_DIFFER) if len(by_arm(group)) > 1]


def check_reference(runs: Sequence[Run], wanted: str | None) -> None:
    """Complain about an arm to compare with of which no run was trained and tested."""
    arms = list(by_arm(_comparable(runs)))
    if wanted is not None and wanted not in arms:
        those = f"arms that have: {', '.join(arms) or 'none'}"
        raise ContactLMError(f"reference: {wanted}: no trained run of that arm has test scores; {those}")


def paired_differences(runs: Sequence[Run], reference: str) -> list[Difference]:
    """Compare every arm of an experiment with the reference at each of its budgets, by backbone and seed."""
    arms = {arm: {(run.budget, run.pair): run.test for run in own} for arm, own in by_arm(_comparable(runs)).items()}
    theirs = arms.pop(reference)
    found = []
    for budget in sorted({budget for budget, _ in theirs}):
        for arm, ours in arms.items():
            shared = sorted((key for key in ours.keys() & theirs.keys() if key[0] == budget), key=str)
            for score in PAIRED_SCORES:
                known = [key for key in shared if score in ours[key] and score in theirs[key]]
                if known:
                    values = {key[1]: ours[key][score] - theirs[key][score] for key in known}
                    found.append(Difference(arm, budget, score, values))
    return found


def difference_rows(found: Sequence[Difference], reference: str) -> list[dict[str, Any]]:
    """Rows of ``paired.csv``."""
    return [
        {
            "reference": reference,
            "reference_budget": each.budget,
            "equal": "tokens",
            "arm": each.arm,
            "score": each.score,
            "difference": each.mean,
            "se_pairs": each.errors[0],
            "se_backbones": each.errors[1],
            "pairs": len(each.values),
            "backbones": len(each.backbones),
        }
        for each in found
    ]


def difference_table(found: Sequence[Difference], reference: str) -> tuple[str, str]:
    """At the reference's largest budget: a line that names the arms ahead on all scores, and a table."""
    budget = max(each.budget for each in found)
    arms: dict[str, dict[str, Difference]] = {}
    for each in found:
        if each.budget == budget:
            arms.setdefault(each.arm, {})[each.score] = each
    ahead = [
        arm for arm, own in arms.items() if [each.is_ahead for each in own.values()] == [True] * len(PAIRED_SCORES)
    ]
    line = (
        f"ahead of {reference} by more than {ENOUGH} standard errors of the paired difference on "
        f"{', '.join(PAIRED_SCORES)}, at {budget:,} tokens: {', '.join(ahead) or 'no arm'}"
    )
    cells = []
    for arm, own in arms.items():
        first = next(iter(own.values()))
        scores = [own[score].text() if score in own else "" for score in PAIRED_SCORES]
        cells.append([arm, str(len(first.values)), str(len(first.backbones)), *scores])
    title = f"### Test scores above those of {reference} at {budget:,} tokens, paired by backbone and seed"
    note = "Mean ± standard error (over pairs, or over backbones where that is larger)."
    return line, "\n\n".join([title, note, grid(["arm", "pairs", "backbones", *PAIRED_SCORES], cells)])
