"""What the report says of probabilities: calibration beside the tuned threshold."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from contactlm.cli.report import write_report
from tests.report.made_runs import make_run

NAMES = ("ece_sep6", "brier_sep6", "log_loss_sep6", "ece_short", "ece_medium", "ece_long")


@pytest.mark.slow
def test_calibration_stands_beside_the_tuned_threshold(tmp_path: Path) -> None:
    for seed in (0, 1):
        judged = {
            "mcc_sep6_calibrated": 0.44,
            "mcc_sep6_tuned": 0.45,
            "confidence_bias": 0.01,
            "confidence_error": 0.05,
        }
        judged |= dict.fromkeys(NAMES, 0.2) | {f"{name}_calibrated": 0.05 + 0.02 * seed for name in NAMES}
        path = make_run(tmp_path / "runs" / f"new{seed}", "new", seed, 0.4)
        make_run(tmp_path / "runs" / f"old{seed}", "old", seed, 0.3)
        with_scores(path, judged)
    write_report([tmp_path / "runs"], tmp_path / "report")
    page = (tmp_path / "report" / "report.md").read_text(encoding="utf-8")
    table = page[page.index("### Probabilities on test") :].split("\n\n")[2]
    [header, _, row] = table.splitlines()
    assert "| old " not in table  # made before: it has no such scores
    cells = dict(
        zip((cell.strip() for cell in header.split("|")), (cell.strip() for cell in row.split("|")), strict=True)
    )
    assert cells["mcc_sep6_calibrated"] == "0.440 ± 0.000" and cells["mcc_sep6_tuned"] == "0.450 ± 0.000"
    assert cells["ece_sep6"] == "0.200 ± 0.000 → 0.060 ± 0.014" and cells["confidence_error"] == "0.050 ± 0.000"
    with (tmp_path / "report" / "table.csv").open(newline="", encoding="utf-8") as handle:
        rows = [row for row in csv.DictReader(handle) if row["row"] == "mean"]
    assert {row["arm"]: row["test_ece_sep6_calibrated"][:4] for row in rows} == {"new": "0.06", "old": ""}


def with_scores(folder: Path, scores: dict[str, float]) -> None:
    import json

    path = folder / "run.json"
    record = json.loads(path.read_text())
    path.write_text(json.dumps({**record, "test": {**record["test"], **scores}}))
