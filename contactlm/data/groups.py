"""Groups of related or equal chains of a store, from its sequences or from what was recorded when it was packed."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import overload

import numpy as np
from numpy.typing import NDArray

from contactlm.data.complexes import chain_sequences
from contactlm.data.packed.store import ClusterRule, PackedStore
from contactlm.data.store import ChainStore
from contactlm.homology.cluster import ClusterOptions, cluster_sequences


def chain_keys(store: ChainStore) -> tuple[list[str], NDArray[np.int64]]:
    """What is equal for chains of equal sequence, and the entry of each chain, int64 (n,), ascending.

    Of a packed set, whose sequences would have to be fetched, these are digests; otherwise the sequences. Those of
    complexes come one by one.
    """
    return store.chain_keys() if isinstance(store, PackedStore) else chain_sequences(store)


def cluster_chains(
    store: ChainStore, rule: ClusterRule, cache_dir: Path | None
) -> tuple[NDArray[np.int64], ClusterOptions]:
    """Sequence cluster of each chain, in the order of :func:`chain_keys`.

    Args:
        store: Chains that were selected as the rule says.
        rule: When chains are related.
        cache_dir: The cache folder, for what has to be computed; None: it is not kept.

    Returns:
        The clusters, int64 (n,): those recorded in a packed set when they are what the rule asks for; otherwise they
        are computed. And by which options, with the program that was used.
    """
    recorded = store.recorded_groups(rule) if isinstance(store, PackedStore) else None
    if recorded is not None:
        return recorded
    sequences = chain_sequences(store)[0]
    clusters = cluster_sequences(sequences, rule.options, cache_dir, progress=True)
    return clusters, rule.options.chosen(len(set(sequences)))


class LazySequences(Sequence[str]):
    """The sequences of a store's chains, those of complexes one by one, read when the first is asked for.

    Args:
        store: The store.
    """

    def __init__(self, store: ChainStore) -> None:
        self._store = store

    @cached_property
    def _sequences(self) -> list[str]:
        return chain_sequences(self._store)[0]

    def __len__(self) -> int:
        return len(self._sequences)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        return self._sequences[index]
