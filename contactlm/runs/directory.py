"""Where a run keeps its own files, whichever loggers it has."""

from __future__ import annotations

import atexit
from contextlib import suppress
from pathlib import Path

import lightning as L
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.loggers.logger import DummyLogger

EMPTY_LOG = 128  # bytes, at most: TensorBoard's file of events before the first of them


def run_directory(trainer: L.Trainer) -> str | None:
    """The directory of a run's own files: ``run.json``, ``config.yaml``, ``test_scores.csv``.

    With a :class:`CSVLogger` or :class:`TensorBoardLogger` first it is that logger's, as ``trainer.log_dir`` says. Of
    another logger (W&B, MLflow, …) ``trainer.log_dir`` is a folder that all its runs share, or none; there it is the
    one in which Lightning puts the run's checkpoints, ``<save_dir>/<name>/<version>``. Without a logger it is
    ``trainer.default_root_dir``, as ``trainer.log_dir`` is. None in a ``fast_dev_run``.

    A collective call: the processes agree on it, so all must ask.
    """
    first = trainer.loggers[0] if trainer.loggers else None
    if first is None or isinstance(first, (CSVLogger, TensorBoardLogger)):
        return trainer.log_dir
    if isinstance(first, DummyLogger):
        return None
    folder: str | None = None
    if trainer.is_global_zero:  # others may know neither name nor version
        version = first.version if isinstance(first.version, str) else f"version_{first.version}"
        folder = str(Path(first.save_dir or trainer.default_root_dir) / str(first.name) / version)
    return trainer.strategy.broadcast(folder)


def claim_directory(trainer: L.Trainer) -> None:
    """Take a directory that no other run has or takes, for all loggers of a run.

    A logger counts the directories that are there, and makes its own later: runs that start at the same moment count
    alike. Here the first process makes the directory at once, and of several runs only one can. One in which nothing
    was written goes when the process ends. A version that was given stays, and so do folders behind a URL.

    Args:
        trainer: Its first logger decides, if it is one of Lightning's two local ones; the others take its version.

    Raises:
        OSError: The directory cannot be made.
    """
    first = trainer.loggers[0] if trainer.loggers else None
    if isinstance(first, (CSVLogger, TensorBoardLogger)) and first._version is None and trainer.is_global_zero:
        _claim(first)
    for logger in trainer.loggers[1:]:
        if hasattr(logger, "_version") and logger._version is None:
            logger._version = trainer.loggers[0].version


def _claim(logger: CSVLogger | TensorBoardLogger) -> None:
    version = int(logger.version)  # the number after the highest that is there
    while "://" not in logger.log_dir:
        folder = Path(logger.log_dir).absolute()
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            version += 1
            logger._version = version
        else:
            atexit.register(_remove_if_bare, folder)
            return


def _remove_if_bare(folder: Path) -> None:
    """Remove a directory that holds nothing, or what TensorBoard's logger begins with, before the data are read."""
    with suppress(OSError):  # that it holds more is one
        files = list(folder.iterdir())
        if all(file.name.startswith("events.out.tfevents.") and file.stat().st_size <= EMPTY_LOG for file in files):
            for file in files:
                file.unlink()
        folder.rmdir()
