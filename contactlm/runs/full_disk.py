"""A full disk ends no run: what cannot be written is said once, and written later where that can be."""

from __future__ import annotations

import csv
import errno
import logging
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger

from contactlm.atomic import write_csv

log = logging.getLogger(__name__)

FULL = (errno.ENOSPC, errno.EDQUOT)
EVENTS = "events.out.tfevents…"
ROOM = 1 << 16
"""Bytes tried before a new event file is begun: an error in its first ones would end TensorBoard's thread."""
Tell = Callable[[OSError], None]


@contextmanager
def outlast_full_disk(what: str | Path, tell: Tell | None = None) -> Iterator[None]:
    """Go on where there is no room to write something.

    Args:
        what: The file, for the message.
        tell: What to do in place of a warning.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        if tell is None:
            log.warning("%s cannot be written (%s); the run goes on without it", what, error.strerror)
        else:
            tell(error)


class TellOnce:
    """Warns of the first error of a kind.

    Args:
        text: The warning, with a ``%s`` for the error.
    """

    def __init__(self, text: str) -> None:
        self._text, self._told = text, False

    def __call__(self, error: OSError) -> None:
        """Take an error."""
        if not self._told:
            self._told = True
            log.warning(self._text, error.strerror or error)


def outlast_in_loggers(loggers: Sequence[Logger]) -> None:
    """Let Lightning's two local loggers go on when the disk is full; in the first process, once they have begun.

    The rows of ``metrics.csv`` are kept in memory and written when there is room; the file never loses any. Events for
    TensorBoard are lost until there is room, each of them whole, so that those before and after can be read.

    Args:
        loggers: Those of a trainer; others, and folders behind a URL, are left alone.
    """
    for logger in loggers:
        if not isinstance(logger, (CSVLogger, TensorBoardLogger)) or "://" in logger.log_dir:
            continue
        if isinstance(logger.save, _Outlasting):
            continue
        if isinstance(logger, CSVLogger):
            path, lost = logger.experiment.metrics_file_path, "its rows are kept until there is room"
            save: Callable[[], None] = partial(_save_metrics, logger)
        else:
            path, lost = f"{logger.log_dir}/{EVENTS}", "TensorBoard misses what comes until there is room"
            save = logger.save
        tell = TellOnce(f"{path} cannot be written (%s): the run goes on, and {lost}")
        logger.save = _Outlasting(save, tell)  # type: ignore[method-assign]  # of this one logger
        logger.log_hyperparams = _Outlasting(logger.log_hyperparams, tell)  # type: ignore[method-assign]  # so is this
        if isinstance(logger, TensorBoardLogger):
            logger.experiment._get_file_writer = _EventFiles(logger.experiment, Path(logger.log_dir), tell)


class _Outlasting:
    """A function that does nothing when the disk is full."""

    def __init__(self, function: Callable[..., Any], tell: Tell) -> None:
        self._function, self._tell = function, tell

    def __call__(self, *arguments: Any, **options: Any) -> None:
        with outlast_full_disk("", self._tell):
            self._function(*arguments, **options)


def _save_metrics(logger: CSVLogger) -> None:
    """Write the rows that wait, or none of them.

    Lightning's own way rewrites the file in its place when a new column comes.

    Raises:
        OSError: The file is as it was.
    """
    writer = logger.experiment
    if not writer.metrics:
        return
    path = Path(writer.metrics_file_path)
    columns = sorted(set(writer.metrics_keys).union(*writer.metrics))
    if columns == writer.metrics_keys and path.is_file():
        _append(path, writer.metrics, columns)
    else:
        before: list[dict[str, Any]] = []
        if path.is_file():
            with path.open(newline="", encoding="utf-8") as handle:
                before = list(csv.DictReader(handle))
        write_csv(path, [*before, *writer.metrics], columns)
    writer.metrics_keys, writer.metrics = columns, []


def _append(path: Path, rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> None:
    with _whole_or_not(path), path.open("a", newline="", encoding="utf-8") as handle:
        csv.DictWriter(handle, columns).writerows(rows)


@contextmanager
def _whole_or_not(path: Path) -> Iterator[None]:
    """Take back what was added to a file when not all of it could be."""
    size = path.stat().st_size if path.exists() else 0
    try:
        yield
    except OSError:
        os.truncate(path, size)
        raise


class _EventFiles:
    """In place of what gives TensorBoard's writer its file: a new one after each end of training or evaluation.

    Args:
        writer: A ``SummaryWriter``.
        folder: Of its files.
        tell: Takes the error of a full disk.
    """

    def __init__(self, writer: Any, folder: Path, tell: Tell) -> None:
        self._make, self._writer, self._folder, self._tell = writer._get_file_writer, writer, folder, tell

    def __call__(self) -> Any:
        """The file's writer; where there is no room for a new file, one that takes nothing."""
        if self._writer.file_writer is None:
            try:
                with tempfile.TemporaryFile(dir=self._folder) as probe:
                    probe.write(bytes(ROOM))
            except OSError as error:
                if error.errno not in FULL:
                    raise
                self._tell(error)
                return _NoFile()
        made = self._make()
        records = made.event_writer._async_writer._writer
        if not isinstance(records._writer, _EventFile):
            records._writer = _EventFile(records._writer, Path(made.event_writer._file_name), self._tell)
        return made


class _NoFile:
    """Takes what TensorBoard's writer would write."""

    def add_summary(self, *_: Any, **__: Any) -> None:
        """Forget it."""

    add_event = add_graph = flush = add_summary


class _EventFile:
    """In place of an event file: a record is written whole, or told of; an error would end TensorBoard's writer.

    Args:
        file: Takes a record at a time.
        path: Where it lies.
        tell: Takes the error of a full disk.
    """

    def __init__(self, file: Any, path: Path, tell: Tell) -> None:
        self._file, self._path, self._tell = file, path, tell

    def write(self, record: bytes) -> None:
        """Write a record."""
        with outlast_full_disk(self._path, self._tell), _whole_or_not(self._path):
            self._file.write(record)

    def flush(self) -> None:
        """Write what waits."""
        with outlast_full_disk(self._path, self._tell):
            self._file.flush()

    def close(self) -> None:
        """Close the file."""
        with outlast_full_disk(self._path, self._tell):
            self._file.close()

    @property
    def closed(self) -> bool:
        """Whether it was closed."""
        return self._file.closed
