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

A run resumed with another bound or another W batches the remaining samples of its epoch, as above, and
then takes whole passes: again each sample once. What was taken follows from the bounds, W's and numbers of steps
before, which a checkpoint keeps. From then on an epoch, still K batches, does not begin where a pass does.
"""

from __future__ import annotations

import heapq
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from contactlm.data.crop import Stream, generator
from contactlm.data.dataset import CropDataset
from contactlm.data.stream import EpochSampler
from contactlm.types import DataError

SPECIAL = 2  # <cls> and <eos>
MOVE = 0.03  # a length's largest random move, relative
MOST_PADDING = 0.035  # of the tokens of an epoch whose lengths are not moved

Parts = list[tuple[int, int]]  # samples start … stop − 1 of an order make a batch
Taken = tuple[Literal["tokens", "pairs"], int, int, int]  # of a pass: a bound's unit and size, processes, their steps

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CostBound:
    """What one batch may cost, padding included: B × T tokens (T = L + 2), or B × L² residue pairs."""

    unit: Literal["tokens", "pairs"]
    most: int

    def of(self, lengths: NDArray[Any]) -> NDArray[Any]:
        """Cost of one sample of each length, given in residues."""
        return lengths + SPECIAL if self.unit == "tokens" else lengths**2

    @classmethod
    def of_options(cls, batch_tokens: int | None, batch_pairs: int | None) -> CostBound | None:
        """The bound that is given, if any."""
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
    """Make sure that options are at least 1."""
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

    They are parts of ``lengths``, int64 (N,); at least ``count`` (N at most), of which at most a share is padding.
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

    See the head of this file. Batch b of epoch e is a pure function of (seed, e, b, rank, world size), and of what was
    taken with other bounds and processes by the run that is resumed.
    """

    batch_size = None  # what it yields are whole batches

    def __init__(self, dataset: CropDataset, bound: CostBound, rank: int = 0, world_size: int = 1) -> None:
        super().__init__(rank, world_size)
        self.stream, self.bound = dataset, bound
        longest = dataset.longest()
        self.batches = self._steps_for(longest)
        self.alone = int((bound.of(longest) > bound.most).sum())
        self._begin((0, 0), 0, [], 0)

    def _steps_for(self, lengths: NDArray[np.int64]) -> int:
        """Steps that samples of these lengths take at most, whatever the random moves."""
        longest = np.sort(lengths)[::-1]
        # a batch's longest sample was moved up to stand behind at most (1 + MOVE) / (1 − MOVE) times its length
        parts = cut(self.bound.of(longest * ((1 + MOVE) / (1 - MOVE))).tolist(), self.bound.most)
        parts = split(parts, longest, most_padding=MOST_PADDING)
        return -(-len(parts) // self.num_replicas)

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
        known, steps = -1, []
        for batch in range(self.first_batch, self.batches):
            number, taken, step = self._at(self.epoch, batch)
            if number != known:
                known, steps = number, self.plan(number, taken)
            yield steps[step][self.rank].tolist()

    def plan(self, number: int, taken: Sequence[Taken] = ()) -> list[list[NDArray[np.int64]]]:
        """All batches of a pass over the samples: for each step, the sample numbers of each process."""
        size = len(self.stream)
        left = np.setdiff1d(np.arange(size), self._gone(number, taken) - number * size)
        if not len(left):
            return []
        lengths = self.stream.residues_of(number)
        batches = self._steps_for(lengths[left]) if taken else self.batches
        rng = generator(self.stream.seed, Stream.BATCHES, number)
        indices = np.resize(left, max(len(left), batches * self.num_replicas))
        lengths = lengths[indices]
        order = np.argsort(-lengths * (1 + MOVE * rng.uniform(-1, 1, len(lengths))), kind="stable")
        indices, lengths = indices[order], lengths[order]
        parts = cut(self.bound.of(lengths).tolist(), self.bound.most)
        parts = split(parts, lengths, batches * self.num_replicas)
        parts.sort(key=lambda part: (part[1] - part[0]) * int(self.bound.of(lengths[slice(*part)].max())))
        dealt = rng.permuted(np.arange(len(parts)).reshape(batches, self.num_replicas), axis=1)
        numbers = number * size + indices
        return [[numbers[slice(*parts[k])] for k in step] for step in rng.permutation(dealt)]

    def _gone(self, number: int, taken: Sequence[Taken]) -> NDArray[np.int64]:
        """Numbers of the samples of a pass that others have taken."""
        gone = [np.zeros(0, np.int64)]
        for k, (unit, most, processes, steps) in enumerate(taken):
            other = CostSampler(self.stream, CostBound(unit, most), 0, processes)
            gone += [batch for step in other.plan(number, taken[:k])[:steps] for batch in step]
        return np.concatenate(gone)

    def _begin(self, at: tuple[int, int], number: int, taken: list[Taken], step: int) -> None:
        """Let a batch of an epoch be that step of a pass, of which others have taken something."""
        self._from = (*at, number, taken, step)
        self._steps_of_first = len(self.plan(number, taken)) if taken else self.batches

    def _at(self, epoch: int, batch: int) -> tuple[int, list[Taken], int]:
        """Which pass a batch of an epoch is of, what others have taken of that, and the step."""
        known_epoch, known_batch, number, taken, step = self._from
        # an epoch that had more batches than it has now is over
        step += (epoch - known_epoch) * self.batches + batch - min(known_batch, self.batches)
        if step < self._steps_of_first:
            return number, taken, step
        passes, step = divmod(step - self._steps_of_first, self.batches)
        return number + 1 + passes, [], step

    def place(self, epoch: int, batch: int) -> dict[str, Any]:
        """Where in which pass a batch stands, and what was taken of that, by this run last."""
        number, taken, step = self._at(epoch, batch)
        here = [list(each) for each in (*taken, (self.bound.unit, self.bound.most, self.num_replicas, step))]
        return {**super().place(epoch, batch), "size": len(self.stream), "pass": number, "taken": here}

    def resume(self, epoch: int, batch: int, batches: int | None = None, **place: Any) -> None:
        """Begin with a batch, as :meth:`EpochSampler.resume` does, or with what ``place`` says was not yet taken."""
        known = "taken" in place and place["size"] == len(self.stream)
        super().resume(epoch, batch, self.batches if known else batches)
        if not known:  # other chains, batches of one size, or an older version
            self._begin((epoch, batch), epoch, [], min(batch, self.batches))
            return
        *before, last = (tuple(each) for each in place["taken"])
        if last[:3] == (self.bound.unit, self.bound.most, self.num_replicas):
            self._begin((epoch, batch), place["pass"], before, last[3])
            return
        self._begin((epoch, batch), place["pass"], [*before, last] if last[3] else before, 0)
        if self.rank == 0:
            log.warning("%s", self._change(*last[:3]))

    def _change(self, unit: str, most: int, processes: int) -> str:
        """Say what another bound, or another number of processes, changes."""
        _, _, number, taken, _ = self._from
        left = len(self.stream) - len(np.unique(self._gone(number, taken)))
        return (
            f"the resumed run had batches of at most {most} {unit} in {processes} processes, now of at most "
            f"{self.bound.most} {self.bound.unit} in {self.num_replicas}: it finishes the epoch with the remaining "
            f"{left} samples, but steps differ from here on (learning rate and schedule were set for the earlier ones)"
        )

    def padding(self, epoch: int = 0) -> float:
        """Fraction of the tokens of an epoch that is padding."""
        lengths = self.stream.residues_of(epoch)
        sizes = [lengths[batch % len(self.stream)] for step in self.plan(epoch) for batch in step]
        ends = np.cumsum([len(batch) for batch in sizes]).tolist()
        return padding(np.concatenate(sizes), list(pairwise([0, *ends])))

    def describe(self) -> str:
        """One line for the log."""
        alone = f"; {self.alone} samples above the limit are batches of one" if self.alone else ""
        twice = self.samples - len(self.stream)
        again = f"; {twice} samples are used twice an epoch to give every process a batch" if twice else ""
        return (
            f"batches of at most {self.bound.most} {self.bound.unit}: {self.batches} an epoch and process, "
            f"{self.mean_size:.1f} samples each on average, {self.padding():.1%} padding{alone}{again}"
        )
