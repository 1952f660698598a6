"""The loader of training batches: of a given number of crops, or of a bounded cost, and what others add to them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from contactlm.data.batches import CostBound, CostSampler, WholeBatches, collate_weighted
from contactlm.data.dataset import CropDataset, Sample, collate
from contactlm.data.stream import StreamLoader, StreamSampler

Complete = Callable[[Mapping[str, Any]], Mapping[str, Any]]
log = logging.getLogger(__name__)


@dataclass
class Completed:
    """Puts samples together to a batch, and has something added to it, in the process that loads.

    Attributes:
        collate: Makes the batch.
        complete: Gives it back with more in it; None: nothing is added.
    """

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
    """Batches of crops.

    Args:
        dataset: The stream of crops.
        size: Crops a batch, or what a batch may cost.
        rank: The number of this process, and of all.
        progress: As of :class:`~contactlm.data.stream.StreamLoader`.
        complete: Adds to every batch.
        options: Further arguments of the data loader.
    """
    if isinstance(size, int):
        sampler = StreamSampler(len(dataset), size, *rank)
        return StreamLoader(dataset, sampler, progress, collate_fn=Completed(collate, complete), **options)
    by_cost = CostSampler(dataset, size, *rank)
    if rank[0] == 0:
        log.info("%s", by_cost.describe())
    collate_fn = Completed(partial(collate_weighted, mean_size=by_cost.mean_size), complete)
    return StreamLoader(WholeBatches(dataset), by_cost, progress, collate_fn=collate_fn, **options)
