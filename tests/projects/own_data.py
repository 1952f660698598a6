"""ContactModule with data of one's own: it needs no ContactDataModule, and no structure files.

Copy this file and run it: ``python own_data.py proteins.npz``. The file holds, for each protein ``NAME``, its sequence
as ``NAME.sequence`` and its C-beta coordinates in Å, (L, 3), NaN where unknown, as ``NAME.cb``.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import lightning as L
import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset

from contactlm import ContactModule
from contactlm.alphabet import CLS, EOS, PAD, encode
from contactlm.callbacks import ContactEvaluation, TokenBudget


class Protein(NamedTuple):
    """One protein of a file."""

    name: str
    tokens: Tensor  # int64 (L + 2,): <cls>, residues, <eos>
    cb: Tensor  # float32 (L, 3), Å


class ProteinFile(Dataset[Protein]):
    """The proteins of an ``.npz`` file.

    Args:
        path: The file.
    """

    def __init__(self, path: str) -> None:
        with np.load(path) as arrays:
            self.sequences = {k.removesuffix(".sequence"): str(arrays[k]) for k in arrays if k.endswith(".sequence")}
            self.cb = {name: np.asarray(arrays[f"{name}.cb"], dtype=np.float32) for name in self.sequences}
        self.names = sorted(self.sequences)

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, n: int) -> Protein:
        name = self.names[n]
        tokens = [CLS, *encode(self.sequences[name]).tolist(), EOS]
        return Protein(name, torch.tensor(tokens), torch.from_numpy(self.cb[name]))


def to_batch(proteins: Sequence[Protein]) -> dict[str, Any]:
    """What ContactModule reads: training needs ``tokens``, ``attention_mask`` and ``cb``; scoring the rest, too."""
    tokens = pad_sequence([protein.tokens for protein in proteins], batch_first=True, padding_value=PAD)
    return {
        "tokens": tokens,  # int64 (B, T), T = L + 2
        "attention_mask": tokens != PAD,  # bool (B, T)
        "cb": pad_sequence([protein.cb for protein in proteins], batch_first=True, padding_value=np.nan),  # (B, L, 3)
        "lengths": torch.tensor([len(protein.cb) for protein in proteins]),  # residues
        "ids": [protein.name for protein in proteins],
        "indices": torch.zeros(len(proteins), dtype=torch.int64),  # tells proteins of one name apart
    }


def main(path: str, model: ContactModule | None = None, max_tokens: int = 100_000) -> L.Trainer:
    """Train on all but every tenth protein, and score those; gives the trainer."""
    proteins = ProteinFile(path)
    dev = set(range(0, len(proteins), 10))
    train = torch.utils.data.Subset(proteins, [n for n in range(len(proteins)) if n not in dev])
    train_loader, dev_loader = (
        DataLoader(subset, batch_size=4, shuffle=subset is train, collate_fn=to_batch)
        for subset in (train, torch.utils.data.Subset(proteins, sorted(dev)))
    )
    trainer = L.Trainer(
        max_epochs=-1,
        callbacks=[TokenBudget(max_tokens), ContactEvaluation()],
        logger=False,
        enable_checkpointing=False,
    )
    trainer.fit(model or ContactModule("facebook/esm2_t6_8M_UR50D"), train_loader, dev_loader)
    return trainer


if __name__ == "__main__":
    main(sys.argv[1])
