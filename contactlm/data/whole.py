"""Batches of whole chains, for evaluation and predictions: so many as cost a device about the same."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from torch.utils.data import DataLoader

from contactlm.data.batches import CostBound, WholeBatches, cut
from contactlm.data.dataset import CropDataset, ShareSampler, collate, share_loader
from contactlm.data.store import ChainStore

PROCESSOR_PAIRS = 256 * 1024
"""Residue pairs of a batch on a CPU: more fall out of its caches."""
DEVICE_PAIRS = 32 * 1024**2
"""Residue pairs of a batch on an accelerator: several batches of passes, so that the results of one come back while
the next is computed. A map takes four bytes a pair."""


class ShareBatches(ShareSampler):
    """Deals chains to processes as :class:`ShareSampler` does, and gives lists of them, each a batch.

    Args:
        store: The chains, sorted by length.
        bound: What a batch may cost; a chain that costs more is a batch alone.
        rank: This process.
        world_size: All processes.
    """

    def __init__(self, store: ChainStore, bound: CostBound, rank: int = 0, world_size: int = 1) -> None:
        super().__init__(len(store), rank, world_size)
        own = np.arange(rank, len(store), world_size)
        parts = cut(bound.of(np.asarray(store.lengths)[own]).tolist(), bound.most)
        self.batches = [own[slice(*part)].tolist() for part in parts]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.batches)


def bound_for(device_type: str) -> CostBound:
    """What a batch of whole chains may cost on a kind of device."""
    return CostBound("pairs", PROCESSOR_PAIRS if device_type == "cpu" else DEVICE_PAIRS)


def most_chains(size: int | CostBound, length: int) -> int:
    """Chains of so many residues in a batch of a size, at most."""
    return size if isinstance(size, int) else max(1, size.most // length**2)


def whole_loader(
    store: ChainStore, size: int | CostBound, rank: int, world_size: int, **options: Any
) -> DataLoader[Any]:
    """Batches of this process's share of whole chains.

    Args:
        store: The chains, sorted by length.
        size: Chains a batch, or what a batch may cost.
        rank: This process.
        world_size: All processes.
        options: Further arguments of the data loader.
    """
    if isinstance(size, int) or rank >= len(store):
        return share_loader(store, size if isinstance(size, int) else 1, rank, world_size, **options)
    batches = ShareBatches(store, size, rank, world_size)
    dataset = WholeBatches(CropDataset(store, 0, "whole", shuffle=False))
    return DataLoader(dataset, batch_size=None, sampler=batches, **{"collate_fn": collate, **options})
