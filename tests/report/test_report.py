"""`contactlm report` on run directories with known numbers, and on two real small runs."""

from __future__ import annotations

import csv
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from contactlm.atomic import write_csv
from contactlm.cli.main import main
from contactlm.report.compare import Spread, by_arm, differences, group_equal
from contactlm.report.figure import COLORS, arm_styles, draw_score, mean_curve
from contactlm.report.read import find_runs
from contactlm.report.summary import group_lines, judge, summarize
from contactlm.report.table import curve_rows, markdown, table_rows, trivial_scores
from tests.conftest import Finished
from tests.report.made_runs import (
    LOOKS,
    STEPS_PER_LOOK,
    TOKENS_PER_STEP,
    add_proteins,
    chains,
    equal_terms,
    make_run,
    make_untrained,
)

CROP, FULL = (0.40, 0.44, 0.42), (0.20, 0.24, 0.19)
Folders = tuple[Path, Path]
FILES = {"mcc.png", "mcc_sep6.png", "p_at_L_long.png", "table.csv", "table.md", "curves.csv", "report.html"}


@pytest.fixture
def two_arms(tmp_path: Path) -> Path:
    """A folder with three seeds of crop200 and of full1020."""
    for arm, scores in (("crop200", CROP), ("full1020", FULL)):
        for seed, score in enumerate(scores):
            make_run(tmp_path / "runs" / arm / f"version_{seed}", arm, seed, score)
    return tmp_path / "runs"


def report(*arguments: object) -> int:
    return main(["report", *map(str, arguments)])


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as handle:
        return list(csv.DictReader(handle))


def test_means_and_sds_over_seeds_are_those_of_numpy(two_arms: Path, tmp_path: Path) -> None:
    write_csv(tmp_path / "table.csv", table_rows(find_runs([two_arms]).runs))
    rows = rows_of(tmp_path / "table.csv")
    assert [row["row"] for row in rows] == ["run"] * 6 + ["mean", "sd"] * 2 + ["trivial"]
    for arm, scores in (("crop200", CROP), ("full1020", FULL)):
        mean, sd = (next(r for r in rows if (r["row"], r["arm"]) == (kind, arm)) for kind in ("mean", "sd"))
        for name, shift in (("test_mcc_sep6", 0.0), ("test_mcc", 0.1), ("test_p_at_L_long", 0.0)):
            assert math.isclose(float(mean[name]), np.mean(scores) + shift)
            assert math.isclose(float(sd[name]), np.std(scores, ddof=1))
        # dev is scored at the tested checkpoint, the fourth look of five, where it has 4/5 of the last score
        assert math.isclose(float(mean["dev_mcc_sep6"]), 0.8 * np.mean(scores))
        assert math.isclose(float(mean["gflops"]), np.mean([100, 200, 300]))  # as made_runs makes seeds 0, 1, 2
        assert math.isclose(float(sd["gflops"]), np.std([100, 200, 300], ddof=1))
        assert math.isclose(float(mean["training_seconds"]), 101) and float(mean["peak_memory_mib"]) == 1024
        assert float(mean["tokens"]) == 323_200 and float(mean["steps"]) == 100
    assert (rows[-1]["test_mcc"], rows[-1]["test_mcc_sep6"], rows[-1]["dev_mcc"]) == ("0.57", "0.0", "0.57")
    assert float(rows[0]["test_mcc_sep6"]) == CROP[0] and rows[0]["run"].endswith("crop200/version_0")


@pytest.mark.slow
def test_the_files_of_a_report(two_arms: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert report(two_arms, "--out", tmp_path / "out") == 0
    out = tmp_path / "out"
    assert {path.name for path in out.iterdir()} == {*FILES, "paired.csv", "report.md"}
    for name in ("mcc", "mcc_sep6", "p_at_L_long"):
        with Image.open(out / f"{name}.png") as image:
            assert min(image.size) > 600
            assert len(set(image.convert("L").getdata())) > 50
    printed, text = capsys.readouterr().out, (out / "report.md").read_text()
    statement = (
        "(mcc_sep6): crop200 wins. crop200 0.420 ± 0.020, full1020 0.210 ± 0.026; the trivial predictor has 0.000"
    )
    assert statement in printed and statement in text
    assert "(p_at_L_long): crop200 wins" in printed and "(mcc_long): crop200 wins" in printed
    assert "| crop200 | 3 | 0.420 ± 0.020 | 0.520 ± 0.020 |" in text
    assert "| full1020 | 323,200 | 100 | 2,057 | 200 | 40 | 101 | 130 | 512 | 1,024 |" in text
    assert "| trivial (\\|i − j\\| ≤ 2) |  | 0.000 | 0.570 | 0.000 | 0.020 |" in text
    assert "RANDOM" not in text and "SYNTHETIC" not in text
    assert (out / "table.md").read_text().strip() in text


def test_the_points_of_the_figures(two_arms: Path) -> None:
    runs = find_runs([two_arms]).runs
    rows = curve_rows(runs)
    dev = [row for row in rows if (row["kind"], row["arm"], row["seed"]) == ("dev", "crop200", 1)]
    assert [row["tokens"] for row in dev] == [STEPS_PER_LOOK * TOKENS_PER_STEP * i for i in range(1, LOOKS + 1)]
    np.testing.assert_allclose([row["mcc_sep6"] for row in dev], CROP[1] * np.arange(1, LOOKS + 1) / LOOKS)
    (test,) = [row for row in rows if (row["kind"], row["arm"], row["seed"]) == ("test", "full1020", 2)]
    assert (test["tokens"], test["mcc_sep6"], test["gflops"]) == (323_200, FULL[2], 300.0)
    figure = draw_score(runs, "mcc_sep6")
    left, right = figure.axes
    assert left.get_yscale() == "log" and right.get_yscale() == "linear"
    cost = np.asarray(left.lines[0].get_xydata())
    np.testing.assert_allclose(cost, [(steps, 2 * steps) for steps in (1, 2, 5, 10, 20, 50, 100)])  # seeds cost 1, 2, 3
    curve = np.asarray(right.lines[0].get_xydata())
    np.testing.assert_allclose(curve[:, 1], np.mean(CROP) * np.arange(1, LOOKS + 1) / LOOKS)
    crosses = {
        (x, round(y, 6)) for line in right.lines if line.get_marker() == "X" for x, y in np.asarray(line.get_xydata())
    }
    assert crosses == {(323_200, round(float(np.mean(scores)), 6)) for scores in (CROP, FULL)}


def test_curves_of_unlike_lengths_are_averaged_over_what_they_share() -> None:
    line = [(np.array(x, float), 3.0 * np.array(x, float) + shift) for x, shift in (((0, 10), 0), ((2, 4, 12), 2))]
    x, mean, sd = mean_curve(line)
    assert (x[0], x[-1]) == (2, 10)
    np.testing.assert_allclose(mean, 3 * x + 1)
    np.testing.assert_allclose(sd, np.sqrt(2))
    x, mean, sd = mean_curve(line[:1])
    np.testing.assert_allclose((x, mean, sd), ((0, 10), (0, 30), (0, 0)))


def test_nine_arms_can_be_told_apart() -> None:
    styles = arm_styles([f"arm{i}" for i in range(12)])
    assert len({(style["color"], style["linestyle"]) for style in styles.values()}) == 12
    assert len({style["color"] for style in list(styles.values())[:9]}) == 9 == len(COLORS)


@pytest.mark.parametrize(
    ("scores", "rivals"),
    [
        ({"a": (0.50, 0.52), "b": (0.40, 0.42)}, []),
        ({"a": (0.50, 0.60), "b": (0.40, 0.58)}, ["b"]),
        ({"a": (0.50, 0.52), "b": (0.40,)}, ["b"]),
        ({"a": (0.50,), "b": (0.40, 0.41)}, ["b"]),
        ({"a": (0.50, 0.52), "b": (0.48, 0.52), "c": (0.1, 0.1)}, ["b"]),
    ],
)
def test_an_arm_wins_only_when_spreads_do_not_overlap(
    tmp_path: Path, scores: dict[str, tuple[float, ...]], rivals: list[str]
) -> None:
    for arm, values in scores.items():
        for seed, score in enumerate(values):
            make_run(tmp_path / f"{arm}{seed}", arm, seed, score)
    runs = find_runs([tmp_path]).runs
    spreads, found = judge(runs, "mcc_sep6")
    assert next(iter(spreads)) == "a" and found == rivals
    (line,) = [line for line in summarize(runs) if "(mcc_sep6)" in line]
    assert ("a wins" in line) == (not rivals) and ("no clear winner" in line) == bool(rivals)
    assert ("unknown (one seed)" in line) == any(len(values) == 1 for values in scores.values())


def test_of_equal_arms_none_is_named_first(tmp_path: Path) -> None:
    for arm in ("a", "b"):
        make_run(tmp_path / arm, arm, 0, 0.0)
    (line,) = [line for line in summarize(find_runs([tmp_path]).runs) if "(mcc_sep6)" in line]
    assert "no clear winner; a, b share the highest mean. " in line


def test_the_best_arm_is_not_praised_below_the_trivial_predictor(tmp_path: Path) -> None:
    for arm, score in (("a", 0.02), ("b", 0.01)):
        for seed in (0, 1):
            make_run(tmp_path / f"{arm}{seed}", arm, seed, score - 0.001 * seed)
    lines = summarize(find_runs([tmp_path]).runs)
    (long_range,) = [line for line in lines if "(p_at_L_long)" in line]
    assert "the trivial predictor has 0.020, and no arm is above it" in long_range
    assert not any("no arm is above" in line for line in lines if "(mcc_sep6)" in line)


def test_what_was_not_trained_stands_beside_every_group(two_arms: Path, tmp_path: Path) -> None:
    make_untrained(two_arms / "zeroshot" / "version_0", 0.31)
    make_run(two_arms / "small" / "version_0", "small", 0, 0.1, equal=equal_terms(budget=1000))
    groups = group_equal(find_runs([two_arms]).runs)
    assert [sorted(by_arm(group)) for group in groups] == [["crop200", "full1020", "zeroshot"], ["small", "zeroshot"]]
    (run,) = [row for row in table_rows(groups[0]) if row["arm"] == "zeroshot" and row["row"] == "run"]
    assert (run["tokens"], run["gflops"], run["test_mcc_sep6"], run["dev_mcc_sep6"]) == (0, 0, 0.31, None)
    lines = summarize(groups[0])
    assert any("crop200 wins" in line and "zeroshot 0.310 (nothing trained)" in line for line in lines)
    assert not any("different seeds" in line for line in lines)


@pytest.mark.parametrize(
    ("other", "named"),
    [
        ({"budget": 1000}, "budget: 323,200 ("),
        ({"test": chains(21, "dddd")}, "test: 20 chains, 2,000 residues, checksum cccccccc ("),
        ({"split": "random"}, "split: cluster ("),
        ({"overlap": 100}, "overlap: null ("),
        ({"family": "ESM C"}, "family: ESM2 ("),
        ({"precision": "bf16-mixed"}, "precision: 32-true ("),
        ({"weights": "random", "backbone": "{}"}, "weights: pretrained ("),
    ],
)
def test_what_sets_runs_apart_is_named(two_arms: Path, other: dict[str, object], named: str) -> None:
    odd = make_run(two_arms / "odd", "crop200", 3, 0.9, equal=equal_terms(**other))
    groups = group_equal(find_runs([two_arms]).runs)
    assert [len(group) for group in groups] == [6, 1] and groups[1][0].path == odd
    (line,) = [line for line in group_lines(groups) if line.startswith(f"differs: {named}")]
    assert f"({odd})" in line


@pytest.mark.slow
def test_unequal_runs_are_not_mixed_unless_asked(two_arms: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    make_run(two_arms / "odd", "crop200", 3, 0.9, equal=equal_terms(budget=1000))
    out = tmp_path / "out"
    assert report(two_arms, "--out", out) == 0
    assert "differs: budget: 323,200 (" in capsys.readouterr().out
    assert {path.name for path in out.iterdir()} == {"set1", "set2", "paired.csv", "report.md", "report.html"}
    assert {path.name for path in (out / "set1").iterdir()} == FILES
    means = [row for row in rows_of(out / "set1" / "table.csv") if (row["row"], row["arm"]) == ("mean", "crop200")]
    assert math.isclose(float(means[0]["test_mcc_sep6"]), np.mean(CROP)) and means[0]["seed"] == "3"

    assert report(two_arms, "--out", out, "--mixed") == 0
    assert "differs within this table: budget: 323,200 (" in capsys.readouterr().out
    assert {path.name for path in out.iterdir()} == {*FILES, "paired.csv", "report.md"}  # the sets of before are gone
    means = [row for row in rows_of(out / "table.csv") if (row["row"], row["arm"]) == ("mean", "crop200")]
    assert math.isclose(float(means[0]["test_mcc_sep6"]), np.mean((*CROP, 0.9)))


def test_random_weights_and_synthetic_proteins_are_said_plainly(tmp_path: Path) -> None:
    for seed in (0, 1):
        make_run(tmp_path / f"v{seed}", "a", seed, 0.3, equal=equal_terms(weights="random", synthetic=True))
    text = "\n".join(summarize(find_runs([tmp_path]).runs))
    assert "TRAINED FROM RANDOM WEIGHTS" in text and "PROTEINS ARE SYNTHETIC" in text
    assert "language model: ESM2" in text
    assert "(mcc_sep6): one arm only, so there is nothing to compare. a 0.300 ± 0.000" in text


@pytest.mark.slow
def test_runs_that_cannot_be_used_are_named(two_arms: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    make_run(two_arms / "killed", "crop200", 7, 0.9, status="running", tokens=1234)
    make_run(two_arms / "blank", "crop200", 8, 0.9, test={}, dev={}, dev_history=[])
    again = make_run(two_arms / "again", "crop200", 0, CROP[0], written="2027-01-01T00:00:00+00:00")
    make_run(two_arms / "untested", "crop200", 9, 0.9, test={})
    (two_arms / "damaged").mkdir()
    (two_arms / "damaged" / "run.json").write_text("{")
    (two_arms / "old").mkdir()
    (two_arms / "old" / "metrics.csv").write_text("step\n")
    assert report(two_arms, two_arms / "again", "--out", tmp_path / "out") == 0
    printed = capsys.readouterr().out
    assert f"left out: {two_arms / 'killed'}: not finished (running, 1,234 tokens of 323,200)" in printed
    assert f"left out: {two_arms / 'blank'}: no scores, neither on dev nor on test" in printed
    assert f"crop200/version_0: same arm and seed as the later run {again}" in printed
    assert f"left out: {two_arms / 'damaged'}: " in printed and "cannot be read" in printed
    assert f"left out: {two_arms / 'old'}: has metrics.csv but no run.json" in printed
    assert f"without test scores: {two_arms / 'untested'}" in printed
    assert "crop200 0.420 ± 0.020" in printed  # still of seeds 0, 1, 2
    assert printed.count("left out:") == 5


@pytest.mark.parametrize("command", ["test", "validate"])
def test_a_checkpoint_that_is_scored_again_is_no_further_seed(two_arms: Path, command: str) -> None:
    before = summarize(find_runs([two_arms]).runs)
    terms = {name: value for name, value in equal_terms().items() if name not in ("budget", "train", "dev", "split")}
    options: dict[str, object] = {"test": {}} if command == "validate" else {}
    again = make_run(two_arms / "again", "crop200", 0, 0.1, command=command, equal=terms, tested_at=None, **options)
    elsewhere = make_run(
        two_arms / "other", "crop200", 0, 0.1, command="test", equal=terms | {"test": chains(5, "eeee")}
    )
    found = find_runs([two_arms])
    trained = two_arms / "crop200" / "version_0"
    told = {
        "test": f"scores a checkpoint of the same arm and seed as {trained}",
        "validate": f"scores a checkpoint of {trained} on dev, where that run has scores of its own",
    }
    assert found.left_out == {again: told[command]}
    same_set, other_set = group_equal(found.runs)
    assert summarize(same_set) == before
    assert [run.path for run in other_set] == [elsewhere]


def test_test_scores_that_came_later_stand_with_the_run_that_trained(two_arms: Path) -> None:
    whole = find_runs([two_arms]).runs
    first = next(run for run in whole if run.arm == "crop200" and run.seed == 0)
    terms = {name: value for name, value in first.equal.items() if name not in ("budget", "train", "dev", "split")}
    make_run(first.path, "crop200", 0, CROP[0], test={}, tested_at=None)
    later = make_run(two_arms / "later", "crop200", 0, CROP[0], command="test", equal=terms, tested_at=None)
    found = find_runs([two_arms])
    assert later in found.left_out and len(found.left_out) == 1
    assert summarize(found.runs) == summarize(whole)
    joined = next(run for run in found.runs if run.path == first.path)
    assert joined.test == first.test and joined.equal == first.equal
    assert joined.dev["mcc_sep6"] == pytest.approx(first.history[-1]["mcc_sep6"])  # of the checkpoint tested


def test_what_bears_on_a_comparison_is_noted(two_arms: Path) -> None:
    make_run(
        two_arms / "slow",
        "full1020",
        3,
        0.2,
        optimizer=[{"optimizer": "Adam", "lr": 1e-6}],
        machine={"device": "cuda", "threads": 1},
        scheme={"crop": "cut", "crop_length": 1020},
        tokens=1000,
    )
    make_run(two_arms / "scored", "other", 0, 0.2, command="test", optimizer=[])
    text = "\n".join(summarize(find_runs([two_arms]).runs))
    assert "learning rates differ: Adam 0.0001 (crop200, full1020); Adam 1e-06 (full1020)" in text
    assert "machines differ in device: cpu (crop200, full1020, other); cuda (full1020)" in text
    assert "runs of arm full1020 differ in crop: " in text
    assert "slow ended after 1,000 of 323,200 tokens" in text
    assert "arms have different seeds: crop200: 0, 1, 2; full1020: 0, 1, 2, 3" in text


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


def complaint(capsys: pytest.CaptureFixture, *arguments: object) -> str:
    assert report(*arguments) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and error.startswith("contactlm: error: ")
    return error


def test_errors_say_what_to_do(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    out = ("--out", tmp_path / "out")
    assert "there is no such directory" in complaint(capsys, tmp_path / "nowhere", *out)
    (tmp_path / "empty").mkdir()
    assert "not a run directory, and none below it" in complaint(capsys, tmp_path / "empty", *out)
    make_run(tmp_path / "killed", "a", 0, 0.5, status="interrupted")
    text = complaint(capsys, tmp_path / "killed", *out)
    assert "nothing to report" in text and "not finished (interrupted, 323,200 tokens of 323,200)" in text
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "run.json").write_text(json.dumps({"format": 1, "arm": "a"}))
    assert "lacks status, equal, tokens" in complaint(capsys, tmp_path / "odd", *out)
    good = make_run(tmp_path / "good", "a", 0, 0.5)
    (tmp_path / "file").write_text("")
    assert "cannot be written" in complaint(capsys, good, "--out", tmp_path / "file")
    assert not (tmp_path / "out").exists()
    with pytest.raises(SystemExit) as stop:
        report("--help")
    assert stop.value.code == 0 and "contactlm report runs/crop200 runs/full1020" in capsys.readouterr().out


def test_missing_values_stay_empty(tmp_path: Path) -> None:
    run = make_run(tmp_path, "a", 0, 0.5, test={"mcc": 0.4, "mcc_sep6": None}, memory={"training": None, "peak": None})
    runs = find_runs([run]).runs
    (row, mean, sd, trivial) = table_rows(runs)
    assert row["test_mcc_sep6"] is None and row["test_mcc"] == 0.4 and row["peak_memory_mib"] is None
    assert mean["test_mcc"] == 0.4 and sd["test_mcc"] is None
    assert "nan" not in markdown(runs) and "None" not in markdown(runs)
    assert trivial_scores(runs, "test") == {} and trivial["dev_mcc"] == 0.57
    assert Spread.of([None, None]) is None and Spread.of([None, 2.0]) == Spread(2.0, None, 1)
    assert differences(runs) == {}


@pytest.mark.slow
def test_two_real_arms(
    tmp_path: Path,
    tiny_esm: Path,
    pdb_folders: Folders,
    finished: Finished,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["contactlm"])
    shutil.copytree(finished.folder / "runs", "runs")
    data = [f"--data.train_dir={pdb_folders[0]}", f"--data.test_dir={pdb_folders[1]}", "--data.read_workers=0"]
    data += ["--data.min_length=10", f"--model.pretrained={tiny_esm}", "--trainer.accelerator=cpu"]
    assert main(["fit", "--config=zeroshot", *data, "--budget.max_tokens=600"]) == 0
    capsys.readouterr()
    assert report("runs", "--out", "figures") == 0
    printed = capsys.readouterr().out
    assert "2 runs of 2 arms: crop200 (1), zeroshot (1)" in printed and "no clear winner" in printed
    crop, zero = [row for row in rows_of(tmp_path / "figures" / "table.csv") if row["row"] == "run"]
    assert (float(crop["tokens"]), float(crop["steps"]), float(zero["tokens"])) == (640, 5, 0)
    assert float(zero["gflops"]) == 0 and float(zero["trained_parameters"]) == 0
    scored = rows_of(tmp_path / "runs" / "crop200" / "version_0" / "metrics.csv")
    (logged,) = [float(row["test/mcc_sep6"]) for row in scored if row["test/mcc_sep6"]]
    assert math.isclose(float(crop["test_mcc_sep6"]), logged, abs_tol=1e-6)
    assert zero["test_mcc_sep6"] and crop["dev_mcc_sep6"]
