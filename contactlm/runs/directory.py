"""Where a run keeps its own files, whichever loggers it has."""

from __future__ import annotations

from pathlib import Path

import lightning as L
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.loggers.logger import DummyLogger


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
