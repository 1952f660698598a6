"""`contactlm report` by identity to the best hit: strata of one arm hold for all, and copying has a row of its own."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from contactlm.atomic import write_csv
from contactlm.cli.main import main
from contactlm.report.hits import hit_markdown, hit_strata
from contactlm.report.read import find_runs
from tests.report.made_runs import make_run

IDENTITY = [None, 0.2, 0.35, 0.45, 0.5, 0.9, None, 0.6]
STRATUM = ["nohit", "hit<30", "hit30-50", "hit30-50", "hit>=50", "hit>=50", "nohit", "hit>=50"]
COPIED = [0.0, 0.3, 0.5, 0.7, 0.8, 0.9, 0.0, 0.85]


def add_proteins(folder: Path, seed: int, knows_hits: bool, copied: list[float] | None = None) -> list[float]:
    """Write test_scores.csv; the scores of each protein."""
    scores = np.random.default_rng(seed).random(len(IDENTITY)).tolist()
    rows = [
        {"id": f"p{n}", "index": n, "mcc_sep6": score, "p_at_L_long": "nan" if n == 3 else score / 2}
        for n, score in enumerate(scores)
    ]
    if knows_hits:
        for row, identity, copy in zip(rows, IDENTITY, copied or COPIED, strict=True):
            row |= {"hit_identity": identity, "copy_mcc_sep6": copy, "copy_p_at_L_long": copy}
    write_csv(folder / "test_scores.csv", rows)
    return scores


def make_arm(folder: Path, arm: str, first_seed: int, knows_hits: bool, copied: list[float] | None = None) -> list:
    runs = [make_run(folder / arm / f"version_{seed}", arm, seed, 0.3) for seed in range(2)]
    return [add_proteins(run, first_seed + seed, knows_hits, copied) for seed, run in enumerate(runs)]


def expected(scores: list[list[float]], stratum: str) -> list[float]:
    return [float(np.mean([s for s, own in zip(run, STRATUM, strict=True) if own == stratum])) for run in scores]


@pytest.mark.slow
def test_strata_of_one_arm_hold_for_all(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    plain = make_arm(tmp_path / "runs", "crop200", 10, knows_hits=False)
    retrieval = make_arm(tmp_path / "runs", "retrieval", 20, knows_hits=True)
    assert main(["report", str(tmp_path / "runs"), "--out", str(tmp_path / "out")]) == 0
    with (tmp_path / "out" / "hits.csv").open(newline="") as handle:
        rows = {(row["arm"], row["score"], row["stratum"]): row for row in csv.DictReader(handle)}
    assert len(rows) == 3 * 2 * 4
    for arm, scores in (("crop200", plain), ("retrieval", retrieval)):
        for stratum in set(STRATUM):
            row, means = rows[arm, "mcc_sep6", stratum], expected(scores, stratum)
            assert float(row["mean"]) == pytest.approx(np.mean(means)) and row["seeds"] == "2"
            assert float(row["sd"]) == pytest.approx(np.std(means, ddof=1))
            assert int(row["proteins"]) == STRATUM.count(stratum)
    undefined = rows["crop200", "p_at_L_long", "hit30-50"]  # of two proteins one has no long pairs
    assert float(undefined["mean"]) == pytest.approx(np.mean([run[2] / 2 for run in plain]))
    copied = rows["copy the homolog", "mcc_sep6", "hit>=50"]
    assert float(copied["mean"]) == pytest.approx(np.mean([0.8, 0.9, 0.85])) and copied["sd"] == ""
    with Image.open(tmp_path / "out" / "hits.png") as image:
        assert min(image.size) > 400 and len(set(image.convert("L").getdata())) > 50
    text = (tmp_path / "out" / "report.md").read_text()
    assert "| test mcc_sep6 | no hit (2) | below 30 % (1) | 30–50 % (2) | 50 % and above (3) |" in text
    assert "| copy the homolog | 0.000 | 0.300 | 0.600 | 0.850 |" in text
    assert text.count("| crop200 |") == (tmp_path / "out" / "table.md").read_text().count("| crop200 |")


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


DAMAGES = (
    *(b"\xff\xfe\x00", b"id,mcc\na,0\n", b"id,index,mcc\na,0,x\n", b"id,index\na,0,1\n"),
    b"id,index,mcc\na,0\n",
)


@pytest.mark.slow
def test_scores_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    arms = {f"retrieval{n}": damage for n, damage in enumerate(DAMAGES)}
    for arm, damage in arms.items():
        make_arm(tmp_path / "runs", arm, 1, knows_hits=True)
        (tmp_path / "runs" / arm / "version_0" / "test_scores.csv").write_bytes(damage)
    assert main(["report", str(tmp_path / "runs"), "--out", str(tmp_path / "out")]) == 0
    text = (tmp_path / "out" / "report.md").read_text()
    for arm in arms:
        damaged = tmp_path / "runs" / arm / "version_0"
        assert f"{damaged / 'test_scores.csv'}: cannot be read" in text and f"{damaged}: left out by stratum" in text
        assert any(line.startswith(f"| {arm} | 0.") and "(one seed)" in line for line in text.splitlines())


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


def test_scores_of_a_checkpoint_that_was_given_something_else_are_not_those_of_its_run(tmp_path: Path) -> None:
    reads = {"hits": 4, "shuffled_hits": False}
    fit = make_run(tmp_path / "retrieval" / "version_0", "retrieval", 0, 0.3, reads=reads, test={})
    same = make_run(tmp_path / "retrieval" / "version_1", "retrieval", 0, 0.3, reads=reads, command="test")
    other = make_run(
        tmp_path / "retrieval" / "version_2", "retrieval", 0, 0.1, reads=reads | {"shuffled_hits": True}, command="test"
    )
    scores = add_proteins(same, 3, knows_hits=True)
    add_proteins(other, 4, knows_hits=True)
    found = find_runs([tmp_path])
    (run,) = found.runs
    assert (run.path, run.tested_in, run.test["mcc_sep6"]) == (fit, same, 0.3)
    assert [row["mcc_sep6"] for row in run.proteins().values()] == scores
    assert "shuffled_hits True, there False" in found.left_out[other] and "--record.arm" in found.left_out[other]
    make_run(other, "shuffled_at_test", 0, 0.1, reads=reads | {"shuffled_hits": True}, command="test")
    assert [run.arm for run in find_runs([tmp_path]).runs] == ["retrieval", "shuffled_at_test"]
