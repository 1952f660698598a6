"""A series of runs as the pages' loops start it: again, and only what is missing is done."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from contactlm.cli.contact_cli import ContactCLI
from contactlm.cli.main import main
from contactlm.runs.record_file import read_run
from tests.report.made_runs import make_run

Folders = tuple[Path, Path]


@pytest.fixture
def fit(tmp_path: Path, tiny_esm: Path, pdb_folders: Folders, monkeypatch: pytest.MonkeyPatch):
    """``contactlm fit … --ckpt_path last`` in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["contactlm"])
    data = {"train_dir": pdb_folders[0], "test_dir": pdb_folders[1], "read_workers": 0, "min_length": 10}
    options = [f"--data.{name}={value}" for name, value in {**data, "crop_length": 30, "batch_size": 4}.items()]
    options += [f"--model.pretrained={tiny_esm}", "--trainer.accelerator=cpu", "--trainer.val_check_interval=2"]

    def run(*more: str) -> int:
        return main(["fit", "--config=crop200", *options, "--budget.max_tokens=300", "--ckpt_path=last", *more])

    return run


def versions(folder: Path) -> list[str]:
    return sorted(path.parent.name for path in folder.glob("runs/crop200/*/run.json"))


@pytest.mark.slow
def test_a_finished_run_is_told_and_passed_over(
    tmp_path: Path, fit, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fit() == 0
    assert versions(tmp_path) == ["version_0"]
    before = (tmp_path / "runs/crop200/version_0/run.json").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(ContactCLI, "instantiate_classes", lambda *_: pytest.fail("a model was made"))
        assert fit() == 0
        assert fit("--trainer.log_every_n_steps=7") == 0  # changes nothing that a run comes to
    said = capsys.readouterr().err
    assert said.count("runs/crop200/version_0 is finished: ") == 2 and said.count("nothing to do") == 2
    assert "test mcc_sep6" in said and versions(tmp_path) == ["version_0"]
    assert (tmp_path / "runs/crop200/version_0/run.json").read_bytes() == before

    assert fit("--budget.max_tokens=600") == 0  # a larger budget is something to do
    assert versions(tmp_path) == ["version_0", "version_1"]
    assert read_run(tmp_path / "runs/crop200/version_1")["tokens"] > 300
    assert fit("--seed_everything=1") == 0
    assert read_run(tmp_path / "runs/crop200/version_2")["seed"] == 1


@pytest.mark.slow
@pytest.mark.parametrize("broken", ["training", "test"])
def test_a_broken_run_goes_on(tmp_path: Path, fit, broken: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert fit() == 0
    path = tmp_path / "runs/crop200/version_0/run.json"
    record = json.loads(path.read_text())
    change = {"status": "running"} if broken == "training" else {"test": {}}
    path.write_text(json.dumps({**record, **change}))
    capsys.readouterr()
    assert fit() == 0
    assert "nothing to do" not in capsys.readouterr().err and versions(tmp_path) == ["version_0", "version_1"]
    again = read_run(tmp_path / "runs/crop200/version_1")
    assert again["status"] == "finished" and again["test"] and again["tokens"] == record["tokens"]


@pytest.mark.slow
def test_the_report_names_what_is_missing(tmp_path: Path, capsys) -> None:
    for arm, seeds in (("a", (0, 1)), ("b", (0,)), ("c", (0, 1))):
        for seed in seeds:
            make_run(tmp_path / "runs" / arm / f"version_{seed}", arm, seed, 0.4)
    path = tmp_path / "runs" / "c" / "version_1" / "run.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "status": "interrupted"}))
    assert main(["report", str(tmp_path / "runs"), "--out", str(tmp_path / "report")]) == 0
    said = capsys.readouterr().out
    assert "missing of the series: b, seed 1: no run" in said
    assert "missing of the series: c, seed 1: " in said and "not finished (interrupted" in said
    assert "missing of the series: a" not in said and "3 arms and the seeds 0, 1" in said
    assert "missing of the series: b, seed 1" in (tmp_path / "report" / "report.md").read_text()
