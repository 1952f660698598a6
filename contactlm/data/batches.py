"""Batches by cost: samples of like length together, so many that a batch costs no more than a bound.

An epoch of N samples is cut into K batches for each of W processes, and all of it follows from (seed, epoch, W):

* *Like lengths.* Samples are ordered by length, each length moved by up to 3 % at random, so that neighbours mix anew
  every epoch, and cut from the longest on: a batch is full when one more sample would take its padded cost over the
  bound. A sample that alone costs more is a batch alone.
* *Always K.* A trainer counts an epoch's batches once, so K must not change. It is what the worst epoch needs: cutting
  lengths that are stretched by all that the random moves can do takes at least as many batches as any epoch's cut, and
  batches whose lengths are far apart are split until at most 3.5 % is padding. An epoch whose cut takes fewer batches
  than that splits those where it saves most padding.
* *Each sample once.* Nothing is carried over to the next epoch or left out. Only where there are fewer samples than
  the W processes need to have a batch each, up to W − 1 are taken again (the epoch's first).
* *Like costs.* The W batches of one step are neighbours in cost, dealt to the processes at random; the steps are
  shuffled.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from contactlm.data.crop import Stream, generator
from contactlm.data.dataset import Batch, CropDataset, Sample, collate
from contactlm.data.resume import EpochSampler
from contactlm.types import DataError

SPECIAL = 2  # <cls> and <eos>
MOVE = 0.03  # a length's largest random move, relative
MOST_PADDING = 0.035  # of the tokens of an epoch whose lengths are not moved

Parts = list[tuple[int, int]]  # samples start … stop − 1 of an order make a batch


@dataclass(frozen=True)
class CostBound:
    """What one batch may cost, padding included: B × T tokens (T = L + 2), or B × L² residue pairs.

    Attributes:
        unit: What is counted.
        most: The bound.
    """

    unit: Literal["tokens", "pairs"]
    most: int

    def of(self, lengths: NDArray[Any]) -> NDArray[Any]:
        """Cost of one sample of each length, given in residues."""
        return lengths + SPECIAL if self.unit == "tokens" else lengths**2

    @classmethod
    def of_options(cls, batch_tokens: int | None, batch_pairs: int | None) -> CostBound | None:
        """The bound that is given, if any.

        Raises:
            DataError: Both are given, or one that is not positive.
        """
        if batch_tokens is not None and batch_pairs is not None:
            raise DataError(
                f"batch_tokens is {batch_tokens} and batch_pairs {batch_pairs}: give one of them, or neither"
            )
        given = {"tokens": batch_tokens, "pairs": batch_pairs}
        check_positive(**{f"batch_{unit}": most for unit, most in given.items() if most is not None})
        if batch_tokens is not None:
            return cls("tokens", batch_tokens)
        return None if batch_pairs is None else cls("pairs", batch_pairs)


def check_positive(**values: int) -> None:
    """Make sure that options are at least 1.

    Raises:
        DataError: One is not.
    """
    for name, value in values.items():
        if value < 1:
            raise DataError(f"{name} is {value}; it must be at least 1")


def cut(costs: Sequence[float], most: float) -> Parts:
    """Cut samples, in the order given, into batches: number × largest cost within the bound, or one sample alone."""
    starts: list[int] = []
    largest = 0.0
    for number, cost in enumerate(costs):
        largest = max(largest, cost)
        if not starts or (number - starts[-1] + 1) * largest > most:
            starts.append(number)
            largest = cost
    return list(pairwise([*starts, len(costs)]))


def padding(lengths: NDArray[np.int64], parts: Parts) -> float:
    """Fraction of the tokens of batches that is padding."""
    tokens = lengths + SPECIAL
    padded = sum((stop - start) * int(tokens[start:stop].max()) for start, stop in parts)
    return 1 - int(tokens.sum()) / padded if padded else 0.0


def split(parts: Parts, lengths: NDArray[np.int64], count: int = 0, most_padding: float = 1.0) -> Parts:
    """Split batches in two, always where it saves most padding, until they are many enough and padded little enough.

    Args:
        parts: Batches of ``lengths``.
        lengths: Residues of each sample in their order, int64 (N,).
        count: So many batches at least (N at most).
        most_padding: Largest fraction of padding.
    """
    done: Parts = []
    heap: list[Any] = []
    for part in parts:
        _push(heap, done, part, lengths)
    tokens = int(lengths.sum()) + SPECIAL * len(lengths)
    padded = tokens / (1 - padding(lengths, parts))
    while heap and (len(heap) + len(done) < count or padded * (1 - most_padding) > tokens):
        less_saved, _, start, middle, stop = heapq.heappop(heap)
        padded += less_saved
        _push(heap, done, (start, middle), lengths)
        _push(heap, done, (middle, stop), lengths)
    return sorted(done + [(start, stop) for _, _, start, _, stop in heap])


def _push(heap: list[Any], done: Parts, part: tuple[int, int], lengths: NDArray[np.int64]) -> None:
    """Put a batch where it belongs: with its best split among those that can be split, or among those that cannot."""
    start, stop = part
    size = stop - start
    if size < 2:
        done.append(part)
        return
    own = lengths[start:stop]
    left, right = np.maximum.accumulate(own), np.maximum.accumulate(own[::-1])[::-1]
    first = np.arange(1, size)
    saved = size * left[-1] - first * left[:-1] - (size - first) * right[1:]
    best = np.flatnonzero(saved == saved.max())
    middle = start + 1 + int(best[np.abs(2 * best + 2 - size).argmin()])  # of equally good ones the most even
    heapq.heappush(heap, (-int(saved.max()), -size, start, middle, stop))


class CostSampler(EpochSampler):
    """Numbers of the samples this process takes, a list a batch, every batch within a bound of its cost.

    See the head of this file. Batch b of epoch e is a pure function of (seed, e, b, rank, world size).

    Args:
        dataset: The stream of samples.
        bound: What a batch may cost.
        rank: This process.
        world_size: All processes.
    """

    batch_size = None  # what it yields are whole batches

    def __init__(self, dataset: CropDataset, bound: CostBound, rank: int = 0, world_size: int = 1) -> None:
        super().__init__(rank, world_size)
        self.stream, self.bound = dataset, bound
        longest = np.sort(dataset.longest())[::-1]
        # a batch's longest sample was moved up to stand behind at most (1 + MOVE) / (1 − MOVE) times its length
        parts = cut(bound.of(longest * ((1 + MOVE) / (1 - MOVE))).tolist(), bound.most)
        parts = split(parts, longest, most_padding=MOST_PADDING)
        self.batches = -(-len(parts) // world_size)
        self.alone = int((bound.of(longest) > bound.most).sum())

    @property
    def samples(self) -> int:
        """Samples of an epoch, of all processes, those taken twice included."""
        return max(len(self.stream), self.batches * self.num_replicas)

    @property
    def mean_size(self) -> float:
        """Samples of a batch, on average; the same in every epoch."""
        return self.samples / (self.batches * self.num_replicas)

    def __len__(self) -> int:
        return self.batches

    def __iter__(self) -> Iterator[list[int]]:
        steps = self.plan(self.epoch)
        for step in steps[self.first_batch :]:
            yield step[self.rank].tolist()

    def plan(self, epoch: int) -> list[list[NDArray[np.int64]]]:
        """All batches of an epoch: for each step, the sample numbers of each process."""
        rng = generator(self.stream.seed, Stream.BATCHES, epoch)
        indices = np.resize(np.arange(len(self.stream)), self.samples)
        lengths = self.stream.residues_of(epoch)[indices]
        order = np.argsort(-lengths * (1 + MOVE * rng.uniform(-1, 1, len(lengths))), kind="stable")
        indices, lengths = indices[order], lengths[order]
        parts = cut(self.bound.of(lengths).tolist(), self.bound.most)
        parts = split(parts, lengths, self.batches * self.num_replicas)
        parts.sort(key=lambda part: (part[1] - part[0]) * int(self.bound.of(lengths[slice(*part)].max())))
        dealt = rng.permuted(np.arange(len(parts)).reshape(self.batches, self.num_replicas), axis=1)
        numbers = epoch * len(self.stream) + indices
        return [[numbers[slice(*parts[k])] for k in step] for step in rng.permutation(dealt)]

    def padding(self, epoch: int = 0) -> float:
        """Fraction of the tokens of an epoch that is padding."""
        lengths = self.stream.residues_of(epoch)
        sizes = [lengths[batch % len(self.stream)] for step in self.plan(epoch) for batch in step]
        ends = np.cumsum([len(batch) for batch in sizes]).tolist()
        return padding(np.concatenate(sizes), list(pairwise([0, *ends])))

    def describe(self) -> str:
        """One line for the log."""
        alone = f"; {self.alone} samples that alone cost more are batches alone" if self.alone else ""
        twice = self.samples - len(self.stream)
        again = f"; {twice} samples are taken twice an epoch, so that every process has a batch" if twice else ""
        return (
            f"batches of at most {self.bound.most} {self.bound.unit}: {self.batches} an epoch and process, "
            f"{self.mean_size:.1f} samples each on average, {self.padding():.1%} padding{alone}{again}"
        )


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
