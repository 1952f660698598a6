"""The loaders: of training batches, of a given number of crops or of a bounded cost; and of whole chains."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from contactlm.data.batches import CostBound, CostSampler, cut
from contactlm.data.dataset import Batch, CropDataset, Sample, collate
from contactlm.data.store import ChainStore
from contactlm.data.stream import StreamLoader, StreamSampler
from contactlm.types import CHAIN_JUMP

Complete = Callable[[Mapping[str, Any]], Mapping[str, Any]]
PROCESSOR_PAIRS = 256 * 1024
"""Residue pairs of a batch of whole chains on a CPU: more fall out of its caches."""
DEVICE_PAIRS = 32 * 1024**2
"""Residue pairs of such a batch on an accelerator: several batches of passes, so that the results of one come back
while the next is computed. A map takes four bytes a pair."""
log = logging.getLogger(__name__)


class WholeBatches(Dataset[list[Sample]]):
    """The samples of a stream, a list of them at a time, for a sampler that yields lists of numbers."""

    def __init__(self, dataset: CropDataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        """Samples of one epoch."""
        return len(self.dataset)

    def __getitem__(self, numbers: list[int]) -> list[Sample]:
        """Make the samples of one batch."""
        return [self.dataset[n] for n in numbers]


def collate_weighted(samples: Sequence[Sample], mean_size: float) -> Batch:
    """Collate a batch and say how much its loss, a mean over proteins, has to count.

    With a weight of B / mean B every protein counts the same, whether it came in a large batch or in a small one: the
    mean over steps, accumulated batches and processes is then the mean over proteins.
    """
    batch = collate(samples)
    batch["loss_weight"] = torch.tensor(len(samples) / mean_size)
    return batch


@dataclass
class Completed:
    """Collates samples, then lets ``complete`` add to the batch, in the process that loads; None: nothing is added."""

    collate: Callable[[Sequence[Sample]], Mapping[str, Any]]
    complete: Complete | None = None

    def __call__(self, samples: Sequence[Sample]) -> Mapping[str, Any]:
        """The batch."""
        batch = self.collate(samples)
        return batch if self.complete is None else self.complete(batch)


def training_loader(
    dataset: CropDataset,
    size: int | CostBound,
    rank: tuple[int, int],
    progress: Callable[[], tuple[int, int]],
    complete: Complete | None = None,
    **options: Any,
) -> StreamLoader:
    """Batches of crops."""
    if isinstance(size, int):
        sampler = StreamSampler(len(dataset), size, *rank)
        return StreamLoader(dataset, sampler, progress, collate_fn=Completed(collate, complete), **options)
    by_cost = CostSampler(dataset, size, *rank)
    if rank[0] == 0:
        log.info("%s", by_cost.describe())
    collate_fn = Completed(partial(collate_weighted, mean_size=by_cost.mean_size), complete)
    return StreamLoader(WholeBatches(dataset), by_cost, progress, collate_fn=collate_fn, **options)


class ShareSampler(DistributedSampler):
    """Deals whole chains to processes, a list a batch: each chain exactly once, none twice to even out the shares."""

    def __init__(self, store: ChainStore, size: int | CostBound, rank: int = 0, world_size: int = 1) -> None:
        own = np.arange(rank, len(store), world_size)
        if isinstance(size, int):
            parts = [(start, start + size) for start in range(0, len(own), size)]
        else:
            parts = cut(size.of(np.asarray(store.lengths)[own]).tolist(), size.most)
        self.batches = [own[slice(*part)].tolist() for part in parts]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.batches)

    def set_epoch(self, epoch: int) -> None:
        """Evaluation is the same in every epoch."""


def bound_for(device_type: str) -> CostBound:
    """What a batch of whole chains may cost on a kind of device."""
    return CostBound("pairs", PROCESSOR_PAIRS if device_type == "cpu" else DEVICE_PAIRS)


def most_chains(size: int | CostBound, length: int) -> int:
    """Chains of so many residues in a batch of a size, at most."""
    return size if isinstance(size, int) else max(1, size.most // length**2)


def whole_loader(
    store: ChainStore, size: int | CostBound, rank: int, world_size: int, jump: int = CHAIN_JUMP, **options: Any
) -> DataLoader[Any]:
    """Batches of this process's share of whole chains; the arguments are those of :class:`ShareSampler`.

    ``jump`` is that of :class:`contactlm.data.dataset.CropDataset`.

    A process without a share gets one batch of no chains: it takes part in what all processes do together.
    """
    if rank >= len(store):
        return DataLoader([None], collate_fn=_no_chains, **options)  # type: ignore[arg-type]  # a list is a dataset
    dataset = WholeBatches(CropDataset(store, 0, "whole", shuffle=False, jump=jump))
    sampler = ShareSampler(store, size, rank, world_size)
    return DataLoader(dataset, batch_size=None, sampler=sampler, **{"collate_fn": collate, **options})


def _no_chains(_: Sequence[None]) -> Batch:
    """A batch of B = 0 chains."""
    nothing = torch.zeros(0, dtype=torch.int64)
    tokens = nothing.view(0, 3)
    return Batch(
        ids=[], tokens=tokens, attention_mask=tokens.bool(), cb=torch.zeros(0, 1, 3),
        lengths=nothing, starts=nothing, indices=nothing, residue_count=0,
    )  # fmt: skip
