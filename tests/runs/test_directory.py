"""Runs of one name that are started at the same moment have a directory each."""

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger

from contactlm.runs import directory
from tests.cli.test_cli import SMALL, data_options
from tests.processes import finish, output, start
from tests.runs.test_interruption import call

Folders = tuple[Path, Path]


def made(folder: Path, **options: Any) -> list[Logger]:
    return [CSVLogger(folder, name="a", **options), TensorBoardLogger(folder, name="a", **options)]


def claim(loggers: list[Logger], is_global_zero: bool = True) -> None:
    directory.claim_directory(SimpleNamespace(loggers=loggers, is_global_zero=is_global_zero))  # type: ignore[arg-type]


def test_loggers_that_have_not_written_yet_get_directories_of_their_own(tmp_path: Path) -> None:
    runs = [made(tmp_path), made(tmp_path)[::-1], made(tmp_path)]
    (tmp_path / "a" / "version_1").mkdir(parents=True)
    for loggers in runs:
        claim(loggers)
    versions = [[logger.version for logger in loggers] for loggers in runs]
    assert versions == [[2, 2], [3, 3], [4, 4]]
    assert [Path(str(loggers[0].log_dir)).is_dir() for loggers in runs] == [True] * 3


def test_a_version_that_is_given_stays(tmp_path: Path) -> None:
    for version in (7, "mine"):
        loggers = made(tmp_path, version=version)
        claim(loggers)
        assert [logger.version for logger in loggers] == [version] * 2
    assert not any(tmp_path.iterdir())
    claim([])


def test_processes_of_one_run_claim_one_directory(tmp_path: Path) -> None:
    first, other = made(tmp_path), made(tmp_path)
    claim(first)
    claim(other, is_global_zero=False)
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["version_0"]


@pytest.mark.parametrize("written", ["nothing", "a log without events", "events", "config.yaml", "both"])
def test_a_directory_in_which_nothing_was_written_goes(tmp_path: Path, written: str) -> None:
    loggers = made(tmp_path)
    claim(loggers)
    folder = Path(str(loggers[0].log_dir))
    if written in ("config.yaml", "both"):
        (folder / "config.yaml").touch()
    if written not in ("nothing", "config.yaml"):
        writer = loggers[1].experiment  # before the data are read
        if written == "events":
            writer.add_scalar("train/loss", 1.0, 1)
        writer.close()
    directory._remove_if_bare(folder)
    assert folder.is_dir() == (written in ("events", "config.yaml", "both"))
    assert written != "both" or len(list(folder.iterdir())) == 2


def claim_at(moment: float, folder: Path, runs: int) -> list[int]:
    """Claim several directories as fast as can be, from a moment on."""
    versions = []
    time.sleep(max(0.0, moment - time.time()))
    for _ in range(runs):
        loggers = made(folder)
        claim(loggers)
        versions.append(int(loggers[0].version or 0))
    return versions


@pytest.mark.slow
def test_processes_at_the_same_moment_never_share(tmp_path: Path) -> None:
    moment, names = time.time() + 4, [f"p{n}" for n in range(4)]
    started = [start(claim_at, moment, tmp_path / "runs", 25, folder=tmp_path, name=name) for name in names]
    found = [finish(process, tmp_path, name) for process, name in zip(started, names, strict=True)]
    assert sorted(version for versions in found for version in versions) == list(range(100))


@pytest.mark.slow
def test_two_runs_of_one_name_both_come_to_their_end(tmp_path: Path, tiny_esm: Path, pdb_folders: Folders) -> None:
    arguments = ["fit", "--config=crop200", *data_options(pdb_folders), *SMALL, f"--model.pretrained={tiny_esm}"]
    arguments += ["--budget.max_tokens=600", "--test_after_fit=false", "--trainer.enable_progress_bar=false"]
    names = ["first", "second"]
    started = [
        start(call, [*arguments, f"--seed_everything={n}"], folder=tmp_path, name=name) for n, name in enumerate(names)
    ]
    assert [finish(process, tmp_path, name) for process, name in zip(started, names, strict=True)] == [0, 0]
    runs = sorted((tmp_path / "runs" / "crop200").iterdir())
    assert [run.name for run in runs] == ["version_0", "version_1"]
    for run in runs:
        assert {"config.yaml", "metrics.csv", "run.json"} <= {path.name for path in run.iterdir()}
        assert not [line for name in names for line in output(tmp_path, name).splitlines() if "Traceback" in line]
