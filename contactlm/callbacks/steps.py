"""What callbacks share in a training step: each other, the moments to log, and sums over processes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise
from typing import TypeVar
from weakref import WeakKeyDictionary

import lightning as L
import torch
from torch import Tensor

Give = Callable[[], Sequence[int] | Tensor]
Take = Callable[[list[int]], None]
Found = TypeVar("Found", bound=L.Callback)


def find_callback(trainer: L.Trainer, kind: type[Found]) -> Found | None:
    """The trainer's first callback of a kind, if it has one."""
    callbacks: list[L.Callback] = trainer.callbacks  # type: ignore[attr-defined]  # a connector sets it
    return next((callback for callback in callbacks if isinstance(callback, kind)), None)


def is_time_to_log(trainer: L.Trainer) -> bool:
    """Whether a value that is logged at the end of this training batch will be read.

    Logging one number takes Lightning as long as several operations of a network: else it is left out.
    """
    every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]  # a connector sets it
    step = trainer.global_step + (not ends_with_step(trainer))  # the one that this batch is of
    due = bool(every) and (step % every == 0 or trainer.should_stop)
    due = due or bool(trainer.fast_dev_run)  # type: ignore[attr-defined]  # likewise
    return due or trainer.fit_loop.epoch_loop.batch_progress.is_last_batch or validation_follows(trainer)


def validation_follows(trainer: L.Trainer) -> bool:
    """Whether a validation comes right after this training batch."""
    loop, batches = trainer.fit_loop, trainer.num_val_batches
    if loop._data_fetcher is None or not (sum(batches) if isinstance(batches, list) else batches):
        return False
    return loop.epoch_loop._should_check_val_fx(loop._data_fetcher)


def ends_with_step(trainer: L.Trainer) -> bool:
    """Whether an optimizer step comes with this training batch: no later batch is accumulated with it."""
    batches, every = trainer.fit_loop.epoch_loop.batch_progress, trainer.accumulate_grad_batches
    is_last = batches.is_last_batch or batches.current.ready == trainer.num_training_batches
    steps_at_end = is_last and not trainer.strategy.handles_gradient_accumulation
    return steps_at_end or batches.current.ready % every == 0


class StepSums:
    """Collects whole numbers of all callbacks of a trainer, reduces them at once, and hands out the sums.

    A callback joins when ``fit`` starts. The first that needs sums in a step asks for the exchange: the guard before
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
        """Take part: `give` returns this process's numbers since the last call, `take` gets the sums.

        Callbacks join in the same order in all processes, stay, and give as many numbers every time.
        """
        self._members[callback] = give, take

    def exchange(self, trainer: L.Trainer, early: bool = False) -> None:
        """Sum everything now, a collective call; early: more may be counted in this step, which its end has to sum."""
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
        if trainer.world_size == 1 or ends_with_step(trainer):
            self.exchange(trainer)


_OF_TRAINERS: WeakKeyDictionary[L.Trainer, StepSums] = WeakKeyDictionary()


def _reduced(trainer: L.Trainer, given: Sequence[Sequence[int] | Tensor]) -> list[list[int]]:
    device = trainer.strategy.root_device
    numbers = [torch.as_tensor(own, dtype=torch.int64, device=device) for own in given]
    packed: Tensor = trainer.strategy.reduce(torch.cat(numbers), reduce_op="sum")
    sums, ends = packed.tolist(), accumulate((len(own) for own in given), initial=0)
    return [sums[start:stop] for start, stop in pairwise(ends)]
