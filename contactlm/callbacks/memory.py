"""MemoryAdvice: an error for want of memory names the batch and the options that lower it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import lightning as L
import torch
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy

from contactlm.callbacks.flops import shape_key
from contactlm.modules import memory as arithmetic
from contactlm.modules.contact import ContactModule
from contactlm.types import ModelError

log = logging.getLogger(__name__)

_SIGNS = ("out of memory", "DefaultCPUAllocator: can't allocate memory", "_STATUS_ALLOC_FAILED")
_TO_TRAIN = (
    "lower data.batch_size (and raise trainer.accumulate_grad_batches as much, to keep the proteins of a step) or "
    "data.crop_length; set model.activation_checkpointing to true or trainer.precision to bf16-mixed; or take a "
    "smaller model.pretrained"
)
_TO_EVALUATE = (
    "lower model.window (residues in one pass) or data.eval_batch_size; set trainer.precision to bf16-mixed; or take a "
    "smaller model.pretrained"
)
_DOING = {"train": "training on", "predict": "predicting"}


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory, of the machine or an accelerator, could not be had."""
    if isinstance(error, MemoryError | torch.cuda.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in _SIGNS)


def memory_advice(error: BaseException) -> str | None:
    """What :class:`MemoryAdvice` noted on an error, or a general text; None unless it is one for want of memory."""
    if not is_out_of_memory(error):
        return None
    notes = [note for note in getattr(error, "__notes__", []) if note.startswith("out of memory")]
    return notes[-1] if notes else f"out of memory ({_first_line(error)}): {_TO_TRAIN}"


class MemoryAdvice(L.Callback):
    """Notes on an error for want of memory what was done at the moment, on what batch, and what would lower it.

    Of a training step of a :class:`contactlm.ContactModule` it says by the arithmetic of ``contactlm plan`` what the
    step takes, by part, and what would fit into the memory that the process can have. The error itself passes
    unchanged. From Python 3.11 its note is shown below the traceback. Works in any Lightning project.
    """

    def __init__(self) -> None:
        self._stage, self._batch = "", ""
        self._shapes: dict[str, torch.Tensor] = {}

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, *_: Any, **__: Any
    ) -> None:
        self._stage = str(trainer.state.stage.value) if trainer.state.stage is not None else ""
        self._batch = _describe(batch)
        is_ours = isinstance(pl_module, ContactModule) and "cb" in batch
        self._shapes = arithmetic.resized(batch, len(batch["tokens"])) if is_ours else {}

    on_validation_batch_start = on_train_batch_start
    on_test_batch_start = on_train_batch_start
    on_predict_batch_start = on_train_batch_start

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        if not is_out_of_memory(exception):
            return
        doing = f"while {_DOING.get(self._stage, 'scoring')} {self._batch}" if self._batch else "before any batch"
        remedy = _TO_TRAIN if self._stage in ("train", "") else _TO_EVALUATE
        plan = ""
        try:
            if self._stage == "train":
                plan = self._plan(trainer, pl_module)
        except (ModelError, RuntimeError, MemoryError) as error:  # it must not stand before the error it explains
            log.debug("no plan of the step: %s", error)
        note = f"out of memory {doing}, precision {trainer.precision}: {plan}{remedy} ({_first_line(exception)})"
        # what add_note does, which Python 3.10 does not have yet
        exception.__notes__ = [*getattr(exception, "__notes__", []), note]  # type: ignore[attr-defined]  # see above

    def _plan(self, trainer: L.Trainer, pl_module: L.LightningModule) -> str:
        """What the step takes, by part, and what would fit; empty if unknown."""
        one_device = isinstance(trainer.strategy, (SingleDeviceStrategy, DDPStrategy))  # others spread the weights
        if not self._shapes or not one_device:
            return ""
        batch, device, precision = self._shapes, pl_module.device, arithmetic.PRECISIONS.get(str(trainer.precision))
        make, memory = arithmetic.twin(pl_module), arithmetic.memory_for(device)
        wanted, cost = len(batch["tokens"]), arithmetic.step_cost(make, batch, device, precision, count_flops=False)
        needs = f"by contactlm plan the step takes {arithmetic.size_text(cost.total)} ({cost.in_words})"
        if memory is None:
            return f"{needs}; "
        needs += f", and {arithmetic.size_text(memory)} are available"
        if cost.total <= memory:
            return f"{needs}: other memory use is not included; "
        found, possible = [], arithmetic.ways(make, device, precision)
        for way in possible:
            if rows := arithmetic.most_rows(way, batch, memory, device):
                what = "the batch as it is" if rows >= wanted else f"data.batch_size {rows}"
                found.append(f"{what} with {way.options}" if way.options else what)
        if crop := arithmetic.shorter_crop(possible[0], batch, memory, device):
            found.append(f"data.crop_length {crop}")
        return f"{needs}; what would fit: {', or '.join(found) or 'no batch of this model'}; "


def _describe(batch: Any) -> str:
    if isinstance(batch, Mapping) and isinstance(batch.get("tokens"), torch.Tensor):
        return f"a batch of B x T = {' x '.join(str(n) for n in batch['tokens'].shape)} tokens"
    return f"a batch of tensors {shape_key(batch)}"


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
