"""One name for a run, in all its loggers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml

from contactlm.cli.arguments import resolve_arguments
from contactlm.cli.contact_cli import ContactCLI
from contactlm.cli.main import main

LOGGERS = "lightning.pytorch.loggers"


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["contactlm"])


def logs(tiny_esm: Path, *arguments: str) -> list[str]:
    """Where each logger of a run writes, without the part for the run's version, which all share."""
    model = [f"--model.pretrained={tiny_esm}", "--trainer.accelerator=cpu", "--data.synthetic.folder=made"]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(ContactCLI, "_run_subcommand", lambda *_: None)
        loggers = ContactCLI(resolve_arguments(["fit", *arguments, *model])).trainer.loggers
    folders = [Path(logger.log_dir) for logger in loggers]
    assert len({folder.name for folder in folders}) <= 1
    return [str(folder.parent) for folder in folders]


def printed(capsys: pytest.CaptureFixture, *arguments: str) -> str:
    with pytest.raises(SystemExit) as end:
        main(["fit", *arguments, "--print_config"])
    assert end.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ([], "contactlm"),
        (["--name", "mine"], "mine"),
        (["--config=crop200"], "crop200"),
        (["--config=crop200", "--name=mine"], "mine"),
        (["--config=crop200", "--config=cut200"], "cut200"),
        (["--config=cut200", "--config=ids"], "cut200"),
    ],
)
def test_all_loggers_have_the_name_that_comes_last(arguments: list[str], name: str, tiny_esm: Path) -> None:
    assert logs(tiny_esm, *arguments) == [f"runs/{name}"] * 2


@pytest.mark.slow
def test_a_logger_that_names_itself_keeps_its_name(tmp_path: Path, tiny_esm: Path) -> None:
    options = [{}, {"name": "own"}, {"name": "lightning_logs"}, {"name": None}]  # the last: in the folder itself
    entries = [{"class_path": f"{LOGGERS}.CSVLogger", "init_args": {"save_dir": "x", **given}} for given in options]
    entries.append({"class_path": f"{LOGGERS}.TensorBoardLogger", "init_args": {"save_dir": "x"}})
    (tmp_path / "my.yaml").write_text(yaml.safe_dump({"name": "mine", "trainer": {"logger": entries}}))
    expected = ["x/mine", "x/own", "x/lightning_logs", "x", "x/mine"]
    assert logs(tiny_esm, "--config=my.yaml") == expected
    assert logs(tiny_esm, "--trainer.logger=CSVLogger", "--trainer.logger.save_dir=x", "--name=one") == ["x/one"]
    assert logs(tiny_esm, "--trainer.logger=false") == []


def test_loggers_of_services(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    names = ("WandbLogger", "MLFlowLogger")
    entries = [{"class_path": f"{LOGGERS}.{name}"} for name in names]
    entries.append({"class_path": "tests.foreign_logger.JsonLogger", "init_args": {"store": "store", "run": "r"}})
    (tmp_path / "my.yaml").write_text(yaml.safe_dump({"trainer": {"logger": entries}}))
    loggers = yaml.safe_load(printed(capsys, "--config=my.yaml"))["trainer"]["logger"]
    assert [logger["init_args"].get("name") for logger in loggers] == ["{name}", None, None]
    assert loggers[1]["init_args"]["experiment_name"] == "lightning_logs"  # it calls neither of its names "name"
    (tmp_path / "own.yaml").write_text(
        "name: mine\ntrainer: {logger: {class_path: MLFlowLogger, init_args: {run_name: '{name}'}}}\n"
    )
    assert (
        yaml.safe_load(printed(capsys, "--config=own.yaml"))["trainer"]["logger"]["init_args"]["run_name"] == "{name}"
    )


def written_before(path: Path, capsys: pytest.CaptureFixture) -> Path:
    """A ``config.yaml`` as runs wrote it when each logger had its name, and the run none."""
    config = yaml.safe_load(printed(capsys, "--config=crop200"))
    assert config.pop("name") == "crop200"
    for logger in config["trainer"]["logger"]:
        assert logger["init_args"]["name"] == "{name}"
        logger["init_args"]["name"] = "older"
    path.write_text(yaml.safe_dump(config))
    return path


@pytest.mark.slow
def test_a_config_written_before_keeps_its_meaning(tmp_path: Path, tiny_esm: Path, capsys) -> None:
    config = f"--config={written_before(tmp_path / 'config.yaml', capsys)}"
    assert logs(tiny_esm, config) == ["runs/older"] * 2
    assert logs(tiny_esm, "--config=crop384", config, "--name=older") == ["runs/older"] * 2
    remark = "name: other: the loggers of trainer.logger have names of their own: older"
    assert remark not in capsys.readouterr().err
    assert logs(tiny_esm, config, "--name=other") == ["runs/older"] * 2
    assert remark in capsys.readouterr().err


def test_a_written_config_can_be_given_another_name(tmp_path: Path, tiny_esm: Path, capsys) -> None:
    (tmp_path / "config.yaml").write_text(printed(capsys, "--config=crop384", "--name=first"))
    assert logs(tiny_esm, "--config=config.yaml") == ["runs/first"] * 2
    assert logs(tiny_esm, "--config=config.yaml", "--name=second") == ["runs/second"] * 2


@pytest.mark.slow
def test_the_last_run_of_the_name_goes_on(tmp_path: Path, tiny_esm: Path, capsys, monkeypatch) -> None:
    for step in ("before_instantiate_classes", "instantiate_classes", "_run_subcommand"):
        monkeypatch.setattr(ContactCLI, step, lambda *_: None)
    config = f"--config={written_before(tmp_path / 'config.yaml', capsys)}"
    about = dict.fromkeys(("backbone", "backbone_checksum", "tuned_threshold"))
    for name in ("mine", "crop200", "older"):
        path = tmp_path / "runs" / name / "version_3" / "checkpoints" / "last.ckpt"
        path.parent.mkdir(parents=True)
        torch.save({"contactlm": about, "state_dict": {}}, path)
    for arguments, name in (
        (["--name=mine"], "mine"),
        (["--config=crop200"], "crop200"),
        (["--config=crop200", "--name=mine"], "mine"),
        ([config], "older"),
    ):
        cli = ContactCLI(resolve_arguments(["fit", *arguments, "--ckpt_path=last"]))
        assert cli.config["fit"]["ckpt_path"] == f"runs/{name}/version_3/checkpoints/last.ckpt"
    cli = ContactCLI(["fit", "--name=new", "--ckpt_path=last"])
    assert cli.config["fit"]["ckpt_path"] is None


def test_a_run_of_a_name(tmp_path: Path, tiny_esm: Path, pdb_folders) -> None:
    folders = [f"--data.train_dir={pdb_folders[0]}", "--data.min_length=10", "--data.cache_dir=cache"]
    model = [f"--model.pretrained={tiny_esm}", "--trainer.accelerator=cpu", "--budget.max_tokens=200"]
    assert main(["fit", "--config=crop200", "--name=mine", *folders, *model]) == 0
    assert {path.name for path in (tmp_path / "runs").iterdir()} == {"mine"}
    run = tmp_path / "runs" / "mine" / "version_0"
    assert json.loads((run / "run.json").read_text())["arm"] == "mine"
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["name"] == "mine" and {each["init_args"]["name"] for each in config["trainer"]["logger"]} == {
        "{name}"
    }
    assert (run / "metrics.csv").is_file() and list(run.glob("events.out.tfevents.*"))
