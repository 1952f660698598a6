"""TokenBudget: stop a run when it has processed so many tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lightning as L

from contactlm.callbacks.step_sums import StepSums
from contactlm.types import ContactLMError

Count = Callable[[Any], tuple[int, int]]


def count_tokens(batch: Any) -> tuple[int, int]:
    """Count a batch of ``ContactDataModule``: (tokens, residues).

    Tokens are what the computation costs: B x T, padding and special tokens included.
    """
    return batch["tokens"].numel(), int(batch["lengths"].sum())


class TokenBudget(L.Callback):
    """Stops training once a number of tokens was processed; no batch starts after that.

    Counts training batches only (not the sanity check, evaluation or the learning rate finder), summed over all
    processes, saved in checkpoints: a spent budget stays spent. Use it with ``max_epochs=-1`` and ``min_epochs=0``.
    With ``accumulate_grad_batches``, the last batch of the budget ends with an optimizer step, as the last of an epoch
    does, so that no gradient is thrown away. Logs ``budget/tokens``, ``budget/residues`` and ``budget/fraction``; on
    several processes without a limit, accumulated batches are added up at the end of their step.

    Args:
        max_tokens: The budget; None counts without a limit.
        count: Gives (tokens, residues) of a batch; the default reads batches of ``ContactDataModule``.

    Raises:
        ContactLMError: The budget is not positive.

    Examples:
        >>> import lightning as L
        >>> from contactlm.callbacks import TokenBudget
        >>> budget = TokenBudget(max_tokens=5_000_000)
        >>> trainer = L.Trainer(max_epochs=-1, min_epochs=0, callbacks=[budget], logger=False, accelerator="cpu")
        >>> budget.tokens, budget.fraction, budget.spent
        (0, 0.0, False)
    """

    def __init__(self, max_tokens: int | None = 5_000_000, count: Count = count_tokens) -> None:
        if max_tokens is not None and max_tokens < 1:
            raise ContactLMError(f"budget.max_tokens is {max_tokens}; it must be at least 1 (null: no limit)")
        self.max_tokens = max_tokens
        self.count = count
        self.tokens = 0
        self.residues = 0
        self._own = [0, 0]  # tokens and residues of this process that are not summed yet
        self._coming = [0, 0]  # those of all processes that are summed, of batches that have not ended
        self._is_last_of_epoch: bool | None = None  # known, while Lightning is told that it is

    @property
    def fraction(self) -> float:
        """Fraction of the budget that is spent; 0 without a limit."""
        return self.tokens / self.max_tokens if self.max_tokens else 0.0

    @property
    def spent(self) -> bool:
        """Whether the run has to stop."""
        return self.max_tokens is not None and self.tokens >= self.max_tokens

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stop before the first batch when a resumed run has spent its budget already."""
        trainer.should_stop |= self.spent
        self._own, self._coming = [0, 0], [0, 0]
        StepSums.of(trainer).join(self, self._give, self._take)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """The same where a strategy loads a checkpoint late."""
        trainer.should_stop |= self.spent

    def _give(self) -> list[int]:
        own, self._own = self._own, [0, 0]
        return own

    def _take(self, sums: list[int]) -> None:
        self._coming = [coming + more for coming, more in zip(self._coming, sums, strict=True)]

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Count the batch; all processes know at the same step that it is the last one."""
        self._own = [own + more for own, more in zip(self._own, self.count(batch), strict=True)]
        if self.max_tokens is None or not trainer.fit_loop._should_accumulate():
            return  # no one needs to know before its step
        StepSums.of(trainer).exchange(trainer, early=True)
        if self.tokens + self._coming[0] >= self.max_tokens:
            # Lightning steps on the last batch of an epoch, however many batches were accumulated
            progress = trainer.fit_loop.epoch_loop.batch_progress
            self._is_last_of_epoch, progress.is_last_batch = progress.is_last_batch, True

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Add the batch up, and stop when the budget is spent."""
        StepSums.of(trainer).settle(trainer)
        if self._is_last_of_epoch is not None:
            trainer.fit_loop.epoch_loop.batch_progress.is_last_batch = self._is_last_of_epoch
            self._is_last_of_epoch = None
        self.tokens += self._coming[0]
        self.residues += self._coming[1]
        self._coming = [0, 0]
        trainer.should_stop |= self.spent
        pl_module.log("budget/tokens", float(self.tokens))
        pl_module.log("budget/residues", float(self.residues))
        if self.max_tokens is not None:
            pl_module.log("budget/fraction", self.fraction, prog_bar=True)

    def state_dict(self) -> dict[str, int]:
        """What was spent."""
        return {"tokens": self.tokens, "residues": self.residues}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Go on from what was spent."""
        self.tokens, self.residues = state_dict["tokens"], state_dict["residues"]
