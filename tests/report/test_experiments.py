"""What tests/benchmarks makes of runs: scores by identity to the best hit, the frontier, differences at equal cost."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from contactlm.report.read import find_runs
from tests.benchmarks.hit_strata import hit_markdown, hit_rows, hit_strata
from tests.benchmarks.sample_frontier import (
    draw_frontier,
    equal_cost,
    equal_cost_table,
    frontier_points,
    frontier_rows,
)
from tests.report.made_runs import add_proteins, make_run
from tests.report.test_paired import BACKBONES, BUDGETS, RISE, SEEDS, experiment, make, score_of

__all__ = ["experiment"]

STRATUM = ["nohit", "hit<30", "hit30-50", "hit30-50", "hit>=50", "hit>=50", "nohit", "hit>=50"]


def make_arm(folder: Path, arm: str, first_seed: int, knows_hits: bool, copied: list[float] | None = None) -> list:
    runs = [make_run(folder / arm / f"version_{seed}", arm, seed, 0.3) for seed in range(2)]
    return [add_proteins(run, first_seed + seed, knows_hits, copied) for seed, run in enumerate(runs)]


def expected(scores: list[list[float]], stratum: str) -> list[float]:
    return [float(np.mean([s for s, own in zip(run, STRATUM, strict=True) if own == stratum])) for run in scores]


def test_strata_of_one_arm_hold_for_all(tmp_path: Path) -> None:
    plain = make_arm(tmp_path, "crop200", 10, knows_hits=False)
    retrieval = make_arm(tmp_path, "retrieval", 20, knows_hits=True)
    strata = hit_strata(find_runs([tmp_path]).runs)
    assert strata is not None
    rows = {(row["arm"], row["score"], row["stratum"]): row for row in hit_rows(strata)}
    assert len(rows) == 3 * 2 * 4
    for arm, scores in (("crop200", plain), ("retrieval", retrieval)):
        for stratum in set(STRATUM):
            row, means = rows[arm, "mcc_sep6", stratum], expected(scores, stratum)
            assert row["mean"] == pytest.approx(np.mean(means)) and row["seeds"] == 2
            assert row["sd"] == pytest.approx(np.std(means, ddof=1))
            assert row["proteins"] == STRATUM.count(stratum)
    undefined = rows["crop200", "p_at_L_long", "hit30-50"]  # of two proteins one has no long pairs
    assert undefined["mean"] == pytest.approx(np.mean([run[2] / 2 for run in plain]))
    copied = rows["copy the homolog", "mcc_sep6", "hit>=50"]
    assert copied["mean"] == pytest.approx(np.mean([0.8, 0.9, 0.85])) and copied["sd"] is None
    text = hit_markdown(strata)
    assert "| test mcc_sep6 | no hit (2) | below 30 % (1) | 30–50 % (2) | 50 % and above (3) |" in text
    assert "| copy the homolog | 0.000 | 0.300 | 0.600 | 0.850 |" in text


def test_copies_of_other_hits_are_told_apart(tmp_path: Path) -> None:
    make_arm(tmp_path, "retrieval", 0, knows_hits=True)
    make_arm(tmp_path, "retrieval_tokens", 5, knows_hits=True)
    make_arm(tmp_path, "retrieval_shuffled", 9, knows_hits=True, copied=[0.01] * 8)
    strata = hit_strata(find_runs([tmp_path]).runs)
    assert strata is not None and not strata.remarks
    names = [arm for arm in strata.arms if arm.startswith("copy")]
    assert names == ["copy the homolog (retrieval, retrieval_tokens)", "copy the homolog (retrieval_shuffled)"]
    assert strata.arms[names[1]][0]["hit>=50"]["mcc_sep6"] == pytest.approx(0.01)


def test_runs_of_other_proteins_or_hits_are_named(tmp_path: Path) -> None:
    make_arm(tmp_path, "retrieval", 0, knows_hits=True)
    make_arm(tmp_path, "crop200", 1, knows_hits=False)
    (tmp_path / "crop200" / "version_0" / "test_scores.csv").unlink()
    other = tmp_path / "retrieval" / "version_1" / "test_scores.csv"
    other.write_text(other.read_text().replace(",0.9,", ",,"))
    strata = hit_strata(find_runs([tmp_path]).runs)
    assert strata is not None and len(strata.arms["crop200"]) == 1
    text = hit_markdown(strata)
    assert f"{tmp_path / 'crop200' / 'version_0'}: left out by stratum" in text
    assert f"other hits in {other.parent}" in text


def test_without_hits_there_is_no_such_table(tmp_path: Path) -> None:
    make_arm(tmp_path, "crop200", 1, knows_hits=False)
    assert hit_strata(find_runs([tmp_path]).runs) is None


def test_a_file_cut_short_is_the_one_left_out(tmp_path: Path) -> None:
    make_arm(tmp_path, "retrieval", 1, knows_hits=True)
    make_arm(tmp_path, "crop200", 1, knows_hits=False)
    cut = tmp_path / "retrieval" / "version_0" / "test_scores.csv"
    cut.write_text("".join(cut.read_text().splitlines(keepends=True)[:4]))
    strata = hit_strata(find_runs([tmp_path]).runs)
    assert strata is not None and {arm: len(runs) for arm, runs in strata.arms.items()} == {
        "crop200": 2,
        "retrieval": 1,
        "copy the homolog": 1,
    }
    assert strata.remarks == [f"{cut.parent}: left out by stratum, has no scores of the same proteins"]


def test_other_hits_in_one_arm_are_shown_as_a_spread(tmp_path: Path) -> None:
    make_arm(tmp_path, "retrieval", 1, knows_hits=True)
    add_proteins(tmp_path / "retrieval" / "version_1", 2, knows_hits=True, copied=[0.1] * 8)
    strata = hit_strata(find_runs([tmp_path]).runs)
    assert strata is not None and len(strata.arms["copy the homolog"]) == 2
    assert "| copy the homolog | 0.050 ± 0.071 | 0.200 ± 0.141 |" in hit_markdown(strata)


@pytest.mark.parametrize("cost", ["FLOPs", "seconds"])
def test_at_equal_cost_scores_are_interpolated_and_not_extrapolated(experiment: Path, cost: str) -> None:
    """Scores rise with the logarithm of the cost, so that interpolation is exact."""
    runs = find_runs([experiment]).runs

    def found(reference: str, budget: int) -> dict[str, Any]:
        return next(one for one in equal_cost(runs, reference, budget, cost) if one["score"] == "mcc_sep6")

    one = found("crop200", 500_000)
    expected = [
        score_of("whole", b, s, 500_000 / 3) - score_of("crop200", b, s, 500_000) for b in BACKBONES for s in SEEDS
    ]
    assert list(one["values"].values()) == pytest.approx(expected) and one["share"] == pytest.approx(1)
    # whole chains cost more than crop200 at 100,000 and 200,000 tokens, even with their smallest budget
    assert not any(equal_cost(runs, "crop200", budget, cost) for budget in (100_000, 200_000))
    # the other way round, crops spend less: their longest run is taken as it is
    reverse = found("whole", 500_000)
    assert reverse["share"] == pytest.approx(1 / 3) and reverse["difference"] == pytest.approx(-0.21, abs=1e-6)
    inside = found("whole", 100_000)
    assert inside["share"] == pytest.approx(1) and inside["difference"] == pytest.approx(-0.21 + RISE * math.log(3))
    assert "| crop200 | 6 | 1.00 | -0.100" in equal_cost_table(runs, "whole", 100_000, cost)


def test_points_are_means_over_what_every_arm_was_run_with(experiment: Path, tmp_path: Path) -> None:
    points, left_out = frontier_points(find_runs([experiment]).runs)
    assert not left_out and len(points) == 6 and {len(point.runs) for point in points} == {6}
    rows = frontier_rows(points)
    one = next(row for row in rows if (row["arm"], row["budget"]) == ("whole", 200_000))
    expected = [score_of("whole", b, s, 200_000) for b in BACKBONES for s in SEEDS]
    assert one["test_mcc_sep6"] == pytest.approx(np.mean(expected)) and one["backbones"] == 3
    assert one["se_mcc_sep6"] == pytest.approx(np.std(expected, ddof=1) / np.sqrt(6))
    assert (one["tokens"], one["flops"], one["seconds"], one["samples_a_step"]) == (200_000, 6e11, 600, "16")
    axes = draw_frontier(points).axes
    assert len(axes) == 6
    lines = np.asarray(axes[1].lines[0].get_xydata())
    np.testing.assert_allclose(lines[:, 0], np.array(BUDGETS) * 1e6)
    # an arm that lacks a backbone takes that backbone from all
    make(tmp_path / "more", "crop200", "dddd", 0, 500_000)
    points, left_out = frontier_points(find_runs([experiment, tmp_path / "more"]).runs)
    assert "left out of the frontier: 1 runs" in left_out[0] and {len(point.runs) for point in points} == {6}
    # and a budget that was tried once gives no point
    make(tmp_path / "more", "whole", "aaaa", 0, 300_000)
    points, left_out = frontier_points(find_runs([experiment, tmp_path / "more"]).runs)
    assert "2 runs" in left_out[0] and len(points) == 6
    points, left_out = frontier_points(find_runs([tmp_path / "more"]).runs)
    assert points == [] and "no backbone and seed that every arm" in left_out[0]
