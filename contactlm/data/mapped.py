"""Memory-mapped arrays on their way to other processes: the path travels, not the values.

Loader processes that are forked share their parent's maps. Those that are not (macOS, Windows, Python 3.14) get their
data set by pickle, which would copy all that a map holds.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from contactlm.types import DataError


class MappedArray(NamedTuple):
    """Where the values of an array lie.

    Attributes:
        path: The file, absolute.
        size: Bytes of the file.
        offset: Byte at which the values begin.
        shape: Of the array.
        dtype: Of the values.
    """

    path: str
    size: int
    offset: int
    shape: tuple[int, ...]
    dtype: str

    def open(self) -> NDArray[Any]:
        """Map the values.

        Raises:
            DataError: The file is gone, or another one.
        """
        try:
            raw = np.memmap(self.path, np.uint8, "r")
        except (OSError, ValueError) as error:
            raise DataError(f"{self.path}: went away while it was in use ({error}); start again") from error
        if len(raw) != self.size:
            raise DataError(f"{self.path}: {len(raw)} bytes, and {self.size} when it was opened; start again")
        length = int(np.prod(self.shape)) * np.dtype(self.dtype).itemsize
        return raw[self.offset : self.offset + length].view(self.dtype).reshape(self.shape)


def to_send(array: Any) -> Any:
    """Where an array's values lie, if that is a file that is there; else what was given."""
    if not isinstance(array, np.ndarray) or not array.flags.c_contiguous or not array.size:
        return array
    root = array
    while isinstance(root.base, np.ndarray):
        root = root.base
    if not isinstance(root, np.memmap) or root.filename is None:
        return array
    path = Path(root.filename)
    if not path.is_file() or path.stat().st_size != root.nbytes + root.offset:
        return array
    offset = root.offset + array.ctypes.data - root.ctypes.data
    return MappedArray(str(path), path.stat().st_size, offset, array.shape, array.dtype.str)


def received(value: Any) -> Any:
    """The array that :func:`to_send` was given."""
    return value.open() if isinstance(value, MappedArray) else value
