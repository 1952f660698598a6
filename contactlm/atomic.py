"""Files that are there whole or not at all: written under another name beside, then renamed."""

from __future__ import annotations

import csv
import re
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

TEMPORARY_NAME = r"\.[0-9a-f]{32}\.tmp"  # regular expression


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; afterwards it replaces ``path``, or goes when an error came up.

    The folder is made when it is not there.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{uuid.uuid4().hex}.tmp")  # a long name plus a suffix may be too long
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_file(path: str | Path) -> Iterator[BinaryIO]:
    """Open a temporary file for writing bytes; it is closed, then treated as :func:`atomic_path` does."""
    with atomic_path(path) as temporary, temporary.open("xb") as handle:
        yield handle


def write_csv(path: str | Path, rows: Sequence[Mapping[str, Any]], columns: Sequence[str] = ()) -> None:
    """Write a table.

    Args:
        path: The file.
        rows: With the same keys each; None is left empty.
        columns: Names of the columns; none: the keys of the first row.
    """
    with atomic_path(path) as temporary, temporary.open("x", newline="", encoding="utf-8") as handle:
        writer = csv.DictWriter(handle, columns or list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def is_temporary(path: Path) -> bool:
    """Whether a file's name is one that this module gives."""
    return re.fullmatch(TEMPORARY_NAME, path.name) is not None


def remove_temporaries(folder: Path) -> None:
    """Remove the files that were left there because their process was killed."""
    for path in folder.glob(".*.tmp"):
        if is_temporary(path):
            path.unlink(missing_ok=True)
