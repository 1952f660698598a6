"""FlopsMeter: floating point operations of training, told from sizes, and counted where nobody can tell."""

from __future__ import annotations

import logging
from contextlib import ExitStack
from typing import Any

import lightning as L
import torch
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from contactlm.callbacks.steps import StepSums, is_time_to_log

log = logging.getLogger(__name__)

FUSED_ON_CPU = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
FUSED_ON_CPU_BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


class FlopsMeter(L.Callback):
    """Counts the forward and backward FLOPs of training, summed over all processes.

    What counts are matrix products and attention, with what is computed a second time in the backward pass by streamed
    attention and by layers under activation checkpointing. A module with a method ``step_flops(batch)``, as those of
    this package have, tells what a batch costs by a closed formula, ``(all, forward)`` or None. The first batch of a
    run is counted by ``torch.utils.flop_counter`` while it is trained on, which takes the host several times as long.
    Where both come to the same, the formula is believed from then on. Where they do not, or there is none, the first
    batch of every shape is counted; later batches of that shape cost the same. Saved in checkpoints. Logs
    ``flops/total``. The share of the forward pass is in ``forward``.

    Fused attention counts by the same formula on every device (on the CPU, PyTorch's own counter sees nothing of it);
    the streamed contact attention of this package is made of matrix products and counted in full.
    """

    def __init__(self) -> None:
        self.total = 0
        self.forward = 0
        self.by_shape: dict[str, int] = {}
        self.forward_by_shape: dict[str, int] = {}
        self._told: dict[str, tuple[int, int] | None] = {}  # by the module's formula, of shapes that were not counted
        self._is_believed: bool | None = None  # the formula; None: it was not compared yet
        self._counting: tuple[ExitStack, FlopCounterMode] | None = None
        self._forward_counted = 0
        self._at = ""  # shapes of the batch at hand
        self._marks = ""
        self._own = [0, 0]  # FLOPs, and those of forward passes, of this process that are not summed yet
        self._noted: tuple[int, int] | None = None  # what of the batch at hand is in them

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Tell apart what a shape costs with and without activation checkpointing: a resumed run may change it."""
        recomputing = any(getattr(module, "gradient_checkpointing", False) for module in pl_module.modules())
        self._marks = " recomputed" if recomputing else ""
        self._own = [0, 0]
        self._told, self._is_believed = {}, None
        StepSums.of(trainer).join(self, self._give, self._take)

    def _give(self) -> list[int]:
        own, self._own = self._own, [0, 0]
        return own

    def _take(self, sums: list[int]) -> None:
        self.total += sums[0]
        self.forward += sums[1]

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Start to count when no batch of this shape was seen before, and the module cannot tell what it costs."""
        self._noted = None
        self._at = self._key(batch)
        if self._at in self.by_shape:
            return
        if self._at not in self._told:
            tell = getattr(pl_module, "step_flops", None)
            self._told[self._at] = tell(batch) if tell is not None and self._is_believed is not False else None
        if self._told[self._at] is None or not self._is_believed:
            stack, self._forward_counted = ExitStack(), 0
            self._counting = stack, stack.enter_context(flop_counter())

    def on_before_backward(self, trainer: L.Trainer, pl_module: L.LightningModule, loss: torch.Tensor) -> None:
        """Note what the forward pass of a new shape took."""
        if self._counting is not None:
            self._forward_counted = self._counting[1].get_total_flops()

    def on_after_backward(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Note what the batch took, so that it is summed with what others count in the step."""
        if self._noted is None:
            self._note()

    def _note(self) -> None:
        """Add what the batch took, less what was noted of it before."""
        if self._counting is not None:
            taken = self._counting[1].get_total_flops(), self._forward_counted
        elif self._at in self.by_shape:
            taken = self.by_shape[self._at], self.forward_by_shape[self._at]
        else:
            taken = self._told[self._at] or (0, 0)
        before, self._noted = self._noted or (0, 0), taken
        self._own = [own + new - old for own, new, old in zip(self._own, taken, before, strict=True)]

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Add the batch's FLOPs, of all processes."""
        self._note()
        if self._counting is not None and self._noted is not None:
            self.by_shape[self._at], self.forward_by_shape[self._at] = self._noted
            self._compare(type(pl_module).__name__, self._noted)
            self._stop()
        StepSums.of(trainer).settle(trainer)
        if is_time_to_log(trainer):
            pl_module.log("flops/total", torch.tensor(float(self.total)))  # on the CPU: no copy to the device

    def _compare(self, name: str, counted: tuple[int, int]) -> None:
        """Find out whether the module's formula can be believed."""
        told = self._told.pop(self._at)
        if told is None:
            return
        self._is_believed = told == counted
        if not self._is_believed:
            log.info(
                "%s.step_flops tells (all, forward) = %s, but %s were counted: so is the first batch of every shape",
                name, told, counted,
            )  # fmt: skip

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Stop counting when a batch does not come to its end."""
        self._stop()

    def _key(self, batch: Any) -> str:
        return shape_key(batch) + self._marks

    def _stop(self) -> None:
        if self._counting is not None:
            self._counting[0].close()
            self._counting = None

    def state_dict(self) -> dict[str, Any]:
        """The sum so far and what each shape costs."""
        sums = {"total": self.total, "forward": self.forward}
        return {**sums, "by_shape": dict(self.by_shape), "forward_by_shape": dict(self.forward_by_shape)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a saved sum; shapes whose forward share an older checkpoint lacks are counted again."""
        self.total, self.forward = state_dict["total"], state_dict.get("forward", 0)
        self.forward_by_shape = dict(state_dict.get("forward_by_shape", {}))
        self.by_shape = {key: flops for key, flops in state_dict["by_shape"].items() if key in self.forward_by_shape}


def flop_counter() -> FlopCounterMode:
    """PyTorch's counter of FLOPs, which also sees fused attention on the CPU."""
    formulas = {FUSED_ON_CPU: _fused_flops, FUSED_ON_CPU_BACKWARD: _fused_backward_flops}
    return FlopCounterMode(display=False, custom_mapping=formulas)


def _fused_flops(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    """PyTorch's formula for accelerators, from shapes (B, H, T, D)."""
    return sdpa_flop_count(query, key, value)


def _fused_backward_flops(gradient: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    """PyTorch's formula for accelerators, the second computation of the scores included."""
    return sdpa_backward_flop_count(gradient, query, key, value)


def shape_key(batch: Any) -> str:
    """Name the shapes of all tensors in a batch."""
    return " ".join(str(tuple(leaf.shape)) for leaf in tree_leaves(batch) if isinstance(leaf, torch.Tensor))
