"""Chains of structure files, read once: with C-alpha positions, which the cache of the data module does not keep."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from contactlm.atomic import atomic_file
from contactlm.data.cache import READER_VERSION
from contactlm.structure.files import split_name
from contactlm.structure.parse import read_chains
from contactlm.types import Chain

FOLDER = "benchmark"  # below the cache folder


class ChainReader:
    """Reads structure files through the cache folder; the last file's chains stay at hand.

    Args:
        cache_dir: The cache folder; one that cannot be written costs time only.
    """

    def __init__(self, cache_dir: Path) -> None:
        self._folder = cache_dir / FOLDER / "chains"
        self._last: tuple[Path, dict[str, Chain]] | None = None  # lists name several parts of one chain

    def chains(self, path: Path) -> Mapping[str, Chain]:
        """Chains of a file by the author's chain id.

        Raises:
            StructureError: It cannot be read.
        """
        if self._last is None or self._last[0] != path:
            stem = split_name(path)[0]
            self._last = path, {chain.id[len(stem) + 1 :]: chain for chain in self._read(path)}
        return self._last[1]

    def _read(self, path: Path) -> list[Chain]:
        kept = self._kept(path)
        chains = None if kept is None else _load(kept)
        if chains is None:
            chains = read_chains(path)
            if kept is not None:
                _keep(chains, kept)
        return chains

    def _kept(self, path: Path) -> Path | None:
        """Where a file's chains are kept; None where it cannot be looked at, which reading it will tell."""
        try:
            stat = path.stat()
        except OSError:
            return None
        parts = (path.absolute(), stat.st_size, stat.st_mtime_ns, READER_VERSION)
        return self._folder / f"{hashlib.sha256(repr(parts).encode()).hexdigest()[:40]}.npz"


def _keep(chains: list[Chain], path: Path) -> None:
    arrays = {name: np.concatenate([getattr(chain, name) for chain in chains]) for name in ("ca", "cb", "resolved")}
    texts = {"ids": [chain.id for chain in chains], "sequences": [chain.sequence for chain in chains]}
    try:
        with atomic_file(path) as handle:
            np.savez_compressed(handle, **arrays, **texts)  # type: ignore[arg-type]
    except OSError:
        return  # it is read again


def _load(path: Path) -> list[Chain] | None:
    """The chains that were kept; None where there are none, or they are damaged."""
    try:
        with np.load(path, allow_pickle=False) as kept:
            ids, sequences = kept["ids"].tolist(), kept["sequences"].tolist()
            ends = np.cumsum([len(sequence) for sequence in sequences])[:-1]
            parts = zip(*(np.split(kept[name], ends) for name in ("ca", "cb", "resolved")), strict=True)
            chains = [Chain(*row[:2], *row[2]) for row in zip(ids, sequences, parts, strict=True)]
    except (OSError, EOFError, KeyError, ValueError, TypeError, zipfile.BadZipFile):
        return None
    return chains
