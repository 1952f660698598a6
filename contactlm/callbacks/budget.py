"""TokenBudget: stop a run when it has processed so many tokens; space the looks at dev in between."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from typing import Any

import lightning as L
import torch

from contactlm.callbacks.steps import StepSums, ends_with_step, is_time_to_log
from contactlm.types import ContactLMError

Count = Callable[[Any], tuple[int, int]]
BY_SHARE = sys.maxsize  # batches between two looks at dev, where the budget decides when they are: no run has so many
_ROUNDING = 1e-9  # 0.15 / 0.05 is a little less than 3


def count_tokens(batch: Any) -> tuple[int, int]:
    """Count a batch of ``ContactDataModule``: (tokens, residues).

    Tokens are what the computation costs: B x T, padding and special tokens included. Residues were counted where the
    batch was made: asking the device for them would wait for it.
    """
    residues = batch["residue_count"] if "residue_count" in batch else int(batch["lengths"].sum())
    return batch["tokens"].numel(), residues


class TokenBudget(L.Callback):
    """Stops training once a number of tokens was processed; no batch starts after that.

    Counts training batches only (not the sanity check, evaluation or the learning rate finder), summed over all
    processes, saved in checkpoints. Use it with ``max_epochs=-1`` and ``min_epochs=0``. With
    ``accumulate_grad_batches`` it ends with an optimizer step. Logs ``budget/tokens``, ``budget/residues`` and
    ``budget/fraction``.

    The dev set is looked at after every 5 % of the budget (of ``max_steps`` or ``max_epochs`` of the trainer, where
    these come first). A trainer with a ``val_check_interval`` or ``check_val_every_n_epoch`` of its own keeps it. Put
    this callback before those that ask the trainer how it validates (``EarlyStopping``).

    Args:
        max_tokens: The budget; None: count without a limit.
        count: Gives (tokens, residues) of a batch; the default reads batches of ``ContactDataModule``.
        look_every: Share of the run between two dev evaluations; None: Lightning's own rules.

    Raises:
        ContactLMError: The budget is not positive, or the share not above 0 and at most 1.

    Examples:
        >>> import lightning as L
        >>> from contactlm.callbacks import TokenBudget
        >>> budget = TokenBudget(max_tokens=5_000_000)
        >>> trainer = L.Trainer(max_epochs=-1, min_epochs=0, callbacks=[budget], logger=False, accelerator="cpu")
        >>> budget.tokens, budget.fraction, budget.spent
        (0, 0.0, False)
    """

    def __init__(
        self, max_tokens: int | None = 5_000_000, count: Count = count_tokens, look_every: float | None = 0.05
    ) -> None:
        if max_tokens is not None and max_tokens < 1:
            raise ContactLMError(f"budget.max_tokens is {max_tokens}; it must be at least 1 (null: no limit)")
        if look_every is not None and not 0 < look_every <= 1:
            raise ContactLMError(
                f"budget.look_every is {look_every}; it must be above 0 and at most 1 (0.05: 20 looks at dev; null: as "
                "trainer.val_check_interval and trainer.check_val_every_n_epoch say)"
            )
        self.max_tokens, self.look_every = max_tokens, look_every
        self.count = count
        self.tokens = self.residues = 0
        self._own = [0, 0]  # tokens and residues of this process that are not summed yet
        self._coming = [0, 0]  # those of all processes that are summed, of batches that have not ended
        self._is_last_of_epoch: bool | None = None  # known, while Lightning takes it for the last
        self._looked_after = -1  # batches: when the last look at dev that was due by its share was
        self._looks = 0  # those that were due up to the last step

    @property
    def fraction(self) -> float:
        """Fraction of the budget that is spent; 0 without a limit."""
        return self.tokens / self.max_tokens if self.max_tokens else 0.0

    @property
    def spent(self) -> bool:
        return self.max_tokens is not None and self.tokens >= self.max_tokens

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Take the looks at dev over from a trainer that has no rule for them."""
        left_alone = (trainer.val_check_interval, trainer.check_val_every_n_epoch) == (1.0, 1)
        wanted = None not in (self.look_every, self.max_tokens) and not trainer.fast_dev_run  # type: ignore[attr-defined]  # a connector sets it
        if stage == "fit" and wanted and left_alone:
            trainer.val_check_interval, trainer.check_val_every_n_epoch = BY_SHARE, None

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stop before the first batch when a resumed run has spent its budget already."""
        trainer.should_stop |= self.spent
        self._own, self._coming = [0, 0], [0, 0]
        StepSums.of(trainer).join(self, self._give, self._take)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """The same where a strategy loads a checkpoint late; find out how many looks at dev are over."""
        trainer.should_stop |= self.spent
        if trainer.val_check_interval == BY_SHARE:
            self._looks = self._due(trainer)
            self._tell_look(trainer, self._looked_after == trainer.fit_loop.total_batch_idx + 1)

    def _give(self) -> list[int]:
        own, self._own = self._own, [0, 0]
        return own

    def _take(self, sums: list[int]) -> None:
        self._coming = [coming + more for coming, more in zip(self._coming, sums, strict=True)]

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, *_: Any) -> None:
        """Count the batch; all processes know at the same step that it is the last one."""
        self._own = [own + more for own, more in zip(self._own, self.count(batch), strict=True)]
        if self.max_tokens is None or ends_with_step(trainer):
            return  # no one needs to know before its step
        StepSums.of(trainer).exchange(trainer, early=True)
        if self.tokens + self._coming[0] >= self.max_tokens:
            # Lightning steps on the last batch of an epoch, however many batches were accumulated
            progress = trainer.fit_loop.epoch_loop.batch_progress
            self._is_last_of_epoch, progress.is_last_batch = progress.is_last_batch, True

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        StepSums.of(trainer).settle(trainer)
        if self._is_last_of_epoch is not None:
            trainer.fit_loop.epoch_loop.batch_progress.is_last_batch = self._is_last_of_epoch
            self._is_last_of_epoch = None
        self.tokens += self._coming[0]
        self.residues += self._coming[1]
        self._coming = [0, 0]
        trainer.should_stop |= self.spent
        if trainer.val_check_interval == BY_SHARE:  # look when the step has completed another part of the run
            due = self._due(trainer) if ends_with_step(trainer) else self._looks
            self._tell_look(trainer, due > self._looks)
            self._looks = due
        if is_time_to_log(trainer):  # tensors on the CPU stay there; a number would be copied to the device
            pl_module.log("budget/tokens", torch.tensor(float(self.tokens)))
            pl_module.log("budget/residues", torch.tensor(float(self.residues)))
            if self.max_tokens is not None:
                pl_module.log("budget/fraction", torch.tensor(self.fraction), prog_bar=True)

    def _due(self, trainer: L.Trainer) -> int:
        """How many looks at dev are due up to here."""
        loop, shares = trainer.fit_loop, [self.fraction]
        if trainer.max_steps > 0:
            shares.append(trainer.global_step / trainer.max_steps)
        if trainer.max_epochs is not None and trainer.max_epochs > 0 and math.isfinite(trainer.num_training_batches):
            shares.append((loop.total_batch_idx + 1) / (trainer.max_epochs * trainer.num_training_batches))
        return math.floor(max(shares) / (self.look_every or 1.0) + _ROUNDING)

    def _tell_look(self, trainer: L.Trainer, now: bool) -> None:
        """Lightning validates when so many batches are over, or a multiple of it."""
        batches = trainer.fit_loop.total_batch_idx + 1
        trainer.val_check_batch = batches if now else BY_SHARE
        self._looked_after = batches if now else self._looked_after

    def state_dict(self) -> dict[str, int]:
        """What was spent, and after how many batches the last look at dev was due."""
        return {"tokens": self.tokens, "residues": self.residues, "looked_after": self._looked_after}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        self.tokens, self.residues = state_dict["tokens"], state_dict["residues"]
        self._looked_after = state_dict.get("looked_after", -1)
