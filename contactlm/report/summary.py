"""What the runs show: which arm wins, how sure that is, what must be known with it, and paired differences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
PAIRED_COLUMNS = ("arm", "pairs", "backbones", *PAIRED_SCORES)
PAIRED_NOTE = "Mean difference (se: standard error over pairs, or over backbones where that is larger)."
ENOUGH = 2  # standard errors
MAY_DIFFER = ("budget", "backbone")  # between runs of one experiment


def judge(runs: Sequence[Run], score: str) -> tuple[dict[str, Spread], list[str]]:
    """Find the best arm by a test score.

    It wins when its mean − sd lies above every other arm's mean + sd. An arm of one seed has no spread: neither it
    nor an arm compared with it can be distinguished.

    Returns:
        Each arm's spread, best mean first, and the arms that cannot be distinguished from the best.
    """
    spreads = {arm: arm_spread(members, lambda run: run.test.get(score)) for arm, members in by_arm(runs).items()}
    known = [(arm, spread) for arm, spread in spreads.items() if spread is not None]
    ordered = dict(sorted(known, key=lambda item: -item[1].mean))
    best, *others = ordered or [""]
    return ordered, [arm for arm in others if _overlap(ordered[best], ordered[arm])]


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


def group_names(groups: Sequence[Sequence[Run]]) -> list[str]:
    """What the runs of each group share and those of others do not, such as ``budget 5,000,000``."""
    facts = differences([run for group in groups for run in group])
    shared = [
        [
            f"{option} {value}"
            for option, values in facts.items()
            for value, having in values.items()
            if all(run in having for run in group)
        ]
        for group in groups
    ]
    return ["; ".join(each) or f"group {number}" for number, each in enumerate(shared, start=1)]


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
            "TRAINED FROM RANDOM WEIGHTS, not from a pretrained model: the numbers compare training schemes from "
            "scratch and say nothing about published ESM2."
        )
    starts = {str(run.record["pretrained"]) for run in runs if run.equal.get("weights") == "pretrained"}
    if starts:
        lines.append(f"training starts from the weights of {' or '.join(sorted(starts))}")
    if any(run.equal.get("synthetic") for run in runs):
        lines.append("PROTEINS ARE SYNTHETIC: the numbers say nothing about real proteins.")
    return lines


def _statement(runs: Sequence[Run], score: str) -> str:
    spreads, rivals = judge(runs, score)
    if not spreads:
        return f"test {JUDGED[score]} ({score}): no arm has it"
    each = ", ".join(f"{arm} {spread.text()}" for arm, spread in spreads.items())
    trivial = trivial_scores(runs, "test").get(score)
    known = "" if trivial is None else f"; the trivial predictor has {trivial:.3f}"
    low = trivial is not None and next(iter(spreads.values())).mean <= trivial
    warning = ", and no arm is above it" if low else ""
    return f"test {JUDGED[score]} ({score}): {_outcome(spreads, rivals)}. {each}{known}{warning}"


def _outcome(spreads: dict[str, Spread], rivals: Sequence[str]) -> str:
    best = next(iter(spreads))
    if len(spreads) == 1:
        return "one arm only, so there is nothing to compare"
    if not rivals:
        return f"{best} wins"
    equal = [arm for arm, spread in spreads.items() if spread.mean == spreads[best].mean]
    if len(equal) > 1:
        return f"no clear winner; {', '.join(equal)} share the highest mean"
    single = [arm for arm, spread in spreads.items() if spread.sd is None and arm in (best, *rivals)]
    reasons = [f"the spread of {', '.join(single)} is unknown (one seed)"] if single else []
    overlapping = [arm for arm in rivals if arm not in single]
    if overlapping and best not in single:
        reasons.append(f"its spread overlaps that of {', '.join(overlapping)}")
    return f"no clear winner; {best} has the highest mean, but {' and '.join(reasons)}"


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


def paired_rows(runs: Sequence[Run], reference: str) -> list[dict[str, Any]]:
    """Rows of ``paired.csv``: every arm against the reference at each of its budgets, by backbone and seed."""
    arms = {arm: {(run.budget, run.pair): run.test for run in own} for arm, own in by_arm(_comparable(runs)).items()}
    theirs = arms.pop(reference)
    rows = []
    for budget in sorted({budget for budget, _ in theirs}):
        for arm, ours in arms.items():
            shared = sorted((key for key in ours.keys() & theirs.keys() if key[0] == budget), key=str)
            for score in PAIRED_SCORES:
                known = [key for key in shared if score in ours[key] and score in theirs[key]]
                if known:
                    about = {"reference": reference, "reference_budget": budget, "equal": "tokens"}
                    values = {key[1]: ours[key][score] - theirs[key][score] for key in known}
                    rows.append({**about, "arm": arm, "score": score, **difference(values)})
    return rows


def difference(values: Mapping[Pair, float]) -> dict[str, Any]:
    """The mean of differences by backbone and seed, with standard errors over pairs and over backbones' means.

    Pairs on one backbone are alike; the error of one value is None.
    """
    of_backbone: dict[str, list[float]] = {}
    for (backbone, _), value in values.items():
        of_backbone.setdefault(backbone, []).append(value)
    means = [float(np.mean(own)) for own in of_backbone.values()]
    return {
        "difference": float(np.mean(list(values.values()))),
        "se_pairs": _standard_error(list(values.values())),
        "se_backbones": _standard_error(means),
        "pairs": len(values),
        "backbones": len(means),
    }


def _standard_error(values: Sequence[float]) -> float | None:
    return float(np.std(values, ddof=1) / np.sqrt(len(values))) if len(values) > 1 else None


def larger_error(row: Mapping[str, Any]) -> float | None:
    """The larger standard error of a :func:`difference`; None for one pair."""
    return max((row[name] for name in ("se_pairs", "se_backbones") if row[name] is not None), default=None)


def is_ahead(row: Mapping[str, Any]) -> bool:
    """Whether a :func:`difference` is above 0 by more than two standard errors."""
    error = larger_error(row)
    return error is not None and row["difference"] > ENOUGH * error


def difference_text(row: Mapping[str, Any]) -> str:
    """Mean and standard error of a :func:`difference`; ± stands for the sd over seeds, and nothing else."""
    error = larger_error(row)
    return f"{row['difference'] + 0.0:+.3f}" + (" (one pair)" if error is None else f" (se {error:.3f})")


def paired_table(rows: Sequence[Mapping[str, Any]]) -> tuple[str, str, list[list[str]]]:
    """At the reference's largest budget: a line that names the arms ahead on all scores, a title, and a table."""
    reference, budget = rows[0]["reference"], max(row["reference_budget"] for row in rows)
    arms: dict[str, dict[str, Mapping[str, Any]]] = {}
    for row in rows:
        if row["reference_budget"] == budget:
            arms.setdefault(row["arm"], {})[row["score"]] = row
    ahead = [arm for arm, own in arms.items() if all(score in own and is_ahead(own[score]) for score in PAIRED_SCORES)]
    line = (
        f"ahead of {reference} by more than {ENOUGH} standard errors of the paired difference on "
        f"{', '.join(PAIRED_SCORES)}, at {budget:,} tokens: {', '.join(ahead) or 'no arm'}"
    )
    cells = [list(PAIRED_COLUMNS)]
    for arm, own in arms.items():
        first = next(iter(own.values()))
        scores = [difference_text(own[score]) if score in own else "" for score in PAIRED_SCORES]
        cells.append([arm, str(first["pairs"]), str(first["backbones"]), *scores])
    title = f"Test scores above those of {reference} at {budget:,} tokens, paired by backbone and seed"
    return line, title, cells


def paired_markdown(title: str, cells: Sequence[Sequence[str]]) -> str:
    """The table of :func:`paired_table` as Markdown."""
    return "\n\n".join([f"### {title}", PAIRED_NOTE, grid(cells[0], cells[1:])])
