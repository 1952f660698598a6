"""Which of the files that are kept were found complete, so that a start unzips none of them again."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path

from contactlm.atomic import atomic_file

NAME = ".complete.json"
log = logging.getLogger(__name__)


class CompleteFiles:
    """Size and time of change of the complete files of a folder, kept in a file there.

    Whatever has changed since, or is not known, is checked again. Threads may share one; of two processes at once
    one's findings may get lost, and are found again.

    Args:
        folder: The folder.
        check: Tells of a file's bytes whether it is complete.
    """

    def __init__(self, folder: Path, check: Callable[[bytes], bool]) -> None:
        self._folder, self._check = folder, check
        self._known = self._read()
        self._before = dict(self._known)

    def __contains__(self, path: Path) -> bool:
        """Whether a file of the folder is there and complete.

        Raises:
            OSError: It cannot be read.
        """
        if not path.is_file():
            return False
        if self._known.get(path.name) == _mark(path):
            return True
        if self._check(path.read_bytes()):
            self.add(path)
            return True
        return False

    def add(self, path: Path) -> None:
        """Take note of a complete file."""
        self._known[path.name] = _mark(path)

    def save(self) -> None:
        """Keep what is known; a folder that cannot be written only costs time."""
        if self._known == self._before:
            return
        known = self._read() | self._known
        try:
            with atomic_file(self._folder / NAME) as handle:
                handle.write(json.dumps(known).encode())
        except OSError as error:
            log.info("%s cannot be written (%s): files are checked again", self._folder / NAME, error.strerror or error)

    def _read(self) -> dict[str, list[int]]:
        try:
            known = json.loads((self._folder / NAME).read_bytes())
        except (OSError, ValueError):
            return {}
        return known if isinstance(known, dict) else {}


def _mark(path: Path) -> list[int]:
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns]
