"""Ways of running a model that would not do what they promise, refused with a reason."""

from __future__ import annotations

from torch import nn

from contactlm.types import ModelError

_IN_HALF = ("bf16-true", "16-true")


def check_execution(module: nn.Module, precision: str) -> None:
    """Refuse to hold everything in half precision, and a module that ``torch.compile`` got hold of.

    Args:
        module: The module that a Trainer is about to run.
        precision: As Lightning's Trainer names it.

    Raises:
        ModelError: The precision is ``bf16-true`` or ``16-true``, or some part of the module is compiled.
    """
    if precision in _IN_HALF:
        raise ModelError(
            f"trainer.precision is {precision}: it would round coordinates to 3 digits or fewer, which makes other "
            "contacts, and the rotary frequencies, which moves positions; take bf16-mixed (or 16-mixed), which does "
            "the large products in half precision and keeps everything else"
        )
    if _is_compiled(module):
        raise ModelError(
            "torch.compile: compiling the model takes minutes, and on a CPU its steps take about as long afterwards; "
            "hand over the module itself, whose layers are fused by hand"
        )


def check_crop_length(crop_length: int | None, window: int | None) -> None:
    """Refuse crops that whole chains could not be scored with.

    Raises:
        ModelError: Crops are longer than the window.
    """
    if crop_length is not None and window is not None and crop_length > window:
        raise ModelError(
            f"crop_length is {crop_length}, longer than the window of {window} residues that whole chains are "
            "scored with; lower data.crop_length, or raise model.window (null: one pass at any length)"
        )


def _is_compiled(module: nn.Module) -> bool:
    if getattr(module, "_compiler_ctx", None):  # where Lightning keeps what torch.compile(module) returned
        return True
    return any(
        hasattr(part, "_orig_mod") or getattr(part, "_compiled_call_impl", None) is not None
        for part in module.modules()
    )
