"""Rows of a categorical Jacobian, kept by blocks of positions: in memory while they are few, then in files.

A row holds what all substitutions of one position do to the logits of all others. All rows of n residues are (20 n)²
numbers: neither sum that they are reduced to can be taken before the last row is known (see
:mod:`contactlm.maps.jacobian_norms`), so they must lie somewhere. On a disk they cost no memory, and a process that is
killed loses no more than the rows at hand.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from contactlm.atomic import atomic_file
from contactlm.types import DataError

HELD_BYTES = 64 * 1024**2  # more rows than that go to a file
KEPT_EVERY = 20.0  # seconds: what a killed process loses at most, and the row it was at


class RowStore:
    """The rows of one pass, in order.

    Args:
        shape: S, n and 20: substitutions, residues and logits; a row has this shape.
        kept_as: Path and beginning of the names of files that a later process goes on from; None: files are temporary.
        clock: Tells the seconds.
    """

    def __init__(
        self, shape: tuple[int, int, int], kept_as: Path | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.shape = shape
        self.kept_as = kept_as
        self._clock = clock
        self._flushed = clock()
        self._held: list[Tensor] = []
        self._files: list[tuple[int, int, Path]] = [] if kept_as is None else list(self._found(kept_as))
        self._scratch: tempfile.TemporaryDirectory[str] | None = None

    def __len__(self) -> int:
        return self._in_files + len(self._held)

    @property
    def _in_files(self) -> int:
        return self._files[-1][1] if self._files else 0

    def _found(self, kept_as: Path) -> Iterator[tuple[int, int, Path]]:
        """The files of an earlier process, up to the first gap."""
        known = 0
        for path in sorted(kept_as.parent.glob(f"{kept_as.name}.rows-*.npy")):
            start, stop = (int(part) for part in path.stem.rpartition("rows-")[2].split("-"))
            with suppress(OSError, ValueError, EOFError):  # damaged: its rows are computed again
                if start == known and np.load(path, mmap_mode="r").shape == (stop - start, *self.shape):
                    yield start, stop, path
                    known = stop

    def append(self, row: Tensor) -> None:
        """Add the next row (S, n, 20), on the CPU.

        Raises:
            DataError: It has to go to a file that cannot be written.
        """
        self._held.append(row)
        held = len(self._held) * row.numel() * row.element_size()
        is_time = self.kept_as is not None and self._clock() - self._flushed >= KEPT_EVERY
        if held >= HELD_BYTES or is_time:
            self._flush()

    def _flush(self) -> None:
        start, stop = self._in_files, len(self)
        path = self._name(start, stop)
        keep(path, torch.stack(self._held), self.shape[1])
        self._files.append((start, stop, path))
        self._held, self._flushed = [], self._clock()

    def _name(self, start: int, stop: int) -> Path:
        name = f"rows-{start:06d}-{stop:06d}.npy"
        if self.kept_as is not None:
            return self.kept_as.with_name(f"{self.kept_as.name}.{name}")
        if self._scratch is None:
            self._scratch = tempfile.TemporaryDirectory(prefix="contactlm-jacobian-")
        return Path(self._scratch.name) / name

    def read(self, rows: slice, columns: slice) -> Tensor:
        """Some columns of some rows, (r, S, c, 20), in float64."""
        parts = []
        for first, last, path in self._files:
            if first < rows.stop and rows.start < last:
                own = slice(max(rows.start - first, 0), rows.stop - first)
                parts.append(np.load(path, mmap_mode="r")[own, :, columns].astype(np.float64))
        held = self._held[max(rows.start - self._in_files, 0) : max(rows.stop - self._in_files, 0)]
        parts += [row[None, :, columns].double().numpy() for row in held]
        return torch.from_numpy(np.concatenate(parts))

    def close(self) -> None:
        """Remove all files."""
        for _, _, path in self._files:
            path.unlink(missing_ok=True)
        self._files, self._held = [], []
        if self._scratch is not None:
            self._scratch.cleanup()
            self._scratch = None


def keep(path: Path, values: Tensor, residues: int) -> None:
    """Write a file of a pass, whole or not at all.

    Args:
        path: The file.
        values: What to write, on the CPU.
        residues: n of the pass, for the message.

    Raises:
        DataError: It cannot be written.
    """
    try:
        with atomic_file(path) as handle:
            np.save(handle, values.numpy())
    except OSError as error:
        raise DataError(
            f"{path}: cannot be written ({error.strerror or error}); the Jacobian of {residues} residues takes "
            f"{1600 * residues**2 / 1e9:.1f} GB there: give a folder with room (model.cache_dir; in Python folder, or "
            "TMPDIR), or a smaller window"
        ) from error
