"""AutoBatchSize: ``data.batch_size auto``, the largest batch that fits on the GPU, found before the first step."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import lightning as L
import torch

from contactlm.callbacks.memory import MIXED
from contactlm.modules.base import MapModule
from contactlm.modules.fitting import largest_batch, memory_for, told_size, twin
from contactlm.types import DataError

log = logging.getLogger(__name__)


class AutoBatchSize(L.Callback):
    """Puts a number in the place of ``batch_size="auto"`` of a :class:`contactlm.ContactDataModule`.

    The number is that of ``contactlm plan``: the largest batch of whole crops (in eights, beyond 8) whose step takes at
    most nine tenths of what the GPU has to give, and no more than each process has training chains. No step is taken
    for it, so that neither the budget nor random numbers are spent. Several processes take the least of theirs. It
    stands in ``config.yaml`` and ``run.json``, and in checkpoints: a run that goes on keeps it, on whichever GPU.

    A larger batch makes fewer optimizer steps of a budget of tokens: learning rates are to be chosen with it in mind.

    Raises:
        DataError: No GPU, crops of many lengths, a network that cannot be planned, or not one crop fits.
    """

    def __init__(self) -> None:
        self.found: int | None = None
        self._data: Any = None

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Find the number, in all processes."""
        data: Any = trainer.datamodule  # type: ignore[attr-defined]  # a connector sets it
        if stage != "fit" or getattr(data, "batch_size", None) != "auto" or data.bound is not None:
            return
        self._data = data
        data.batch_size = self.found = self._find(trainer, pl_module, data)

    def _find(self, trainer: L.Trainer, pl_module: L.LightningModule, data: Any) -> int:
        device = trainer.strategy.root_device
        _check_device(device)
        if data.crop == "whole" or not isinstance(pl_module, MapModule):
            raise DataError(
                "data.batch_size is auto, which takes crops of one length and a module of contactlm's: give a number, "
                "or data.batch_tokens for whole chains"
            )
        memory = memory_for(device) or 0.0
        rows, cost = largest_batch(twin(pl_module), data.crop_length, memory, device, MIXED.get(str(trainer.precision)))
        rows = min(rows, max(1, len(data.chains["train"]) // trainer.world_size))
        least = int(trainer.strategy.reduce(torch.tensor(rows, device=device), reduce_op="min"))
        if least < 1:
            raise DataError(
                f"data.batch_size is auto, and not one crop of {data.crop_length} residues fits: a step takes "
                f"{told_size(cost.total)} by the plan, and {told_size(memory)} can be had on {device}; lower "
                "data.crop_length, or set model.activation_checkpointing"
            )
        if trainer.is_global_zero:
            log.info("data.batch_size: auto: %d (%s can be had on %s)", least, told_size(memory), device)
        return least

    def state_dict(self) -> dict[str, Any]:
        """The number that was found."""
        return {} if self.found is None else {"batch_size": self.found}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the number of the run before."""
        self.found = state_dict.get("batch_size", self.found)
        if self._data is not None and self.found is not None:
            self._data.batch_size = self.found


def _check_device(device: torch.device) -> None:
    if device.type != "cuda":
        raise DataError(
            f"data.batch_size is auto, which is for a GPU; on {device.type} larger batches are no faster, and "
            "memory is shared with others: give a number (contactlm plan --memory 8GB tells what fits)"
        )


def found_before(checkpoint: Mapping[str, Any]) -> int | None:
    """The number that the run of a checkpoint has found; None: it had one of its own."""
    return checkpoint.get("callbacks", {}).get(AutoBatchSize.__name__, {}).get("batch_size")
