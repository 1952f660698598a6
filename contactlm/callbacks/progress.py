"""BudgetProgressBar: progress towards the end of the budget, on a terminal or in a log."""

from __future__ import annotations

import logging
import os
import sys
import time
from typing import Any

import lightning as L
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm, TQDMProgressBar
from lightning.pytorch.trainer.states import TrainerFn

from contactlm.callbacks.budget import TokenBudget
from contactlm.callbacks.steps import find_callback
from contactlm.callbacks.throughput import ThroughputMeter

log = logging.getLogger(__name__)

REFRESH_SECONDS = 0.2
LOSS = "train/loss"
BAR = "{desc} {percentage:3.0f}%|{bar}| "


class BudgetProgressBar(TQDMProgressBar):
    """Shows how much of the token budget is spent, what is logged with ``prog_bar=True``, the speed and the time left.

    The time left is that to the end of the budget at the pace so far, evaluation included; the speed is that of
    :class:`ThroughputMeter` where the trainer has one. Without :class:`TokenBudget`, or with one that has no limit,
    training is shown by epochs, as Lightning does.

    Bars go to standard error. Where that is no terminal (a log file, a batch system), or where the environment
    variable TQDM_DISABLE is set, there are no bars, but a line from time to time, through Python's logging.

    Args:
        seconds_between_lines: How often a line is written where there is no terminal; 0: never.
    """

    reads_loss_when_drawn = True  # a module need not log it for the bar: Lightning would ask the device every step

    def __init__(self, seconds_between_lines: float = 30.0) -> None:
        super().__init__()
        self.seconds_between_lines = seconds_between_lines
        self._budget: TokenBudget | None = None
        self._began: tuple[float, int] | None = None  # time and tokens, once the first batch is over
        self._refreshed = self._wrote = 0.0
        self._line_at = -1  # tokens

    @property
    def has_terminal(self) -> bool:
        """Whether bars can be drawn."""
        return sys.stderr.isatty() and os.environ.get("TQDM_DISABLE", "").lower() in ("", "0", "false", "no")

    @property
    def is_disabled(self) -> bool:
        """Whether no bars are drawn: switched off, not the first process, or no terminal."""
        return not (self.is_enabled and self.has_terminal)

    def _bar(self, description: str, keep: bool, row: int = 0) -> Tqdm:
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
        """A bar for the validation before training."""
        return self._bar(self.sanity_check_description, keep=False)

    def init_train_tqdm(self) -> Tqdm:
        """The bar of training."""
        return self._bar(self.train_description, keep=True)

    def init_validation_tqdm(self) -> Tqdm:
        """A bar below that of training, gone when the look at dev is over; the only one in ``validate``."""
        in_training = self.trainer.state.fn == TrainerFn.FITTING
        return self._bar(self.validation_description, keep=not in_training, row=int(in_training))

    def init_test_tqdm(self) -> Tqdm:
        """The bar of the test."""
        return self._bar(self.test_description, keep=True)

    def init_predict_tqdm(self) -> Tqdm:
        """The bar of predictions."""
        return self._bar(self.predict_description, keep=True)

    def on_train_start(self, *args: Any) -> None:
        """Begin with what a resumed run has spent."""
        super().on_train_start(*args)
        budget = find_callback(self.trainer, TokenBudget)
        self._budget = budget if budget is not None and budget.max_tokens is not None else None
        self._began, self._wrote = None, time.monotonic()
        if self._budget is not None:
            self.train_progress_bar.total = self._budget.max_tokens
            self._show(force=True)

    def on_train_epoch_start(self, trainer: L.Trainer, *args: Any) -> None:
        """Epochs mean nothing to a budget."""
        if self._budget is None:
            super().on_train_epoch_start(trainer, *args)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Show what is spent now."""
        if self._budget is None:
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
            self._write_line(self.train_description, batch_idx + 1, self.total_train_batches)
            return
        if self._began is None:
            self._began = time.monotonic(), self._budget.tokens
        self._show()

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Epochs mean nothing to a budget."""
        if self._budget is None:
            super().on_train_epoch_end(trainer, pl_module)

    def on_train_end(self, *args: Any) -> None:
        """Show the last state, and leave it there."""
        if self._budget is not None:
            self._show(force=True)
        super().on_train_end(*args)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Show the new scores."""
        if self._budget is None or trainer.state.fn != TrainerFn.FITTING:
            super().on_validation_end(trainer, pl_module)
            return
        self.val_progress_bar.close()
        self.reset_dataloader_idx_tracker()
        self._show(force=not self.is_disabled)

    def on_test_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Show the batches that are done."""
        super().on_test_batch_end(trainer, pl_module, outputs, batch, batch_idx, dataloader_idx)
        self._write_line(self.test_description, batch_idx + 1, self.total_test_batches_current_dataloader)

    def on_predict_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Show the batches that are done."""
        super().on_predict_batch_end(trainer, pl_module, outputs, batch, batch_idx, dataloader_idx)
        self._write_line(self.predict_description, batch_idx + 1, self.total_predict_batches_current_dataloader)

    def _show(self, force: bool = False) -> None:
        """Draw the bar of training, or write a line, when it is time."""
        if self._budget is None or not self.is_enabled:
            return
        now = time.monotonic()
        if self.is_disabled:
            due = force and self.seconds_between_lines > 0 and self._line_at != self._budget.tokens
            if self._is_time_for_line(now) or (due and self._began is not None):
                self._wrote, self._line_at = now, self._budget.tokens
                log.info("%s: %.0f %% of %s tokens; %s", *self._spent(), self.status())
            return
        if force or now - self._refreshed >= REFRESH_SECONDS:
            self._refreshed, bar = now, self.train_progress_bar
            bar.n = min(self._budget.tokens, self._budget.max_tokens or 0)
            bar.bar_format = BAR + self.status().replace("{", "{{").replace("}", "}}")
            bar.refresh()

    def _spent(self) -> tuple[str, float, str]:
        limit = 0 if self._budget is None else self._budget.max_tokens or 0
        spent = 0 if self._budget is None else self._budget.tokens
        return self.train_description, min(100.0, 100 * spent / max(limit, 1)), f"{limit:,}"

    def get_metrics(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, Any]:
        """What is logged with ``prog_bar=True``, and the loss."""
        return {**self._loss(), **super().get_metrics(trainer, pl_module)}

    def _loss(self) -> dict[str, float]:
        loss = self.trainer.callback_metrics.get(LOSS)
        return {} if loss is None else {LOSS: float(loss)}

    def status(self) -> str:
        """What stands behind the bar: loss, scores, speed, and the time left to the end of the budget."""
        shown = {**self._loss(), **self.trainer.progress_bar_metrics}
        shown.pop("budget/fraction", None)
        parts = [f"{name.removeprefix('train/').replace('/', ' ')} {value:.3f}" for name, value in shown.items()]
        if self._budget is None or self._began is None:
            return ", ".join(parts)
        seconds, tokens = time.monotonic() - self._began[0], self._budget.tokens - self._began[1]
        if tokens > 0 and seconds > 0:
            meter = find_callback(self.trainer, ThroughputMeter)
            speed = meter.tokens_per_s if meter is not None and meter.tokens_per_s else tokens / seconds
            left = max(0, (self._budget.max_tokens or 0) - self._budget.tokens) * seconds / tokens
            parts += [f"{speed:,.0f} tokens/s", f"{Tqdm.format_interval(left)} left"]
        return ", ".join(parts)

    def _write_line(self, what: str, done: int, total: float) -> None:
        """A line about batches, where there is no terminal."""
        now = time.monotonic()
        if self.is_enabled and not self.has_terminal and self._is_time_for_line(now):
            self._wrote = now
            log.info("%s: %d of %s batches", what, done, f"{total:.0f}")

    def _is_time_for_line(self, now: float) -> bool:
        if not self._wrote:  # the first line comes after a while, too
            self._wrote = now
        return self.seconds_between_lines > 0 and now - self._wrote >= self.seconds_between_lines
