"""Where a run keeps its own files, whichever loggers it has: its name, its directory, and its ``config.yaml`` there."""

from __future__ import annotations

import atexit
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import lightning as L
from lightning.pytorch.cli import SaveConfigCallback
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger

from contactlm.types import ContactLMError

RUN_NAME = "{name}"
"""What stands in the options of a logger for the name of the run."""
EMPTY_LOG = 128  # bytes, at most: TensorBoard's file of events before the first of them
LoggerClass = TypeVar("LoggerClass", bound=Logger)


def filled_in(value: Any, name: str) -> Any:
    """The value of a logger's option: the run's name where the option leaves it to the run."""
    return name if value == RUN_NAME else value


def make_logger(name: str, logger: type[LoggerClass], /, *args: Any, **options: Any) -> LoggerClass:
    """Make a logger of a run called ``name``; :data:`RUN_NAME` in its options stands for that name."""
    return logger(*args, **{key: filled_in(value, name) for key, value in options.items()})


def names_instead(loggers: Any, name: str) -> list[str]:
    """The names of a run whose loggers (``trainer.logger`` of a config) are all called otherwise; else none."""
    each = loggers if isinstance(loggers, list) else [loggers]
    given = [logger.get("init_args") or {} for logger in each if logger not in (None, True, False)]
    names = [filled_in(options["name"], name) for options in given if "name" in options]
    return [] if name in names else [str(other) for other in dict.fromkeys(names)]


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
    if trainer.fast_dev_run:  # type: ignore[attr-defined]  # a connector sets it
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


HEAD_LR_FACTOR = "model.head_lr_factor"


class RunConfig(SaveConfigCallback):
    """Lightning's SaveConfigCallback, for any logger: ``config.yaml`` goes to :func:`run_directory`.

    A run of another logger than Lightning's two local ones has a name that no other run has, unless it resumes with
    that very run: there the file is replaced. Without a logger nothing is written, since all runs would share a folder.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **{**options, "save_to_log_dir": False})
        self._folder: str | None = None

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Find the directory, in all processes, and write the file in the first."""
        if trainer.loggers and not self.already_saved:
            self._folder = run_directory(trainer)
            self.overwrite |= not isinstance(trainer.loggers[0], (CSVLogger, TensorBoardLogger))
            path = Path(self._folder or ".") / self.config_filename
            if trainer.strategy.broadcast(path.exists()) and not self.overwrite:
                raise ContactLMError(
                    f"{path} is there already: this run would overwrite another one's results; leave the logger's "
                    "version to the logger, or choose another one"
                )
        super().setup(trainer, pl_module, stage)

    def save_config(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Write the file; called in the first process only."""
        if self._folder is not None:
            path = Path(self._folder) / self.config_filename
            path.parent.mkdir(parents=True, exist_ok=True)
            config = self.config.clone()
            if config.get(HEAD_LR_FACTOR, ...) is None:  # the one that was chosen
                config[HEAD_LR_FACTOR] = getattr(pl_module, "head_lr_factor", None)
            self.parser.save(config, str(path), skip_none=False, overwrite=self.overwrite, multifile=self.multifile)
