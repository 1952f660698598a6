"""Arrays that are kept between runs, each a file that is there whole or not at all and checked when it is read.

Layout (little endian): magic (8 bytes) | CRC-32 of all that follows (uint64) | the array's values.
"""

from __future__ import annotations

import logging
import shutil
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from contactlm.atomic import atomic_file

MAGIC = b"CLMCLUS1"
log = logging.getLogger(__name__)


def keep_array(array: NDArray[Any], path: Path) -> bool:
    """Write an array; a folder that cannot be written costs time only, which is told.

    Returns:
        Whether it was written.
    """
    payload = array.astype(array.dtype.newbyteorder("<")).tobytes()
    try:
        with atomic_file(path) as handle:
            handle.write(MAGIC + zlib.crc32(payload).to_bytes(8, "little") + payload)
    except OSError as error:
        log.warning("The clusters cannot be kept in %s (%s): they are computed again next time.", path.parent, error)
        return False
    return True


def kept_array(path: Path, dtype: DTypeLike, length: int | None = None) -> NDArray[Any] | None:
    """Read what :func:`keep_array` wrote.

    Args:
        path: The file.
        dtype: Of the values.
        length: How many there must be; None: any number.

    Returns:
        The values, flat; None when the file is missing or damaged.
    """
    try:
        raw = path.read_bytes()
    except OSError:
        return None
    payload, kind = raw[16:], np.dtype(dtype).newbyteorder("<")
    fits = len(payload) % kind.itemsize == 0 and length in (None, len(payload) // kind.itemsize)
    if raw[:8] != MAGIC or not fits or zlib.crc32(payload).to_bytes(8, "little") != raw[8:16]:
        log.warning("%s is damaged; the clusters are computed again.", path)
        return None
    return np.frombuffer(payload, kind).astype(dtype)


class KeptBlocks:
    """Results of the finished blocks of a long computation, a file each, so that a kill costs one block.

    Any number of processes may share a folder: the results do not depend on who computes them.

    Args:
        folder: Where the files go; None: nothing is kept.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder

    def get(self, number: int) -> NDArray[np.float64] | None:
        """The values of a block, flat float64; None where it is to be computed."""
        return None if self._folder is None else kept_array(self._path(self._folder, number), np.float64)

    def put(self, number: int, values: NDArray[np.float64]) -> None:
        """Keep a block; where that fails once, nothing more is kept."""
        if self._folder is not None and not keep_array(values, self._path(self._folder, number)):
            self._folder = None

    def clear(self) -> None:
        """Remove them, when the result of the whole is kept."""
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    @staticmethod
    def _path(folder: Path, number: int) -> Path:
        return folder / f"{number:06d}.part"
