"""Scores of contact maps: as plain functions (:mod:`contactlm.metrics.scores`), and as torchmetrics classes.

The classes are loaded when they are first used: what only compares finished runs does not wait for torchmetrics.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from contactlm.metrics.classes import ContactScores, PrecisionAtL, ProteinMCC

__all__ = ["ContactScores", "PrecisionAtL", "ProteinMCC"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module("contactlm.metrics.classes"), name)
