"""A score of your own, logged for dev and test next to those of contactlm: the recall of contacts at 0.5.

Copy this file, and give it to any run: ``contactlm fit --config crop200 --trainer.callbacks own_score.Recall …``
"""

from __future__ import annotations

from typing import Any

import lightning as L
import torch


class Recall(L.Callback):
    """The share of true contacts at least 6 residues apart that are predicted, a mean over proteins."""

    def __init__(self, min_separation: int = 6) -> None:
        self.min_separation = min_separation
        self.found: list[float] = []

    def _add(self, outputs: Any) -> None:
        """Steps give a map of probabilities (L, L) and of labels (1, 0; −1: unknown) for each protein."""
        for probability, labels in zip(outputs["probability"], outputs["labels"], strict=True):
            contacts = (labels == 1).triu(self.min_separation)
            if contacts.any():
                self.found.append(float((probability[contacts] > 0.5).float().mean()))

    def _log(self, module: L.LightningModule, name: str) -> None:
        mean = torch.tensor(self.found).mean()
        module.log(name, mean, sync_dist=True)
        self.found = []

    def on_validation_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, *_: Any) -> None:
        """Add the proteins of a batch."""
        self._add(outputs)

    def on_test_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, *_: Any) -> None:
        """Add the proteins of a batch."""
        self._add(outputs)

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log the mean over dev."""
        self._log(pl_module, "dev/recall")

    def on_test_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log the mean over the test set."""
        self._log(pl_module, "test/recall")
