"""ThroughputMeter: how fast training goes, and how much of the device it uses."""

from __future__ import annotations

import time
import warnings
from collections import deque
from typing import Any, NamedTuple

import lightning as L
import torch
from lightning.fabric.utilities.throughput import get_available_flops

from contactlm.callbacks.budget import TokenBudget
from contactlm.callbacks.flops import FlopsMeter
from contactlm.callbacks.steps import find_callback, is_time_to_log
from contactlm.types import ContactLMError

WINDOW = 20  # batches that a rate is taken over
DTYPES = {"16": torch.float16, "bf16": torch.bfloat16, "32": torch.float32, "64": torch.float64}


class _Mark(NamedTuple):
    """Sums at the end of a batch."""

    seconds: float
    tokens: int
    residues: int
    flops: int


class ThroughputMeter(L.Callback):
    """Logs ``speed/tokens_per_s``, ``speed/residues_per_s`` and ``speed/mfu``, over the last 20 training batches.

    The clock runs while training does, waiting for data included, and stands still during evaluation. Tokens and
    residues are those of :class:`TokenBudget`, FLOPs those of :class:`FlopsMeter`, summed over all processes; put this
    callback behind them. The first batch of a run is left out: it warms up and has its FLOPs counted.

    ``speed/mfu`` is the fraction used of the devices' peak: FLOPs a second / (peak FLOPs a second × processes).
    Operations that the backward pass repeats count as work. It is logged where :class:`FlopsMeter` is at hand and the
    peak is known: that of many GPUs is, for dense matrix products at the trainer's precision; a CPU's is not.

    Args:
        peak_flops: FLOPs a second that one device can do; None: looked up for the GPU at hand.

    Raises:
        ContactLMError: A peak that is not positive.
    """

    def __init__(self, peak_flops: float | None = None) -> None:
        if peak_flops is not None and peak_flops <= 0:
            raise ContactLMError(f"speed.peak_flops is {peak_flops}; give FLOPs a second of one device, such as 3e13")
        self.peak_flops = peak_flops
        self.tokens_per_s: float | None = None
        self._peak: float | None = None
        self._marks: deque[_Mark] = deque(maxlen=WINDOW + 1)
        self._seconds = 0.0
        self._since: float | None = None

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Begin anew; find out what the device can do.

        Raises:
            ContactLMError: There is no :class:`TokenBudget` to read.
        """
        if find_callback(trainer, TokenBudget) is None:
            raise ContactLMError(
                "ThroughputMeter reads TokenBudget: add it to the callbacks; TokenBudget(None) only counts"
            )
        self._peak = self.peak_flops or known_peak(pl_module.device, str(trainer.precision))
        self.tokens_per_s, self._since, self._seconds = None, None, 0.0
        self._marks.clear()

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Start the clock, if it stands still."""
        if self._since is None:
            self._since = time.perf_counter()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log the speed."""
        self._read_clock()
        budget, meter = find_callback(trainer, TokenBudget), find_callback(trainer, FlopsMeter)
        if budget is None:
            return
        self._marks.append(_Mark(self._seconds, budget.tokens, budget.residues, 0 if meter is None else meter.total))
        if is_time_to_log(trainer):
            for name, value in self.rates(trainer.world_size).items():
                pl_module.log(f"speed/{name}", torch.tensor(value))  # on the CPU: no copy to the device

    def rates(self, processes: int = 1) -> dict[str, float]:
        """The speed over the last batches: empty before two batches have ended."""
        if len(self._marks) < 2 or self._marks[-1].seconds <= self._marks[0].seconds:
            return {}
        seconds, tokens, residues, flops = (
            last - first for first, last in zip(self._marks[0], self._marks[-1], strict=True)
        )
        rates = {"tokens_per_s": tokens / seconds, "residues_per_s": residues / seconds}
        if self._peak is not None and flops:
            rates["mfu"] = flops / (seconds * self._peak * processes)
        self.tokens_per_s = rates["tokens_per_s"]
        return rates

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stop the clock, once the device has done what training asked of it."""
        if self._since is not None:
            if pl_module.device.type == "cuda":
                torch.cuda.synchronize(pl_module.device)
            self._read_clock()
            self._since = None

    def _read_clock(self) -> None:
        if self._since is not None:
            now = time.perf_counter()
            self._seconds += now - self._since
            self._since = now


def known_peak(device: torch.device, precision: str) -> float | None:
    """FLOPs a second that a GPU can do in dense matrix products, by Lightning's table; None: not known.

    Args:
        device: The device.
        precision: Of the trainer, such as ``32-true`` or ``bf16-mixed``.
    """
    dtype = DTYPES.get(precision.split("-")[0])
    if device.type != "cuda" or dtype is None:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a GPU that is not in the table is no reason to worry
        return get_available_flops(device, dtype)
