"""The same number of forward passes in all processes that share a model's weights.

Every layer of a model that is spread over processes is gathered from all of them whenever it is run, so that a pass of
one process is a pass of all. In evaluation each has chains of its own, and more passes or fewer than the others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import nn

from contactlm.alphabet import CLS, EOS, UNKNOWN_LETTER, VOCABULARY

SHORTEST = (
    CLS,
    VOCABULARY.index(UNKNOWN_LETTER),
    EOS,
)  # what a process shows the model while it has nothing of its own


class Lockstep:
    """Lets the processes of an evaluation agree, before every pass, that one of them has a chain to show.

    Args:
        network: The module whose passes count, spread over processes already.
        trainer: Gives the trainer of the evaluation; its strategy reduces one number a pass.
        idle: Runs one pass whose result nobody wants.
    """

    def __init__(self, network: nn.Module, trainer: Callable[[], Trainer], idle: Callable[[], object]) -> None:
        self._trainer, self._idle = trainer, idle
        self._counts = False
        network.register_forward_pre_hook(self._before_pass, prepend=True)

    @contextmanager
    def step(self, is_last: bool) -> Iterator[None]:
        """Count the passes of a step; after this process's last one, go on for as long as another has some.

        What is done within a step belongs to it.
        """
        if self._counts:
            yield
            return
        self._counts = True
        try:
            yield
        finally:
            self._counts = False
        while is_last and self._someone_goes_on(False):
            self._idle()

    def _before_pass(self, network: nn.Module, arguments: Any) -> None:
        if self._counts:
            self._someone_goes_on(True)

    def _someone_goes_on(self, this_one: bool) -> bool:
        strategy = self._trainer().strategy
        wish = torch.tensor(int(this_one), device=strategy.root_device)
        return bool(strategy.reduce(wish, reduce_op="max"))


def is_last_step(trainer: Trainer, batch_idx: int) -> bool:
    """Whether a batch of an evaluation is the last one of this process."""
    if trainer.sanity_checking:
        batches = trainer.num_sanity_val_batches
    elif trainer.testing:
        batches = trainer.num_test_batches
    elif trainer.predicting:
        batches = trainer.num_predict_batches
    else:
        batches = trainer.num_val_batches
    return batch_idx + 1 >= (batches if isinstance(batches, int | float) else batches[-1])


def idle_tokens(device: torch.device) -> torch.Tensor:
    """The shortest sequence there is: int64 (1, 3)."""
    return torch.tensor([SHORTEST], device=device)


def evaluate_without_inference_mode(trainer: Trainer) -> None:
    """Let evaluation run under ``no_grad``: weights that were gathered in inference mode cannot be trained with."""
    loops = (trainer.fit_loop.epoch_loop.val_loop, trainer.validate_loop, trainer.test_loop, trainer.predict_loop)
    for loop in loops:
        loop.inference_mode = False
