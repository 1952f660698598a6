"""A LightningModule of one's own, trained on the crops of ContactDataModule.

Copy this file and run it: ``python own_module.py my/train my/test``, with folders of structure files. What a batch
holds, and in which shapes, is written at ``contactlm.data.dataset.Batch``.
"""

from __future__ import annotations

import sys

import lightning as L
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from contactlm import ContactDataModule
from contactlm.data.dataset import Batch
from contactlm.structure.contacts import contact_labels

LETTERS = 33  # tokens of ESM's alphabet


class ConvolutionModule(L.LightningModule):
    """Convolutions along the sequence, and an outer product for pairs: no language model, no attention.

    Args:
        width: Channels.
        lr: Learning rate.
    """

    def __init__(self, width: int = 16, lr: float = 3e-2) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.lr = lr
        self.embed = nn.Embedding(LETTERS, width)
        self.mix = nn.Conv1d(width, width, kernel_size=9, padding=4)
        self.separation = nn.Parameter(torch.zeros(64))  # by |i − j|, the last for all beyond

    def forward(self, tokens: Tensor) -> Tensor:
        """Contact logits (B, L, L) of tokens (B, L + 2): ``<cls>``, residues, ``<eos>``."""
        features = self.mix(self.embed(tokens[:, 1:-1]).mT).relu().mT  # (B, L, width)
        residues = torch.arange(features.shape[1], device=tokens.device)
        separation = (residues - residues[:, None]).abs().clamp(max=63)
        logits: Tensor = features @ features.mT / features.shape[-1] + self.separation[separation]
        return logits

    def _loss(self, batch: Batch) -> Tensor:
        labels = contact_labels(batch["cb"])  # 1 contact, 0 none, −1 unknown: made where the coordinates are
        known = labels >= 0
        return binary_cross_entropy_with_logits(self(batch["tokens"])[known], labels[known].float())

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Loss of a batch of crops."""
        loss = self._loss(batch)
        self.log("train/loss", loss, batch_size=len(batch["ids"]))
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Loss of whole chains that were held out."""
        self.log("dev/loss", self._loss(batch), batch_size=len(batch["ids"]))

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Loss of whole test chains."""
        self.log("test/loss", self._loss(batch), batch_size=len(batch["ids"]))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam."""
        return torch.optim.Adam(self.parameters(), lr=self.lr)


def main(train_dir: str, test_dir: str, max_epochs: int = 20) -> L.Trainer:
    """Train and test; gives the trainer, whose ``callback_metrics`` hold the losses."""
    data = ContactDataModule(train_dir, test_dir, crop_length=100, batch_size=8)
    model = ConvolutionModule()
    trainer = L.Trainer(max_epochs=max_epochs, logger=False, enable_checkpointing=False)
    trainer.fit(model, data)
    trainer.test(model, data)
    return trainer


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
