"""A disk that is full for a while, or for good: what a run loses, and that it goes on."""

import builtins
import csv
import errno
import io
import logging
import os
import pathlib
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

from contactlm.runs.full_disk import outlast_full_disk, outlast_in_loggers
from tests.processes import finish, output, start
from tests.runs.test_interruption import STEPS, call, command

Folders = tuple[Path, Path]


class Disk:
    """The file system below a folder: while it is full, some of what is written arrives, and then an error.

    Args:
        folder: Nothing else is touched.
        seed: Decides how much arrives.
    """

    def __init__(self, folder: Path, seed: int = 0) -> None:
        self.folder, self.full, self.errors = folder.absolute(), False, 0
        self._rng = np.random.default_rng(seed)
        self._open = io.open

    def room(self, wanted: int) -> int:
        return int(self._rng.integers(0, wanted)) if self.full else wanted

    def open(self, file: Any, mode: str = "r", buffering: int = -1, *more: Any, **options: Any) -> Any:
        inside = not isinstance(file, int) and Path(os.fsdecode(file)).absolute().is_relative_to(self.folder)
        if not inside or not set(mode) & set("wax+"):
            return self._open(file, mode, buffering, *more, **options)
        plain = self._open(file, mode, buffering, *more, **options)
        raw = plain.buffer.raw if isinstance(plain, io.TextIOWrapper) else plain.raw
        limited = _Limited(raw.fileno(), raw.mode, closefd=False)
        limited.disk, limited.first = self, plain
        buffered = io.BufferedWriter(limited)
        if "b" in mode:
            return buffered
        return io.TextIOWrapper(buffered, options.get("encoding"), newline=options.get("newline"))

    @contextmanager
    def mounted(self) -> Iterator[None]:
        anonymous = tempfile.TemporaryFile
        of_paths = getattr(pathlib, "_NormalAccessor", None)  # of Python 3.10, which keeps an open of its own
        if of_paths is not None:
            of_paths.open = staticmethod(self.open)
        io.open = builtins.open = self.open  # type: ignore[assignment]
        tempfile.TemporaryFile = lambda dir: self.open(dir / "unnamed", "wb")  # type: ignore[assignment,method-assign]
        try:
            yield
        finally:
            io.open, builtins.open, tempfile.TemporaryFile = self._open, self._open, anonymous  # type: ignore[method-assign]
            if of_paths is not None:
                of_paths.open = staticmethod(self._open)


class _Limited(io.FileIO):
    """A file that takes as much as the disk has room for."""

    disk: Disk
    first: Any  # whose descriptor this is

    def write(self, data: Any) -> int:
        room = self.disk.room(len(data))
        if room < len(data):
            super().write(bytes(data)[:room])
            self.disk.errors += 1
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().write(data)

    def close(self) -> None:
        if not self.closed:
            super().close()
            self.first.close()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    disk = Disk(tmp_path / "runs")
    with disk.mounted():
        yield disk


@pytest.fixture
def told() -> Iterator[list[str]]:
    """What is logged, each once: other tests set up the package's log, and pytest then hears its lines twice."""
    messages: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("contactlm.runs.full_disk")
    logger.addHandler(handler)
    yield messages
    logger.removeHandler(handler)


def rows_to_log(seed: int, number: int = 60) -> list[dict[str, float]]:
    """Rows whose columns come and go."""
    rng = np.random.default_rng(seed)
    names = ["loss", "dev/mcc", "rate", "test/mcc", "a b,c"]
    return [
        {name: float(rng.normal()) for name in names[: 1 + step // 15] if rng.random() < 0.7} | {"step": float(step)}
        for step in range(number)
    ]


def logged(folder: Path, name: str, rows: list[dict[str, float]], act: Callable[[int], None] | None = None) -> Path:
    """Log rows as a trainer does; the file they are in."""
    logger = CSVLogger(folder, name=name)
    if act is not None:
        outlast_in_loggers([logger])
        outlast_in_loggers([logger])  # fit, and then test
    for step, row in enumerate(rows):
        if act is not None:
            act(step)
        logger.log_metrics(dict(row), step)
        logger.save()
    logger.finalize("success")
    return Path(logger.log_dir) / "metrics.csv"


@pytest.mark.parametrize("seed", range(4))
def test_without_trouble_the_file_is_lightnings(tmp_path: Path, seed: int) -> None:
    rows = rows_to_log(seed)
    plain, ours = logged(tmp_path, "plain", rows), logged(tmp_path, "ours", rows, lambda step: None)
    assert ours.read_bytes() == plain.read_bytes()


@pytest.mark.parametrize("seed", range(4))
def test_no_row_is_lost_when_there_is_room_again(tmp_path: Path, disk: Disk, seed: int, told: list[str]) -> None:
    rows, rng, sizes = rows_to_log(seed), np.random.default_rng(seed), [0]
    full = rng.random(len(rows)) < 0.6
    path = tmp_path / "runs" / "ours" / "version_0" / "metrics.csv"

    def act(step: int) -> None:
        disk.full = bool(full[step]) and step < len(rows) - 1
        if path.is_file():  # always whole, whatever went wrong before
            whole = list(csv.DictReader(path.open(newline="")))
            assert all(None not in row and None not in row.values() for row in whole)
            assert [float(row["step"]) for row in whole] == [float(n) for n in range(len(whole))]
            sizes.append(len(whole))

    found = logged(tmp_path / "runs", "ours", rows, act)
    assert disk.errors > 10 and sorted(sizes) == sizes  # what was written stays
    (warning,) = told
    assert "metrics.csv cannot be written (No space left on device): the run goes on" in warning
    assert found.read_bytes() == logged(tmp_path, "plain", rows).read_bytes()
    assert {file.name for file in found.parent.iterdir()} == {"metrics.csv"}


@pytest.mark.parametrize("seed", range(3))
def test_events_before_and_after_can_be_read(
    tmp_path: Path, disk: Disk, seed: int, told: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    broken: list[Any] = []
    monkeypatch.setattr(threading, "excepthook", broken.append)
    logger = TensorBoardLogger(tmp_path / "runs", name="a", default_hp_metric=False)
    _ = logger.experiment
    outlast_in_loggers([logger])
    outlast_in_loggers([logger])
    full = np.random.default_rng(seed).random(40) < 0.4
    for step in range(40):
        disk.full = bool(full[step])
        logger.log_metrics({"loss": float(step)}, step)
        logger.experiment.add_image("picture", np.zeros((3, 40, 40), np.uint8), step)
        logger.save()
    disk.full = False
    logger.finalize("success")
    (path,) = (tmp_path / "runs" / "a" / "version_0").glob("events.*")
    events = [event for event in EventFileLoader(str(path)).Load() if event.summary.value]
    steps = [event.step for event in events]
    assert steps == [step for step in range(40) for _ in "12" if not full[step]]
    assert disk.errors > 5 and broken == []
    (warning,) = told
    assert "events.out.tfevents… cannot be written (No space left on device): the run goes on" in warning
    logger.log_metrics({"loss": 1.0}, 41)  # evaluation, after training has closed the file
    logger.save()
    disk.full = True
    logger.finalize("success")
    logger.log_metrics({"loss": 1.0}, 42)
    disk.full = False
    logger.log_metrics({"loss": 1.0}, 43)
    logger.finalize("success")
    paths = sorted(
        {*(tmp_path / "runs" / "a" / "version_0").iterdir()} - {path}, key=lambda made: made.stat().st_mtime_ns
    )
    found = [[e.step for e in EventFileLoader(str(p)).Load() if e.summary.value] for p in paths if "events" in p.name]
    assert found == [[41], [43]] and len(told) == 1 and broken == []


def test_other_errors_still_end_a_run(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path, name="a")
    outlast_in_loggers([logger])
    logger.log_metrics({"loss": 1.0}, 0)
    Path(logger.log_dir).joinpath("metrics.csv").mkdir()
    with pytest.raises(IsADirectoryError):
        logger.save()
    with pytest.raises(PermissionError), outlast_full_disk("x"):
        raise PermissionError(errno.EACCES, "Permission denied")


def call_on_a_disk_that_fills_up(arguments: list[str], step: int) -> int:
    """The command line in this process; from a training step on there is no room below runs/."""
    from contactlm import ContactModule

    disk, calls = Disk(Path("runs")), iter(range(1, 1_000_000))
    original = ContactModule.training_step

    def training_step(self: Any, *more: Any) -> Any:
        disk.full |= next(calls) == step
        return original(self, *more)

    ContactModule.training_step = training_step  # type: ignore[method-assign]
    with disk.mounted():
        status = call(arguments)
    assert disk.errors
    return status


@pytest.mark.slow
def test_a_run_goes_on_to_its_end_without_room(tmp_path: Path, tiny_esm: Path, pdb_folders: Folders) -> None:
    arguments = [*command(tiny_esm, pdb_folders), "--test_after_fit=true", "--checkpoint.dirpath=elsewhere"]
    arguments += ["--trainer.log_every_n_steps=1"]
    assert finish(start(call_on_a_disk_that_fills_up, arguments, 5, folder=tmp_path), tmp_path) == 0
    text = output(tmp_path)
    assert "Traceback" not in text and "Exception" not in text
    told = [line for line in text.splitlines() if "No space left on device" in line]
    names = ("metrics.csv", "events.out", "run.json", "test_scores.csv", "reliability.csv", ".png")
    assert [sum(name in line for line in told) for name in names] == [1, 1, 1, 1, 1, 2], told
    assert "test  mcc_sep6" in text  # the scores are shown
    assert [path.name for path in (tmp_path / "elsewhere").glob("last*")] == ["last.ckpt"]
    (metrics,) = (tmp_path / "runs").rglob("metrics.csv")
    steps = {int(row["step"]) for row in csv.DictReader(metrics.open()) if row.get("train/loss")}
    assert steps and max(steps) < 5 <= STEPS  # what was written before
