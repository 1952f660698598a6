"""What the runs show, in words: which arm wins, how sure that is, and what must be known beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from contactlm.report.compare import Verdict, by_arm, describe, differences, judge, remarks
from contactlm.report.read import Run
from contactlm.report.table import trivial_scores

JUDGED = {
    "mcc_sep6": "MCC at |i − j| ≥ 6",
    "mcc_sep6_tuned": "the same at the threshold tuned on dev",
    "mcc_long": "long-range MCC",
    "p_at_L_long": "long-range P@L",
}
RULE = "An arm wins when its mean − sd lies above every other arm's mean + sd; that is no test of significance."


def summarize(runs: Sequence[Run]) -> list[str]:
    """Statements about a group of runs, one a line: terms, verdicts, and what bears on them."""
    arms = by_arm(runs)
    lines = [
        f"{count(len(runs), 'run')} of {count(len(arms), 'arm')}: "
        + ", ".join(f"{a} ({len(r)})" for a, r in arms.items())
    ]
    lines += _terms(runs) + [_statement(runs, score) for score in JUDGED]
    without = [str(run.path) for run in runs if not run.test]
    if without:
        lines.append(f"without test scores: {', '.join(without)}")
    lines += [f"differs within this table: {name}: {describe(v)}" for name, v in differences(runs).items()]
    return lines + [f"note: {remark}" for remark in remarks(runs)]


def left_out_lines(left_out: Mapping[Path, str]) -> list[str]:
    """A line for every directory that is not used."""
    return [f"left out: {path}: {reason}" for path, reason in left_out.items()]


def group_lines(groups: Sequence[Sequence[Run]]) -> list[str]:
    """What sets groups of runs apart, one line an option."""
    if len(groups) < 2:
        return []
    lines = [f"The runs fall into {len(groups)} groups that must not be mixed; each has tables and figures of its own."]
    everything = [run for group in groups for run in group]
    for option, values in differences(everything).items():
        lines.append(f"differs: {option}: {describe(values, arms=False)}")
    return lines


def count(number: int, thing: str) -> str:
    """Such as ``1 run`` and ``2 runs``."""
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
    beside = "" if trivial is None else f"; the trivial predictor has {trivial:.3f}"
    low = trivial is not None and verdict.spreads[verdict.best].mean <= trivial
    warning = ", and no arm is above it" if low else ""
    return f"test {JUDGED[score]} ({score}): {_outcome(verdict)}. {spreads}{beside}{warning}"


def _outcome(verdict: Verdict) -> str:
    if len(verdict.spreads) == 1:
        return "one arm only, so there is nothing to compare"
    if not verdict.rivals:
        return f"{verdict.best} wins"
    highest = verdict.spreads[verdict.best].mean
    equal = [arm for arm, spread in verdict.spreads.items() if spread.mean == highest]
    if len(equal) > 1:
        return f"no clear winner; {', '.join(equal)} share the highest mean"
    single = [arm for arm in verdict.single if arm == verdict.best or arm in verdict.rivals]
    reasons = [f"the spread of {', '.join(single)} is unknown (one seed)"] if single else []
    overlapping = [arm for arm in verdict.rivals if arm not in single]
    if overlapping and verdict.best not in single:
        reasons.append(f"its spread overlaps that of {', '.join(overlapping)}")
    return f"no clear winner; {verdict.best} has the highest mean, but {' and '.join(reasons)}"
