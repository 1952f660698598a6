"""Which family a model is of, told by its ``config.json``; and why the others cannot be read."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

from contactlm.model.families.family import Family
from contactlm.types import ModelError

# model_type of config.json -> files of this folder, the first that describes it; read when one is met.
FILES: Mapping[str, tuple[str, ...]] = {
    "esm": ("saprot", "esm1b", "esm2"),
    "esmc": ("esmc",),
    "bert": ("protbert",),
}
_NO_MAPS = "state-space and convolutional models have no attention maps to read contacts from"
_REASONS = {
    "t5": (
        "ProtT5 adds a bias of its own to every score and has no <cls>; the streamed operation takes neither, and "
        "storing the bias (heads x tokens x tokens) is what it is there to avoid"
    ),
    "esm3": "it needs code of its own, which transformers does not have",
    **dict.fromkeys(("mamba", "mamba2", "hyena", "hyenadna", "caduceus", "evo", "stripedhyena"), _NO_MAPS),
}


def family_of(config: Any, name: str = "the model") -> Family:
    """Tell the family.

    Args:
        config: A configuration of transformers, or the values of a ``config.json``.
        name: Of the model, for the message.

    Raises:
        ModelError: A model that cannot be read; the message says why.
    """
    values: Mapping[str, Any] = config if isinstance(config, Mapping) else vars(config)
    kind: Any = values.get("model_type") if isinstance(config, Mapping) else config.model_type
    if not isinstance(kind, str) or kind not in FILES:
        raise ModelError(f"{name}: model_type is {kind!r}: {_reason(kind, values)}; supported are {_supported()}")
    for file in FILES[kind]:
        for family in _families_in(file, name):
            if family.describes(values):
                return family
    raise ModelError(f"{name}: model_type is {kind!r}, but its position_embedding_type is none of a known family")


def _families_in(file: str, name: str) -> tuple[Family, ...]:
    try:
        return import_module(f"contactlm.model.families.{file}").FAMILIES
    except ModuleNotFoundError as error:
        if not (error.name or "").startswith("transformers."):
            raise
        raise ModelError(
            f"{name}: the installed transformers has no {error.name}; install a newer release (pip install -U "
            "transformers)"
        ) from error


def _supported() -> str:
    return ", ".join(f"{kind!r}" for kind in FILES)


def _reason(kind: Any, values: Mapping[str, Any]) -> str:
    if kind in _REASONS:
        return _REASONS[kind]
    if values.get("auto_map"):
        return "it needs code that comes with the checkpoint, and code from checkpoints is not run"
    return "no family that contacts can be read from"
