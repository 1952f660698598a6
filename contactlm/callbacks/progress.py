"""How far and how fast training goes: BudgetProgressBar, on a terminal or in a log, and ThroughputMeter."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections import deque
from typing import Any

import lightning as L
import torch
from lightning.fabric.utilities.throughput import get_available_flops
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm, TQDMProgressBar
from lightning.pytorch.trainer.states import TrainerFn

from contactlm.callbacks.budget import TokenBudget
from contactlm.callbacks.flops import FlopsMeter
from contactlm.callbacks.steps import find_callback, is_time_to_log
from contactlm.types import ContactLMError

log = logging.getLogger(__name__)

WINDOW = 20  # batches that a rate is taken over
DTYPES = {"16": torch.float16, "bf16": torch.bfloat16, "32": torch.float32, "64": torch.float64}
REFRESH_SECONDS = 0.2
LOSS = "train/loss"
BAR = "{desc} {percentage:3.0f}%|{bar}| "


class ThroughputMeter(L.Callback):
    """Logs ``speed/tokens_per_s``, ``speed/residues_per_s`` and ``speed/mfu``, over the last 20 training batches.

    The clock runs while training does, waiting for data included, and stands still during evaluation. Tokens and
    residues are those of :class:`TokenBudget`, FLOPs those of :class:`FlopsMeter`, summed over all processes; put this
    callback behind them. The first batch of a run, which warms up, is left out.

    ``speed/mfu`` is FLOPs a second / (a device's peak FLOPs a second × processes). It is logged where
    :class:`FlopsMeter` is in use and the peak is known: that of many GPUs is, for dense matrix products at the
    trainer's precision; a CPU's is not.

    Args:
        peak_flops: Peak FLOPs per second of one device; None: looked up for the GPU.

    Raises:
        ContactLMError: A peak that is not positive.
    """

    def __init__(self, peak_flops: float | None = None) -> None:
        if peak_flops is not None and peak_flops <= 0:
            raise ContactLMError(f"speed.peak_flops is {peak_flops}; give FLOPs a second of one device, such as 3e13")
        self.peak_flops = peak_flops
        self._begin(None)

    def _begin(self, peak: float | None) -> None:
        self.tokens_per_s: float | None = None
        self._peak = peak  # of all devices
        self._window: deque[tuple[float, int, int, int]] = deque(maxlen=WINDOW + 1)  # seconds, tokens, residues, FLOPs
        self._away = 0.0  # seconds that the clock stood still
        self._left: float | None = None  # since when it does

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if find_callback(trainer, TokenBudget) is None:
            raise ContactLMError("ThroughputMeter reads TokenBudget: add it (TokenBudget(None) only counts)")
        peak = self.peak_flops or known_peak(pl_module.device, str(trainer.precision))
        counts_flops = find_callback(trainer, FlopsMeter) is not None
        self._begin(None if peak is None or not counts_flops else peak * trainer.world_size)

    def on_train_batch_start(self, *_: Any) -> None:
        if self._left is not None:
            self._away += time.perf_counter() - self._left
            self._left = None

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        budget, meter = find_callback(trainer, TokenBudget), find_callback(trainer, FlopsMeter)
        before = self._window[-1][1] if self._window else 0
        if budget is not None and budget.tokens > before:  # accumulated batches may be summed at their step
            flops = 0 if meter is None else meter.total
            self._window.append((time.perf_counter() - self._away, budget.tokens, budget.residues, flops))
        if is_time_to_log(trainer):
            for name, value in self.rates().items():
                pl_module.log(f"speed/{name}", torch.tensor(value))  # on the CPU: no copy to the device

    def rates(self) -> dict[str, float]:
        """The speed over the last batches; empty before there are as many."""
        if len(self._window) <= WINDOW:
            return {}
        seconds, tokens, residues, flops = (b - a for a, b in zip(self._window[0], self._window[-1], strict=True))
        self.tokens_per_s = tokens / seconds
        rates = {"tokens_per_s": self.tokens_per_s}
        if self._window[-1][2]:
            rates["residues_per_s"] = residues / seconds
        if self._peak is not None:
            rates["mfu"] = flops / seconds / self._peak
        return rates

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._left is None:
            if pl_module.device.type == "cuda":
                torch.cuda.synchronize(pl_module.device)
            self._left = time.perf_counter()


def known_peak(device: torch.device, precision: str) -> float | None:
    """FLOPs a second that a GPU can do at a trainer's precision (``bf16-mixed``), by Lightning's table, if known."""
    dtype = DTYPES.get(precision.split("-")[0])
    return None if device.type != "cuda" or dtype is None else get_available_flops(device, dtype)


class BudgetProgressBar(TQDMProgressBar):
    """Shows how much of the token budget is spent, what is logged with ``prog_bar=True``, the speed and the time left.

    The time left is that to the end of the budget at the pace so far, evaluation included. Without a limit of tokens,
    training is shown by epochs, as Lightning does. Bars go to standard error. Where that is no terminal, or where the
    environment variable TQDM_DISABLE is set, a line is logged from time to time instead.

    Args:
        seconds_between_lines: How often a line is written where there is no terminal; 0: never.
    """

    reads_loss_when_drawn = True  # a module need not log it for the bar: Lightning would ask the device every step

    def __init__(self, seconds_between_lines: float = 30.0) -> None:
        super().__init__()
        self.seconds_between_lines = seconds_between_lines
        self._budget: TokenBudget | None = None  # that has a limit
        self._limit = 1  # tokens
        self._began: tuple[float, int] | None = None  # time and tokens, once the first batch is over
        self._refreshed = self._wrote = 0.0
        self._line_at = -1  # tokens

    @property
    def is_disabled(self) -> bool:
        is_wanted = os.environ.get("TQDM_DISABLE", "").lower() in ("", "0", "false", "no")
        return not (self.is_enabled and sys.stderr.isatty() and is_wanted)

    def _bar(self, description: str, keep: bool = True, row: int = 0) -> Tqdm:
        return Tqdm(
            desc=description,
            position=row,
            disable=self.is_disabled,
            leave=keep,
            dynamic_ncols=True,
            file=sys.stderr,
            smoothing=0,
            bar_format="{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}]",
        )

    def init_sanity_tqdm(self) -> Tqdm:
        return self._bar(self.sanity_check_description, keep=False)

    def init_train_tqdm(self) -> Tqdm:
        return self._bar(self.train_description)

    def init_validation_tqdm(self) -> Tqdm:
        in_training = self.trainer.state.fn == TrainerFn.FITTING
        return self._bar(self.validation_description, keep=not in_training, row=int(in_training))

    def init_test_tqdm(self) -> Tqdm:
        return self._bar(self.test_description)

    def init_predict_tqdm(self) -> Tqdm:
        return self._bar(self.predict_description)

    def on_train_start(self, *args: Any) -> None:
        super().on_train_start(*args)
        budget = find_callback(self.trainer, TokenBudget)
        self._budget, self._began, self._wrote = None, None, time.monotonic()
        if budget is not None and budget.max_tokens is not None:
            self._budget, self._limit = budget, budget.max_tokens
            self.train_progress_bar.total = self._limit
            self._show(force=True)

    def on_train_epoch_start(self, *args: Any) -> None:
        if self._budget is None:
            super().on_train_epoch_start(*args)

    def on_train_batch_end(self, *args: Any) -> None:
        if self._budget is None:
            super().on_train_batch_end(*args)
            self._write_line(self.train_description, args[4] + 1, self.total_train_batches)
            return
        if self._began is None:
            self._began = time.monotonic(), self._budget.tokens
        self._show()

    def on_train_end(self, *args: Any) -> None:
        self._show(force=True)
        super().on_train_end(*args)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        super().on_validation_end(trainer, pl_module)
        if trainer.state.fn == TrainerFn.FITTING:
            self._show(force=not self.is_disabled)

    def on_test_batch_end(self, *args: Any, **options: Any) -> None:
        super().on_test_batch_end(*args, **options)
        self._write_line(self.test_description, args[4] + 1, self.total_test_batches_current_dataloader)

    def on_predict_batch_end(self, *args: Any, **options: Any) -> None:
        super().on_predict_batch_end(*args, **options)
        self._write_line(self.predict_description, args[4] + 1, self.total_predict_batches_current_dataloader)

    def _show(self, force: bool = False) -> None:
        if self._budget is None or not self.is_enabled:
            return
        now, tokens = time.monotonic(), self._budget.tokens
        if self.is_disabled:
            is_last = force and self.seconds_between_lines > 0 and self._line_at != tokens and self._began is not None
            if self._is_time_for_line(now) or is_last:
                self._wrote, self._line_at = now, tokens
                share = min(100.0, 100 * tokens / self._limit)
                limit = f"{self._limit:,}"
                log.info("%s: %.0f %% of %s tokens; %s", self.train_description, share, limit, self.status())
        elif force or now - self._refreshed >= REFRESH_SECONDS:
            self._refreshed, bar = now, self.train_progress_bar
            bar.n = min(tokens, self._limit)
            bar.bar_format = BAR + self.status().replace("{", "{{").replace("}", "}}")
            bar.refresh()

    def get_metrics(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, Any]:
        loss = trainer.callback_metrics.get(LOSS)
        return {**({} if loss is None else {LOSS: float(loss)}), **super().get_metrics(trainer, pl_module)}

    def status(self) -> str:
        """What stands behind the bar: loss, scores, speed, and the time left to the end of the budget."""
        shown = self.get_metrics(self.trainer, self.trainer.lightning_module)
        parts = [
            f"{name.removeprefix('train/').replace('/', ' ')} {round(float(value), 3) + 0.0:.3f}"
            for name, value in shown.items()
            if name not in ("budget/fraction", "v_num")
        ]
        if self._budget is None or self._began is None:
            return ", ".join(parts)
        seconds, tokens = time.monotonic() - self._began[0], self._budget.tokens - self._began[1]
        if tokens > 0 and seconds > 0:
            meter = find_callback(self.trainer, ThroughputMeter)
            speed = meter.tokens_per_s if meter is not None and meter.tokens_per_s else tokens / seconds
            left = max(0, self._limit - self._budget.tokens) * seconds / tokens
            parts += [f"{speed:,.0f} tokens/s", f"{Tqdm.format_interval(left)} left"]
        return ", ".join(parts)

    def _write_line(self, what: str, done: int, total: float) -> None:
        """A line about batches, where there is no terminal."""
        now = time.monotonic()
        if self.is_enabled and self.is_disabled and self._is_time_for_line(now):
            self._wrote = now
            log.info("%s: %d of %s batches", what, done, f"{total:.0f}")

    def _is_time_for_line(self, now: float) -> bool:
        self._wrote = self._wrote or now  # the first line comes after a while, too
        return self.seconds_between_lines > 0 and now - self._wrote >= self.seconds_between_lines
