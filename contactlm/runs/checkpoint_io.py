"""Checkpoint files: written whole or not at all, and found again."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

from contactlm.atomic import atomic_path
from contactlm.modules.checkpoint import check_checkpoint
from contactlm.runs.directory import RUN_NAME, filled_in
from contactlm.types import ModelError

log = logging.getLogger(__name__)
FULL = (errno.ENOSPC, errno.EDQUOT)


@contextmanager
def outlast_full_disk(what: str | Path) -> Iterator[None]:
    """Warn, and continue without it, where there is no room to write a file."""
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        log.warning("%s cannot be written (%s); the run continues without it", what, error.strerror)


class AtomicCheckpointIO(TorchCheckpointIO):
    """A Lightning plugin that writes checkpoints so that neither a kill nor a full disk costs an older one.

    A local checkpoint is written to a temporary file in its own folder, tensor by tensor, forced to disk, and renamed.
    A write that fails (no space left, a quota) leaves the file that was there; it is logged and counted, and the run
    goes on. Other locations (``s3://…``) are left to Lightning.
    """

    def __init__(self) -> None:
        super().__init__()
        self.failures = 0
        self._last_failed = False

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write a checkpoint; arguments as of Lightning's ``TorchCheckpointIO``."""
        if storage_options is not None or "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        self._last_failed = False
        try:
            write_checkpoint(checkpoint, Path(path))
        except OSError as error:
            self.failures += 1
            self._last_failed = True
            log.warning(
                "%s: the checkpoint cannot be written (%s; failure %d of this run). The run continues, and older "
                "checkpoints are kept; free some space, or end the run and resume it with checkpoint.dirpath elsewhere",
                path,
                error.strerror or error,
                self.failures,
            )

    def remove_checkpoint(self, path: str | Path) -> None:
        """Remove a checkpoint, unless the one that replaces it could not be written."""
        if not self._last_failed:
            super().remove_checkpoint(path)


def write_checkpoint(checkpoint: Mapping[Any, Any], path: Path) -> None:
    """Write a checkpoint tensor by tensor, whole or not at all."""
    with atomic_path(path) as temporary, temporary.open("xb") as handle:
        stream = _Stream(handle)
        torch.save(dict(checkpoint), stream)  # type: ignore[arg-type]  # of a file it needs no more than that
        if stream.error is not None:
            raise stream.error
        handle.flush()
        os.fsync(handle.fileno())
    if os.name == "posix":
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # the new name, too, outlives a power cut
        finally:
            os.close(folder)


class _Stream:
    """Takes what ``torch.save`` writes, and remembers an error, of which it would hide what it was."""

    def __init__(self, handle: BinaryIO) -> None:
        self._handle = handle
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        if self.error is None:
            try:
                self._handle.write(data)
            except OSError as error:
                self.error = error
        return len(data)

    def flush(self) -> None:
        """Leave it to who opened the file."""


def find_last(
    trainer_config: Mapping[str, Any], name: str, dirpath: str | Path | None = None, seed: int | None = None
) -> tuple[Path | None, Path]:
    """The newest ``last.ckpt`` of all runs of one name, None where there is none; and the folder it was looked for in.

    The folder is that of the trainer's first logger, or ``dirpath``. Only runs with the ``seed``, if one is given,
    count, and those that do not say theirs.
    """
    folder, pattern = (Path(dirpath), "") if dirpath else _runs_folder(trainer_config, name)
    found = folder.expanduser().glob(f"{pattern}last*.ckpt")
    newest_first = sorted(found, key=lambda path: path.stat().st_mtime_ns, reverse=True)
    for path in newest_first:
        if seed is None or check_checkpoint(path).get("ContactDataModule", {}).get("seed") in (seed, None):
            return path, folder
    return None, folder


def _runs_folder(trainer_config: Mapping[str, Any], name: str) -> tuple[Path, str]:
    """The folder of all runs of this name, and the pattern of their checkpoint folders."""
    root = Path(trainer_config.get("default_root_dir") or ".")
    loggers = trainer_config.get("logger")
    first: Any = loggers[0] if isinstance(loggers, list) and loggers else loggers
    if first is False or first == []:
        return root, "checkpoints/"
    if first is None or first is True:
        return root / "lightning_logs", "*/checkpoints/"
    kind = str(first.get("class_path", "")).rpartition(".")[2]
    if kind not in ("CSVLogger", "TensorBoardLogger", "RunBoard"):
        raise ModelError(
            f"ckpt_path: last: only a run itself knows where {kind} has its checkpoints; give the path of last.ckpt, "
            "choose a folder for checkpoints (checkpoint.dirpath), or put a CSVLogger first in trainer.logger"
        )
    options = first.get("init_args") or {}
    named = filled_in(options.get("name", RUN_NAME), name) or ""  # without a name, runs lie in the folder itself
    return Path(options.get("save_dir") or root) / named, "*/checkpoints/"
