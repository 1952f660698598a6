"""What callbacks count in a step, summed over processes in one reduction."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise
from weakref import WeakKeyDictionary

import lightning as L
import torch
from torch import Tensor

Give = Callable[[], Sequence[int] | Tensor]
Take = Callable[[list[int]], None]


class StepSums:
    """Collects whole numbers of all callbacks of a trainer, reduces them at once, and hands out the sums.

    A callback joins when ``fit`` starts. Whoever needs its sums first in a step asks for the exchange: the guard before
    the optimizer's step, or whoever counts batches after it. On one process nothing is reduced.
    """

    def __init__(self) -> None:
        self._members: dict[L.Callback, tuple[Give, Take]] = {}
        self._exchanged_in = -1  # number of a batch

    @classmethod
    def of(cls, trainer: L.Trainer) -> StepSums:
        """Those of a trainer."""
        return _OF_TRAINERS.setdefault(trainer, cls())

    def join(self, callback: L.Callback, give: Give, take: Take) -> None:
        """Take part; callbacks join in the same order in all processes.

        Args:
            callback: Who; once it has joined, it stays.
            give: This process's numbers since it was asked last, always as many.
            take: Gets their sums over all processes.
        """
        self._members[callback] = give, take

    def exchange(self, trainer: L.Trainer, early: bool = False) -> None:
        """Sum everything now; a collective call.

        Args:
            trainer: Whose processes.
            early: Whether more may be counted in this step, which its end has to sum.
        """
        if not early:
            self._exchanged_in = trainer.fit_loop.total_batch_idx
        given = [give() for give, _ in self._members.values()]
        if trainer.world_size == 1:
            sums = [numbers.tolist() if isinstance(numbers, Tensor) else list(numbers) for numbers in given]
        else:
            sums = _reduced(trainer, given)
        for (_, take), own in zip(self._members.values(), sums, strict=True):
            take(own)

    def settle(self, trainer: L.Trainer) -> None:
        """At the end of a batch: sum what was not summed in its step.

        Batches that are accumulated on several processes wait for the one that ends with a step.
        """
        if self._exchanged_in == trainer.fit_loop.total_batch_idx:
            return
        if trainer.world_size == 1 or not trainer.fit_loop._should_accumulate():
            self.exchange(trainer)


_OF_TRAINERS: WeakKeyDictionary[L.Trainer, StepSums] = WeakKeyDictionary()


def _reduced(trainer: L.Trainer, given: Sequence[Sequence[int] | Tensor]) -> list[list[int]]:
    device = trainer.strategy.root_device
    numbers = [torch.as_tensor(own, dtype=torch.int64, device=device) for own in given]
    packed: Tensor = trainer.strategy.reduce(torch.cat(numbers), reduce_op="sum")
    sums, ends = packed.tolist(), accumulate((len(own) for own in given), initial=0)
    return [sums[start:stop] for start, stop in pairwise(ends)]
