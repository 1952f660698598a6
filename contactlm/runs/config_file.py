"""``config.yaml``: the options of a run, in its directory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.cli import SaveConfigCallback
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from contactlm.runs.directory import run_directory
from contactlm.runs.full_disk import outlast_in_loggers
from contactlm.types import ContactLMError


class RunConfig(SaveConfigCallback):
    """Lightning's SaveConfigCallback, for any logger: ``config.yaml`` goes to :func:`run_directory`.

    A run of another logger than Lightning's two local ones has a name that no other run has, unless it goes on with
    that very run: there the file is replaced. Without a logger nothing is written, since all runs would share a folder.

    Raises:
        ContactLMError: The file is there already, from another run.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **{**options, "save_to_log_dir": False})
        self._folder: str | None = None

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Find the directory, in all processes, and write the file in the first."""
        if trainer.loggers and not self.already_saved:
            self._folder = run_directory(trainer)
            self._check_not_taken(trainer)
        super().setup(trainer, pl_module, stage)
        if trainer.is_global_zero:  # from here on the directory is this run's
            outlast_in_loggers(trainer.loggers)

    def _check_not_taken(self, trainer: L.Trainer) -> None:
        """Leave another run's file alone; all processes find out together."""
        self.overwrite |= not isinstance(trainer.loggers[0], (CSVLogger, TensorBoardLogger))
        path = Path(self._folder or ".") / self.config_filename
        if trainer.strategy.broadcast(path.exists()) and not self.overwrite:
            raise ContactLMError(
                f"{path} is there already: this run would overwrite another one's results; leave the logger's version "
                "to the logger, or choose another one"
            )

    def save_config(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Write the file; called in the first process only."""
        if self._folder is not None:
            path = Path(self._folder) / self.config_filename
            path.parent.mkdir(parents=True, exist_ok=True)
            if self.config.get("data.batch_size") == "auto":  # what it came to, so that the file makes the same run
                self.config["data.batch_size"] = trainer.datamodule.batch_size  # type: ignore[attr-defined]  # see Trainer
            self.parser.save(
                self.config, str(path), skip_none=False, overwrite=self.overwrite, multifile=self.multifile
            )
