"""TokenBudget: stop a run when it has processed so many tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lightning as L
import torch

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
    Logs ``budget/tokens``, ``budget/residues`` and ``budget/fraction``.

    Args:
        max_tokens: The budget; None counts without a limit.
        count: Gives (tokens, residues) of a batch; the default reads batches of ``ContactDataModule``.

    Raises:
        ContactLMError: The budget is not positive.
    """

    def __init__(self, max_tokens: int | None = 5_000_000, count: Count = count_tokens) -> None:
        if max_tokens is not None and max_tokens < 1:
            raise ContactLMError(f"budget.max_tokens is {max_tokens}; it must be at least 1 (null: no limit)")
        self.max_tokens = max_tokens
        self.count = count
        self.tokens = 0
        self.residues = 0

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

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count the batch, of all processes; they all come to the same decision at the same step."""
        counts = torch.tensor(self.count(batch), device=pl_module.device)
        tokens, residues = trainer.strategy.reduce(counts, reduce_op="sum").tolist()
        self.tokens += int(tokens)
        self.residues += int(residues)
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
