"""Runs and arms as rows of ``table.csv`` and ``table.md``, and the points of the figures as ``curves.csv``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from contactlm.report.compare import Spread, arm_spread, by_arm
from contactlm.report.read import Run

DEV_SCORES = ("mcc_sep6", "mcc", "mcc_long", "p_at_L_long")
TEST_SCORES = (*DEV_SCORES, "p_at_L5_long", "r_precision_long", "auprc_sep6", "mcc_sep6_tuned")
# "…_calibrated" next to each
PROBABILITY_SCORES = ("ece_sep6", "brier_sep6", "log_loss_sep6", "ece_short", "ece_medium", "ece_long")
THRESHOLD_SCORES = ("mcc_sep6", "mcc_sep6_calibrated", "mcc_sep6_tuned")
CONFIDENCE_SCORES = ("confidence_bias", "confidence_error")  # of each protein's predicted long-range P@L
TRIVIAL = "trivial (|i − j| ≤ 2)"

Column = Callable[[Run], float | None]


def _of_record(*path: str, scale: float = 1.0) -> Column:
    def value(run: Run) -> float | None:
        found: Any = run.record
        for name in path:
            found = (found or {}).get(name)
        return None if found is None else found / scale

    return value


def _score(role: str, name: str) -> Column:
    return lambda run: getattr(run, role).get(name)


PROBABILITY_COLUMNS = [f"{name}{calibrated}" for name in PROBABILITY_SCORES for calibrated in ("", "_calibrated")]
TEST_COLUMNS = (*TEST_SCORES, "mcc_sep6_calibrated", *CONFIDENCE_SCORES, *PROBABILITY_COLUMNS)
COLUMNS: dict[str, Column] = {
    **{f"test_{name}": _score("test", name) for name in TEST_COLUMNS},
    **{f"dev_{name}": _score("dev", name) for name in DEV_SCORES},
    **{name: _of_record(name) for name in ("tokens", "residues", "steps", "trained_parameters")},
    "gflops": _of_record("flops", scale=1e9),
    "forward_gflops": _of_record("forward_flops", scale=1e9),
    "training_seconds": _of_record("seconds", "training"),
    "total_seconds": _of_record("seconds", "total"),
    "training_memory_mib": _of_record("memory", "training", scale=2**20),
    "peak_memory_mib": _of_record("memory", "peak", scale=2**20),
}
# Titles of costs, in Markdown
COSTS = {"tokens": "tokens", "steps": "optimizer steps", "trained_parameters": "trained parameters", "gflops": "GFLOPs"}
COSTS |= {"forward_gflops": "forward GFLOPs", "training_seconds": "training (s)", "total_seconds": "total (s)"}
COSTS |= {"training_memory_mib": "training memory (MiB)", "peak_memory_mib": "peak memory (MiB)"}


def table_rows(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """All rows of ``table.csv``: every run, then each arm's mean and sd over seeds, then the trivial predictor.

    ``row`` is ``run``, ``mean``, ``sd`` or ``trivial``; ``seed`` is the number of seeds in rows of means and sds. What
    is not known is left empty.
    """
    rows: list[dict[str, Any]] = []
    for arm, members in by_arm(runs).items():
        for run in members:
            values = {name: column(run) for name, column in COLUMNS.items()}
            rows.append({"row": "run", "arm": arm, "seed": run.seed, **values, "run": str(run.path)})
    for arm, members in by_arm(runs).items():
        spreads = {name: Spread.of(column(run) for run in members) for name, column in COLUMNS.items()}
        for kind in ("mean", "sd"):
            values = {name: getattr(spread, kind, None) for name, spread in spreads.items()}
            rows.append({"row": kind, "arm": arm, "seed": len(members), **values, "run": ""})
    trivial: dict[str, float | None] = dict.fromkeys(COLUMNS)
    for role in ("test", "dev"):
        trivial |= {f"{role}_{name}": value for name, value in trivial_scores(runs, role).items()}
    rows.append({"row": "trivial", "arm": TRIVIAL, "seed": None, **trivial, "run": ""})
    return rows


def trivial_scores(runs: Sequence[Run], role: str) -> dict[str, float]:
    """The trivial predictor's scores on a set: the same in all runs that are scored on it (else their mean)."""
    names = TEST_SCORES if role == "test" else DEV_SCORES
    records = [run.record.get(role) or {} for run in runs]
    spreads = {name: Spread.of(record.get(f"trivial_{name}") for record in records) for name in names}
    return {name: spread.mean for name, spread in spreads.items() if spread is not None}


def curve_rows(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """All points of the figures: ``kind`` is ``progress`` (left panel), ``dev`` (curves) or ``test`` (crosses)."""
    rows = []
    for run in runs:
        points: list[tuple[str, dict[str, Any], dict[str, Any]]] = [("progress", row, {}) for row in run.progress]
        points += [("dev", row, row) for row in run.history]
        points += [("test", run.record, run.test)] if run.test else []
        for kind, at, scores in points:
            cost = {name: at[name] for name in ("steps", "tokens")}
            for name in ("flops", "forward_flops"):
                cost[name.replace("flops", "gflops")] = None if at.get(name) is None else at[name] / 1e9
            values = {name: scores.get(name) for name in TEST_SCORES}
            rows.append({"kind": kind, "arm": run.arm, "seed": run.seed, **cost, **values})
    return rows


def markdown(runs: Sequence[Run]) -> str:
    """Tables: scores by arm, how far probabilities can be believed, cost by arm, and every run."""
    arms, columns = by_arm(runs), [*(f"test_{name}" for name in TEST_SCORES), "dev_mcc_sep6"]
    scores = [[arm, str(len(members)), *(_spread(members, name) for name in columns)] for arm, members in arms.items()]
    trivial = [trivial_scores(runs, "test").get(name) for name in TEST_SCORES]
    trivial.append(trivial_scores(runs, "dev").get("mcc_sep6"))
    scores.append([TRIVIAL, "", *map(_number, trivial)])
    costs = [[arm, *(_cost(members, name) for name in COSTS)] for arm, members in arms.items()]
    each = []
    for run in runs:
        own = [_number(run.test.get(name)) for name in TEST_SCORES]
        each.append([run.arm, str(run.seed), *own, *(_cost([run], name) for name in COSTS)])
    test = [f"test {name}" for name in TEST_SCORES]
    parts = ["### Scores: mean ± sd over seeds", grid(["arm", "seeds", *test, "dev mcc_sep6"], scores)]
    parts += _probabilities(arms)
    parts += ["### Cost of training: mean over seeds", grid(["arm", *COSTS.values()], costs)]
    return "\n\n".join([*parts, "### Every run", grid(["arm", "seed", *test, *COSTS.values()], each)])


def _probabilities(arms: dict[str, list[Run]]) -> list[str]:
    """A table of arms that have been judged so: as predicted, then calibrated on dev; older runs have none."""
    rows = []
    for arm, members in arms.items():
        if not any("ece_sep6" in run.test for run in members):
            continue
        pairs = [(_spread(members, f"test_{n}"), _spread(members, f"test_{n}_calibrated")) for n in PROBABILITY_SCORES]
        both = [f"{before} → {after}" if after else before for before, after in pairs]
        thresholds, confidence = (
            [_spread(members, f"test_{name}") for name in names] for names in (THRESHOLD_SCORES, CONFIDENCE_SCORES)
        )
        rows.append([arm, *thresholds, *both, *confidence])
    if not rows:
        return []
    title = "### Probabilities on test: as predicted → calibrated on dev"
    note = (
        "`mcc_sep6` is at 0.5, at 0.5 after calibration, and at the threshold tuned on dev; where the last two are "
        "alike, the tuned threshold says no more than 0.5."
    )
    return [title, note, grid(["arm", *THRESHOLD_SCORES, *PROBABILITY_SCORES, *CONFIDENCE_SCORES], rows)]


def _cost(runs: Sequence[Run], name: str) -> str:
    spread = Spread.of(COLUMNS[name](run) for run in runs)
    if spread is None:
        return ""
    return f"{spread.mean:,.0f}" if spread.mean >= 100 or spread.mean == int(spread.mean) else f"{spread.mean:.3g}"


def arm_rows(runs: Sequence[Run]) -> list[list[str]]:
    """A table of arms: scores on test (mean ± sd over seeds), and what training took (means); its head first."""
    names = ("mcc_sep6", "mcc_long", "p_at_L_long", "auprc_sep6")
    costs = ("tokens", "steps", "gflops", "training_seconds")
    rows = [["arm", "seeds", *names, *(COSTS[name] for name in costs)]]
    for arm, members in by_arm(runs).items():
        scores = [_spread(members, f"test_{name}") for name in names]
        rows.append([arm, str(len(members)), *scores, *(_cost(members, name) for name in costs)])
    trivial = trivial_scores(runs, "test")
    return [*rows, [TRIVIAL, "", *(_number(trivial.get(name)) for name in names), *("" for _ in costs)]]


def _spread(runs: Sequence[Run], name: str) -> str:
    spread = arm_spread(runs, COLUMNS[name])
    return "" if spread is None else spread.number()


def _number(value: float | None) -> str:
    return "" if value is None or np.isnan(value) else f"{value:.3f}"


def grid(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, its first column to the left and the others to the right."""
    alignment = [":--", *["--:"] * (len(header) - 1)]
    lines = (header, alignment, *rows)
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |" for cells in lines)
