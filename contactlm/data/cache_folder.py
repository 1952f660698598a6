"""The cache folder: its user's own, and cleared by itself of what nobody uses any more."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path

from contactlm.atomic import is_temporary
from contactlm.types import DataError

DAYS = 90  # so long a file is kept after its last use
DAYS_VARIABLE = "CONTACTLM_CACHE_DAYS"
CLEARED = (
    *("entries", "packs", "index", "clusters", "identity", "searches", "segments", "shards", "benchmark", "jacobian"),
)
"""Folders whose files can all be made, or fetched, again. Structures that were downloaded are not among them."""
TAG = "CACHEDIR.TAG"  # by which backup programs know caches, and this module those that it may clear
_TAG_TEXT = (
    "Signature: 8a477f597d28d172789f06886806bc55\n# The cache of contactlm: files unused for a time are removed.\n"
)
_LOOKED = ".cleared"  # its time tells when the folder was last looked through
_DAY = 86_400.0

log = logging.getLogger(__name__)


def default_cache_dir() -> Path:
    """``$CONTACTLM_CACHE``, or ``~/.cache/contactlm`` (following ``$XDG_CACHE_HOME``)."""
    if "CONTACTLM_CACHE" in os.environ:
        return Path(os.environ["CONTACTLM_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "contactlm"


def open_cache_folder(directory: Path) -> None:
    """Make the cache folder, for its user only, and once a day clear it of what was long unused.

    A file counts as used when it was written or read, and the entries behind a list of structure files when that list
    was (:func:`contactlm.atomic.note_use`). How long files are kept unused is 90 days, or ``$CONTACTLM_CACHE_DAYS``; 0
    keeps all. Temporary files of processes that were killed go after a day. Only a folder that holds nothing but a
    cache is cleared. One that cannot be written is left as it is.

    Args:
        directory: The cache folder.

    Raises:
        DataError: ``$CONTACTLM_CACHE_DAYS`` is no number of days.
    """
    days = _days()
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not _is_ours(directory) or not _is_time(directory / _LOOKED):
            return
        (directory / _LOOKED).touch()
    except OSError:
        return  # whoever writes there says what it means
    _clear(directory, days)


def _days() -> float:
    given = os.environ.get(DAYS_VARIABLE, str(DAYS))
    try:
        days = float(given)
    except ValueError:
        days = -1.0
    if not days >= 0:
        raise DataError(f"{DAYS_VARIABLE}: {given!r} given; give a number of days, 0 to keep the cache as it is")
    return days


def _is_ours(directory: Path) -> bool:
    """Whether the folder holds a cache and nothing else; it then gets its tag."""
    if (directory / TAG).exists():
        return True
    if not {path.name for path in directory.iterdir()} <= {*CLEARED, "structures"}:
        return False
    (directory / TAG).write_text(_TAG_TEXT)
    return True


def _is_time(looked: Path) -> bool:
    return not looked.exists() or time.time() - looked.stat().st_mtime > _DAY


def _clear(directory: Path, days: float) -> None:
    unused = leftovers = size = 0
    for path in _files(directory):
        try:
            stat = path.stat()
            age = time.time() - max(stat.st_atime, stat.st_mtime)
            temporary = is_temporary(path)
            if age <= _DAY if temporary else (not days or age <= days * _DAY):
                continue
            path.unlink()
        except OSError:
            continue  # another process was first, or it is not ours to remove
        unused, leftovers, size = unused + (not temporary), leftovers + temporary, size + stat.st_size
    if unused or leftovers:
        log.info(
            "%s: %d files unused for %g days and %d remains of killed processes removed (%.1f MB; %s=0 keeps all)",
            directory, unused, days, leftovers, size / 1e6, DAYS_VARIABLE,
        )  # fmt: skip


def _files(directory: Path) -> Iterator[Path]:
    for name in CLEARED:
        for root, _, files in os.walk(directory / name):
            yield from (Path(root) / file for file in files)
