"""Callbacks and metrics of contactlm in a project with a model and data of its own.

Copy this file and run it: ``python own_callbacks.py``. Maps go to the folder ``maps``, or to one that is named behind
it. The model here sees noisy distances of residues and learns how near contacts are: two weights, and batches that look
nothing like those of ContactDataModule.
"""

from __future__ import annotations

import sys
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from contactlm import ContactMap
from contactlm.callbacks import ContactEvaluation, FlopsMeter, LossGuard, PredictionWriter, ThroughputMeter, TokenBudget
from contactlm.metrics import PrecisionAtL, ProteinMCC
from contactlm.structure.contacts import contact_labels

Item = dict[str, Any]


class Walks(Dataset[Item]):
    """Random walks of 3.8 Å steps that stay compact, with noisy distances.

    Args:
        seeds: One a walk.
        length: Residues of each.
    """

    def __init__(self, seeds: range, length: int = 60) -> None:
        self.seeds, self.length = seeds, length

    def __len__(self) -> int:
        return len(self.seeds)

    def __getitem__(self, n: int) -> Item:
        seed = self.seeds[n]
        rng = torch.Generator().manual_seed(seed)
        position, positions = torch.zeros(3), []
        for step in torch.randn(self.length, 3, generator=rng):
            step = step - 0.1 * position
            position = position + 3.8 * step / step.norm()
            positions.append(position)
        walk = torch.stack(positions)
        noise = torch.randn(self.length, self.length, generator=rng)
        return {
            "name": f"walk_{seed}",
            "far": torch.cdist(walk, walk) + noise + noise.T,
            "contacts": contact_labels(walk),
        }


class Cutoff(L.LightningModule):
    """A pair touches where its noisy distance is small: how small is learned."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.Linear(1, 1)
        self.mcc, self.precision = ProteinMCC(min_separation=6), PrecisionAtL(k=5, min_separation=6)

    def forward(self, far: Tensor) -> Tensor:
        """Logits (B, L, L) of distances (B, L, L) in Å."""
        logits: Tensor = self.weights(far[..., None] / 10)[..., 0]
        return logits

    def training_step(self, batch: Item, batch_idx: int) -> Tensor:
        """Cross-entropy over all pairs."""
        known = batch["contacts"] >= 0
        return nn.functional.binary_cross_entropy_with_logits(
            self(batch["far"])[known], batch["contacts"][known].float()
        )

    def validation_step(self, batch: Item, batch_idx: int) -> Item:
        """Metrics by hand; and what ContactEvaluation reads: a name, a map of probabilities and labels a protein."""
        probability = self(batch["far"]).sigmoid()
        self.mcc.update(probability, batch["contacts"])
        self.precision.update(probability, batch["contacts"])
        return {"ids": batch["name"], "probability": list(probability), "labels": list(batch["contacts"])}

    def on_validation_epoch_end(self) -> None:
        """Log the metrics; the trainer resets them."""
        self.log("my/mcc", self.mcc, prog_bar=True)
        self.log("my/p_at_L5", self.precision)

    def predict_step(self, batch: Item, batch_idx: int) -> list[ContactMap]:
        """What PredictionWriter reads."""
        maps = self(batch["far"]).sigmoid().cpu().numpy()
        return [ContactMap(name, "X" * len(p), p) for name, p in zip(batch["name"], maps, strict=True)]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam."""
        return torch.optim.Adam(self.parameters(), lr=0.2)


def count(batch: Item) -> tuple[int, int]:
    """(tokens, residues) of a batch: here they are the same."""
    B, L, _ = batch["far"].shape
    return B * L, B * L


def main(out: str = "maps", *, max_tokens: int = 60_000) -> L.Trainer:
    """Train within a budget, score, and write maps; gives the trainer."""
    callbacks: list[L.Callback] = [TokenBudget(max_tokens, count=count), FlopsMeter(), ThroughputMeter()]
    callbacks += [LossGuard(names=lambda batch: batch["name"]), ContactEvaluation(), PredictionWriter(out, ["rr"])]
    trainer = L.Trainer(
        max_epochs=-1, callbacks=callbacks, logger=False, enable_checkpointing=False, check_val_every_n_epoch=2
    )
    train, dev = DataLoader(Walks(range(80)), batch_size=8), DataLoader(Walks(range(80, 90)), batch_size=4)
    model = Cutoff()
    trainer.fit(model, train, dev)
    trainer.predict(model, dev, return_predictions=False)
    return trainer


if __name__ == "__main__":
    main(*sys.argv[1:2])
