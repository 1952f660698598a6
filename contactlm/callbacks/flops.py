"""FlopsMeter: floating point operations of training, counted for some shapes of batches and computed for the others."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from fractions import Fraction
from math import prod
from typing import Any

import lightning as L
import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from contactlm.callbacks.steps import StepSums, is_time_to_log
from contactlm.modules.memory import tensors_in

log = logging.getLogger(__name__)

FUSED_ON_CPU = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
FUSED_ON_CPU_BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
LENGTHS = 3  # that determine all others
Flops = tuple[int, int]  # of the whole step, and of its forward pass


class FlopsMeter(L.Callback):
    """Counts the forward and backward FLOPs of training, summed over all processes.

    What counts are matrix products and attention, what the backward pass repeats included.
    ``torch.utils.flop_counter`` counts the first batch of every shape while it is trained on, which takes the host
    several times as long; later batches of that shape cost the same.

    Of a module whose ``flops_follow_length`` is true (:class:`contactlm.ContactModule` and
    :class:`contactlm.ContrastiveModule`), a batch of B sequences of T tokens costs B (a + b T + c T²). Three lengths
    tell the three numbers. The fourth is counted as well: only where it costs something else, as in a subclass that
    computes more, the first batch of every shape is counted.

    Saved in checkpoints. Logs ``flops/total``. The share of the forward pass is in ``forward``. Fused attention counts
    by the same formula on every device.
    """

    def __init__(self) -> None:
        self.total = self.forward = 0
        self.by_shape: dict[str, int] = {}
        self.forward_by_shape: dict[str, int] = {}
        self._by_length: dict[int, tuple[Fraction, Fraction]] = {}  # of one sequence of T tokens
        self._follows_length: bool | None = None  # None: no fourth length was counted yet
        self._counting: FlopCounterMode | None = None
        self._forward_counted = 0
        self._at = ""  # shapes of the current batch
        self._told: Flops | None = None  # what it costs by the lengths that were counted
        self._marks = ""
        self._own = [0, 0]  # FLOPs, and those of forward passes, of this process that are not summed yet
        self._noted: Flops = 0, 0  # what of the current batch is in them

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Tell apart what a shape costs with and without activation checkpointing: a resumed run may change it."""
        names = ("checkpointed", "gradient_checkpointing")  # of this package's layers, and of transformers'
        recomputing = any(getattr(module, name, False) for module in pl_module.modules() for name in names)
        self._marks = " recomputed" if recomputing else ""
        self._own, self._by_length, self._follows_length = [0, 0], {}, None
        StepSums.of(trainer).join(self, self._give, self._take)

    def _give(self) -> list[int]:
        own, self._own = self._own, [0, 0]
        return own

    def _take(self, sums: list[int]) -> None:
        self.total += sums[0]
        self.forward += sums[1]

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, *_: Any) -> None:
        """Start to count when no batch of this shape was seen before, and its cost does not follow from its length."""
        self._noted, self._at = (0, 0), shape_key(batch) + self._marks
        if self._at in self.by_shape:
            self._told = self.by_shape[self._at], self.forward_by_shape[self._at]
            return
        self._told = self._by_its_length(batch) if self._follows_length else None
        if self._told is None:
            self._counting, self._forward_counted = flop_counter().__enter__(), 0

    def on_before_backward(self, trainer: L.Trainer, pl_module: L.LightningModule, loss: torch.Tensor) -> None:
        if self._counting is not None:
            self._forward_counted = self._counting.get_total_flops()

    def on_after_backward(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Add what the batch took, less what was noted of it before, to what is summed in the step."""
        before, self._noted = self._noted, self._told or (0, 0)
        if self._counting is not None:
            self._noted = self._counting.get_total_flops(), self._forward_counted
        self._own = [own + new - old for own, new, old in zip(self._own, self._noted, before, strict=True)]

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, _: Any, batch: Any, *__: Any
    ) -> None:
        self.on_after_backward(trainer, pl_module)
        if self._counting is not None:
            self.by_shape[self._at], self.forward_by_shape[self._at] = self._noted
            if getattr(pl_module, "flops_follow_length", False):
                self._learn(batch, self._noted)
            self._stop()
        StepSums.of(trainer).settle(trainer)
        if is_time_to_log(trainer):
            pl_module.log("flops/total", torch.tensor(float(self.total)))  # on the CPU: no copy to the device

    def _learn(self, batch: Any, counted: Flops) -> None:
        """Keep what a new length costs, or compare with what it should cost."""
        B, T = batch["tokens"].shape
        if T in self._by_length or self._follows_length is not None:
            return
        if len(self._by_length) < LENGTHS:
            self._by_length[T] = Fraction(counted[0], B), Fraction(counted[1], B)
            return
        self._follows_length = self._by_its_length(batch) == counted
        if not self._follows_length:
            log.info("a batch of %d x %d tokens has other FLOPs than its length predicts; counting every shape", B, T)

    def _by_its_length(self, batch: Any) -> Flops:
        B, T = batch["tokens"].shape
        whole, forward = (
            B * quadratic(T, {length: each[part] for length, each in self._by_length.items()}) for part in range(2)
        )
        return int(whole), int(forward)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._stop()

    def _stop(self) -> None:
        if self._counting is not None:
            self._counting.__exit__(None, None, None)
            self._counting = None

    def state_dict(self) -> dict[str, Any]:
        sums = {"total": self.total, "forward": self.forward}
        return {**sums, "by_shape": dict(self.by_shape), "forward_by_shape": dict(self.forward_by_shape)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a saved sum; shapes whose forward share an older checkpoint lacks are counted again."""
        self.total, self.forward = state_dict["total"], state_dict.get("forward", 0)
        self.forward_by_shape = dict(state_dict.get("forward_by_shape", {}))
        self.by_shape = {key: flops for key, flops in state_dict["by_shape"].items() if key in self.forward_by_shape}


def quadratic(at: int, values: Mapping[int, Fraction]) -> Fraction:
    """The value of the polynomial a + b T + c T² through three points (Lagrange's form)."""
    terms = (
        value * prod(Fraction(at - other, point - other) for other in values if other != point)
        for point, value in values.items()
    )
    return sum(terms, Fraction(0))


def flop_counter() -> FlopCounterMode:
    """PyTorch's counter of FLOPs, which also sees fused attention on the CPU."""
    formulas = {  # of query, key, value; and of the gradient and these
        FUSED_ON_CPU: lambda *shapes, **_: sdpa_flop_count(*shapes[:3]),
        FUSED_ON_CPU_BACKWARD: lambda *shapes, **_: sdpa_backward_flop_count(*shapes[:4]),
    }
    return FlopCounterMode(display=False, custom_mapping=formulas)


def shape_key(batch: Any) -> str:
    """Name the shapes of all tensors in a batch."""
    return " ".join(str(tuple(leaf.shape)) for leaf in tensors_in(batch))
