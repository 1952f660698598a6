"""Complexes from chains: all chains of a file as one entry of a store."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np

from contactlm.data.store import ChainStore


def join_chains(store: ChainStore) -> ChainStore:
    """Make one entry of the chains of each file, in file order; no residue is copied.

    Args:
        store: Chains as they were read: end to end, with ``file_of_chain`` in the meta data.

    Returns:
        A store with ``chain_lengths``. An entry is called as its file's stem, or as its chain when it has only one.
        ``file_of_chain`` in its meta data holds the file of each entry.

    Raises:
        ValueError: Chains of one file do not lie next to each other (some were left out before).
    """
    files = np.asarray(store.meta["file_of_chain"], dtype=np.int64)
    is_first = np.diff(files, prepend=-1) != 0
    if (store.starts[1:] != (store.starts + store.lengths)[:-1])[~is_first[1:]].any():
        raise ValueError("chains of one file do not lie end to end: join them before any is left out")
    first = np.flatnonzero(is_first)
    spans = [slice(start, stop) for start, stop in zip(first, np.append(first, len(store))[1:], strict=True)]
    return ChainStore(
        [_name(store.ids[span]) for span in spans],
        store.starts[first],
        np.array([store.lengths[span].sum() for span in spans], dtype=np.int64),
        store.cb,
        store.tokens,
        {**store.meta, "file_of_chain": files[first].tolist()},
        [tuple(store.lengths[span].tolist()) for span in spans],
    )


def _name(ids: Sequence[str]) -> str:
    """What the ids of one file's chains share before the last ``_``: ``1abc`` of ``1abc_A`` and ``1abc_B``."""
    return ids[0] if len(ids) == 1 else os.path.commonprefix(ids).rpartition("_")[0]  # noqa: RUF071 - no paths
