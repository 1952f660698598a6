"""Complexes from chains, all chains of a file as one entry of a store; and what follows from an entry's chains."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate, pairwise

import numpy as np
from numpy.typing import NDArray

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
    return replace(  # of the kind of store that came
        store,
        ids=[_name(store.ids[span]) for span in spans],
        starts=store.starts[first],
        lengths=np.array([store.lengths[span].sum() for span in spans], dtype=np.int64),
        meta={**store.meta, "file_of_chain": files[first].tolist()},
        chain_lengths=[tuple(store.lengths[span].tolist()) for span in spans],
    )


def chain_sequences(store: ChainStore) -> tuple[list[str], NDArray[np.int64]]:
    """Sequences of all n chains, those of complexes one by one, and the entry of each, int64 (n,), ascending."""
    sequences = [store.sequence_of(i) for i in range(len(store))]
    if store.chain_lengths is None:
        return sequences, np.arange(len(store))
    ends = [list(accumulate(lengths)) for lengths in store.chain_lengths]
    chains = [s[a:b] for s, stops in zip(sequences, ends, strict=True) for a, b in pairwise([0, *stops])]
    return chains, np.repeat(np.arange(len(store)), [len(stops) for stops in ends])


def join_groups(groups: NDArray[np.int64], entries: NDArray[np.int64]) -> NDArray[np.int64]:
    """Group entries by their chains: two that have chains of one group are in one group, and so on from there.

    Args:
        groups: Group number of each of n chains, int64 (n,).
        entries: The entry of each chain, int64 (n,), ascending, each entry at least once.

    Returns:
        Group number of each entry, 0 … G − 1 in order of appearance; ``groups`` itself where each is of one chain.
    """
    _, first = np.unique(entries, return_index=True)
    if len(first) == len(groups):
        return groups
    labels = np.arange(int(groups.max()) + 1)
    while True:  # the smallest label spreads over entries that share a group, and over groups that share an entry
        of_entry = np.minimum.reduceat(labels[groups], first)
        spread = labels.copy()
        np.minimum.at(spread, groups, of_entry[entries])
        if (spread == labels).all():
            break
        labels = spread
    numbers: dict[int, int] = {}
    return np.array([numbers.setdefault(int(label), len(numbers)) for label in of_entry], dtype=np.int64)


def best_of_chains(values: NDArray[np.float32], entries: NDArray[np.int64]) -> NDArray[np.float32]:
    """Largest value of each entry's chains; the arguments are as for :func:`join_groups`."""
    return np.maximum.reduceat(values, np.unique(entries, return_index=True)[1]) if len(values) else values


def _name(ids: Sequence[str]) -> str:
    """What the ids of one file's chains share before the last ``_``: ``1abc`` of ``1abc_A`` and ``1abc_B``."""
    return ids[0] if len(ids) == 1 else os.path.commonprefix(ids).rpartition("_")[0]  # noqa: RUF071 - no paths
