"""MemoryAdvice: an error for want of memory names the batch and the options that lower it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import lightning as L
import torch

from contactlm.callbacks.flops import shape_key

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
_DOING = {
    "train": "training on",
    "sanity_check": "scoring",
    "validate": "scoring",
    "test": "scoring",
    "predict": "predicting",
}


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory, of the machine or an accelerator, could not be had."""
    if isinstance(error, MemoryError | torch.cuda.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in _SIGNS)


def memory_advice(error: BaseException) -> str | None:
    """What to tell a user of an error: None unless it is one for want of memory.

    Returns:
        What :class:`MemoryAdvice` noted on the error, or a general text where there was no trainer.
    """
    if not is_out_of_memory(error):
        return None
    notes = [note for note in getattr(error, "__notes__", []) if note.startswith("out of memory")]
    return notes[-1] if notes else f"out of memory ({_first_line(error)}): {_TO_TRAIN}"


class MemoryAdvice(L.Callback):
    """Notes on an error for want of memory what was done at the moment, on what batch, and what would lower it.

    The error itself goes on unchanged. From Python 3.11 its note is shown below the traceback; the command line shows
    the note and no traceback. Works in any Lightning project.
    """

    def __init__(self) -> None:
        self._stage, self._batch = "", ""

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Remember the batch's shape, whatever is done with it."""
        self._stage = str(trainer.state.stage.value) if trainer.state.stage is not None else ""
        self._batch = _describe(batch)

    on_validation_batch_start = on_train_batch_start
    on_test_batch_start = on_train_batch_start
    on_predict_batch_start = on_train_batch_start

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Put the note on the error."""
        if not is_out_of_memory(exception):
            return
        doing = f"while {_DOING.get(self._stage, 'working on')} {self._batch}" if self._batch else "before any batch"
        remedy = _TO_TRAIN if self._stage in ("train", "") else _TO_EVALUATE
        note = f"out of memory {doing}, precision {trainer.precision}: {remedy} ({_first_line(exception)})"
        # what add_note does, which Python 3.10 does not have yet
        exception.__notes__ = [*getattr(exception, "__notes__", []), note]  # type: ignore[attr-defined]  # see above


def _describe(batch: Any) -> str:
    if isinstance(batch, Mapping) and isinstance(batch.get("tokens"), torch.Tensor):
        return f"a batch of B x T = {' x '.join(str(n) for n in batch['tokens'].shape)} tokens"
    return f"a batch of tensors {shape_key(batch)}"


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
