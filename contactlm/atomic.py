"""Files that are there whole or not at all, under names that every file system can have.

A file is written under another name in the same folder, then renamed. A name that comes from data (a protein's id, a
file of a set behind a URL) becomes a file's only through :func:`file_name` or :class:`FileNames`.
"""

from __future__ import annotations

import csv
import hashlib
import logging
import re
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

LONGEST_NAME = 200  # characters of a file name, before its suffix; file systems allow about 255
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\.|$)", re.IGNORECASE)  # names of devices on Windows
log = logging.getLogger(__name__)
_TOLD: set[tuple[str, Path]] = set()  # what this process could not write to which folder
TEMPORARY_NAME = r"\.[0-9a-f]{32}\.tmp"  # regular expression


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path next to ``path``; afterwards it replaces ``path``, or goes when an error came up.

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


@contextmanager
def if_it_can_be(what: str, folder: Path) -> Iterator[None]:
    """Go on where a cache cannot be written, which costs time and not the run; say so once."""
    try:
        yield
    except OSError as error:
        if (what, folder) not in _TOLD:
            _TOLD.add((what, folder))
            log.warning(
                f"{what} cannot be kept in {folder} ({error.strerror or error}) and will be recomputed; set "
                "cache_dir or CONTACTLM_CACHE to a folder that can be written"
            )


def write_csv(path: str | Path, rows: Sequence[Mapping[str, Any]], columns: Sequence[str] = ()) -> None:
    """Write a table."""
    with atomic_path(path) as temporary, temporary.open("x", newline="", encoding="utf-8") as handle:
        writer = csv.DictWriter(handle, columns or list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def hash_file(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as handle:
        while block := handle.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def is_temporary(path: Path) -> bool:
    """Whether a file's name is one that this module gives."""
    return re.fullmatch(TEMPORARY_NAME, path.name) is not None


def remove_temporaries(folder: Path) -> None:
    """Remove the files that were left there because their process was killed."""
    for path in folder.glob(".*.tmp"):
        if is_temporary(path):
            path.unlink(missing_ok=True)


def file_name(name: str) -> str:
    """A file name, to which a suffix may be added, for a name that comes from data.

    Whatever is not a letter, digit, ``.``, ``-`` or ``_`` becomes ``_``, so that no name leads out of a folder; what is
    too long for file systems ends in a checksum, and names of devices on Windows begin with ``_``.

    Examples:
        >>> file_name("1abc_A"), file_name("/../../x"), file_name("nul")
        ('1abc_A', '_.._.._x', '_nul')
    """
    plain = re.sub(r"[^\w.-]", "_", name, flags=re.ASCII).lstrip(".").rstrip(".") or "_"
    plain = f"_{plain}" if _RESERVED.match(plain) else plain
    return plain if len(plain) <= LONGEST_NAME else f"{plain[: LONGEST_NAME - 9]}_{_checksum(name)}"


class FileNames:
    """Distinct file names for distinct names, also where a file system does not distinguish ``a`` from ``A``.

    Where two meet (``a/b`` and ``a_b``, ``1abc_A`` and ``1abc_a``) the later one ends in a checksum.
    """

    def __init__(self, known: Mapping[str, str] | None = None) -> None:
        self._given = dict(known or {})
        self._taken = {given.lower() for given in self._given.values()}

    def of(self, name: str) -> str:
        """The file name of a name, always the same one."""
        if name not in self._given:
            plain = candidate = file_name(name)
            salt = ""
            while candidate.lower() in self._taken:  # also with a checksum: some name may look as if it had it
                candidate = f"{plain[: LONGEST_NAME - 9]}_{_checksum(name + salt)}"
                salt += "~"
            self._given[name] = candidate
            self._taken.add(candidate.lower())
        return self._given[name]


def _checksum(name: str) -> str:
    return hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:8]
