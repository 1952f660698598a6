"""Paired differences of runs with known numbers, and what else differs between their arms."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

from contactlm.cli.main import main
from contactlm.report.compare import by_arm, confounds, group_equal, samples_a_step
from contactlm.report.read import Run, find_runs
from contactlm.report.summary import PAIRED_SCORES as SCORES
from contactlm.report.summary import (
    difference_text,
    is_ahead,
    larger_error,
    paired_rows,
    paired_table,
    whole_experiments,
)
from tests.report.made_runs import equal_terms, make_run
from tests.report.test_report import rows_of

BACKBONES, SEEDS, BUDGETS = ("aaaa", "bbbb", "cccc"), (0, 1), (100_000, 200_000, 500_000)
ARMS = {"crop200": (1e6, 200, 155 / 500_000), "whole": (3e6, 1020, 36 / 500_000)}  # FLOPs a token, crop, steps a token
RISE = 0.1  # of a score for e times the tokens


def score_of(arm: str, backbone: str, seed: int, tokens: float) -> float:
    """Backbones are far apart; the arms differ by 0.2, and a little from pair to pair."""
    number = "abcd".index(backbone[0])
    level = 0.1 * number + (0.2 + 0.01 * seed + 0.005 * number) * (arm == "whole")
    return level + RISE * math.log(tokens / 100_000)


def make(folder: Path, arm: str, backbone: str, seed: int, budget: int, **other: Any) -> Path:
    each, length, rate = ARMS[arm]
    test = dict.fromkeys(SCORES, score_of(arm, backbone, seed, budget))
    record: dict[str, Any] = {
        "equal": equal_terms(budget=budget, backbone=backbone),
        "tokens": budget,
        "flops": int(each * budget),
        "steps": round(rate * budget),
        "seconds": {"training": each * budget / 1e9, "total": 1.0},
        "test": test,
        "scheme": {"crop": "random", "crop_length": length, "batch_size": 16, "accumulate_grad_batches": 1},
    }
    return make_run(folder / arm / f"{backbone}-{seed}-{budget}", arm, seed, 0.0, **{**record, **other})


def made_experiment(folder: Path, backbones: Sequence[str], budgets: Sequence[int]) -> Path:
    for arm in ARMS:
        for backbone in backbones:
            for seed in SEEDS:
                for budget in budgets:
                    make(folder, arm, backbone, seed, budget)
    return folder


@pytest.fixture
def experiment(tmp_path: Path) -> Path:
    return made_experiment(tmp_path / "runs", BACKBONES, BUDGETS)


def found(rows: list[dict[str, Any]], **wanted: Any) -> dict[str, Any]:
    (one,) = [row for row in rows if wanted.items() <= row.items()]
    return one


def test_runs_of_several_backbones_are_paired_and_their_means_are_not_taken(experiment: Path) -> None:
    runs = find_runs([experiment]).runs
    assert len(group_equal(runs)) == len(BACKBONES) * len(BUDGETS)  # no table mixes them
    (whole,) = whole_experiments(runs)
    assert len(whole) == len(runs) == 36
    at_tokens = found(paired_rows(whole, "crop200"), reference_budget=500_000, score="mcc_long")
    expected = [0.2 + 0.01 * seed + 0.005 * k for k in range(3) for seed in SEEDS]
    assert (at_tokens["arm"], at_tokens["pairs"], at_tokens["backbones"]) == ("whole", 6, 3)
    assert at_tokens["difference"] == pytest.approx(np.mean(expected))
    assert at_tokens["se_pairs"] == pytest.approx(np.std(expected, ddof=1) / np.sqrt(6))
    by_backbone = [0.205 + 0.005 * k for k in range(3)]
    assert at_tokens["se_backbones"] == pytest.approx(np.std(by_backbone, ddof=1) / np.sqrt(3))
    error = larger_error(at_tokens)
    assert is_ahead(at_tokens)
    assert error == pytest.approx(max(np.std(expected, ddof=1) / 6**0.5, np.std(by_backbone, ddof=1) / 3**0.5))
    # taken without pairs, the spread of the backbones would drown it
    levels = [score_of("whole", b, s, 500_000) for b in BACKBONES for s in SEEDS]
    assert np.std(levels, ddof=1) / np.sqrt(6) > 4 * error


def test_only_arms_that_are_ahead_on_all_scores_are_called_so(experiment: Path) -> None:
    def line() -> str:
        return paired_table(paired_rows(find_runs([experiment]).runs, "crop200"))[0]

    assert line().endswith("at 500,000 tokens: whole")
    for backbone in BACKBONES:
        for seed in SEEDS:
            for budget in BUDGETS:
                poor = dict.fromkeys(SCORES, score_of("whole", backbone, seed, budget)) | {"auprc_sep6": 0.0}
                make(experiment, "whole", backbone, seed, budget, test=poor)
    assert line().endswith("at 500,000 tokens: no arm")


def test_one_pair_has_no_standard_error(tmp_path: Path) -> None:
    for arm in ARMS:
        make(tmp_path, arm, "aaaa", 0, 500_000)
    one = found(paired_rows(find_runs([tmp_path]).runs, "crop200"), score="mcc_sep6")
    assert larger_error(one) is None and not is_ahead(one) and difference_text(one) == "+0.200 (one pair)"


def test_what_else_differs_is_told(experiment: Path) -> None:
    runs = find_runs([experiment]).runs
    assert confounds(runs, "crop200") == [
        "confounded: whole and crop200 differ in crop_length, and also: 36 steps against 155"
    ]
    assert samples_a_step(runs[0]) == "16"
    by_cost = {"crop": "whole", "crop_length": 1020, "batch_size": None, "batch_tokens": 2048}
    rate = [{"optimizer": "Adam", "lr": 1e-2}]
    halves = {"crop": "random", "crop_length": 200, "batch_size": 8, "accumulate_grad_batches": 2}
    smaller = {"crop": "random", "crop_length": 200, "batch_size": 4, "accumulate_grad_batches": 1}
    base = next(run for run in runs if (run.arm, run.budget) == ("crop200", 500_000))
    others = [
        Run(Path(name), {**base.record, "arm": name, "scheme": scheme, "optimizer": rate})
        for name, scheme in (("halves", halves), ("smaller", smaller), ("by-cost", by_cost))
    ]
    lines = confounds([*runs, *others], "crop200")
    # steps and rates alone are what an arm tests
    assert [line.split()[1] for line in lines] == ["whole", "by-cost"]
    assert "samples a step as many as fit against 16; learning rate 0.01 against 0.0001" in lines[1]
    assert list(by_arm(runs)) == ["crop200", "whole"]


@pytest.mark.slow
def test_the_files_and_the_reference_of_a_report(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = BACKBONES[::2], BUDGETS[::2]  # each of four groups has its pictures
    experiment = made_experiment(tmp_path / "runs", *few)
    given = ["report", str(experiment), "--out", str(tmp_path / "out")]
    assert main(given) == 0
    printed = capsys.readouterr().out
    assert "differs: backbone: aaaa (8 runs)" in printed and "fall into 4 groups that must not be mixed" in printed
    assert "confounded: whole and crop200" in printed and "ahead of crop200 by more than 2 standard errors" in printed
    text = (tmp_path / "out" / "report.md").read_text()
    assert "Test scores above those of crop200 at 500,000 tokens" in text
    assert "| whole | 4 | 2 | +0.210 (se 0.005) |" in text
    rows = rows_of(tmp_path / "out" / "paired.csv")
    assert {row["equal"] for row in rows} == {"tokens"} and rows[0]["reference"] == "crop200"
    monkeypatch.setattr("contactlm.cli.report.draw_score", lambda *_: Figure())  # drawn once
    assert main([*given, "--reference", "whole"]) == 0
    assert {row["arm"] for row in rows_of(tmp_path / "out" / "paired.csv")} == {"crop200"}
    capsys.readouterr()
    assert main([*given, "--reference", "zeroshot"]) == 1
    error = capsys.readouterr().err
    assert "reference: zeroshot: no trained run of that arm has test scores; arms that have: crop200, whole" in error
