"""A small language model that knows couplings: trained on sequences of a made family, of which pairs covary.

``python -m tests.maps.covarying`` trains it and writes the weights that lie beside this file.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import EsmConfig, EsmForMaskedLM

from contactlm.alphabet import CLS, EOS, MASK

WEIGHTS = Path(__file__).with_suffix(".safetensors")
STEPS = 1200
LENGTH, NEAR, FAR = 24, 6, 12
CROP = 14  # the shortest
NOISE = 0.05  # of letters are any
SMALL = {"num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 128}


class Family:
    """Sequences of 24 residues, in which each position covaries with two others, 6 and 12 apart.

    A position has four letters of its own: the row of two by two is shared with one partner, the column with the other.
    Whatever follows from them is in no single position's frequencies. Two of three pairs 6 apart are no partners, so
    that the distance alone does not tell.
    """

    def __init__(self, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.letters = torch.stack([torch.randperm(20, generator=generator)[:4] + 4 for _ in range(LENGTH)])
        near = torch.tensor([(i, i + NEAR) for i in range(LENGTH) if i % (2 * NEAR) < NEAR])
        far = torch.tensor([(i, i + FAR) for i in range(FAR)])
        self.matchings = (near, far)

    @property
    def pairs(self) -> Tensor:
        """The 24 pairs (i, j), i < j."""
        return torch.cat(self.matchings)

    @property
    def labels(self) -> Tensor:
        """int8 (L, L): 1 where two positions covary, 0 elsewhere, −1 on the diagonal."""
        labels = torch.zeros(LENGTH, LENGTH, dtype=torch.int8)
        i, j = self.pairs.T
        labels[i, j] = labels[j, i] = 1
        return labels.fill_diagonal_(-1)

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """Residue tokens, int64 (count, L)."""
        shared = torch.zeros(2, count, LENGTH, dtype=torch.int64)
        for own, pairs in zip(shared, self.matchings, strict=True):
            own[:, pairs] = torch.randint(0, 2, (count, len(pairs)), generator=generator)[..., None]
        tokens = self.letters[torch.arange(LENGTH), 2 * shared[0] + shared[1]]
        any_letter = torch.randint(4, 24, tokens.shape, generator=generator)
        return torch.where(torch.rand(tokens.shape, generator=generator) < NOISE, any_letter, tokens)


def corrupted(tokens: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Tokens as the model sees them, and which it must tell: masked, another letter, or left as they were."""
    chosen = (torch.rand(tokens.shape, generator=generator) < 0.3) & (tokens != CLS) & (tokens != EOS)
    kind = torch.rand(tokens.shape, generator=generator)
    other = torch.randint(4, 24, tokens.shape, generator=generator)
    seen = torch.where(chosen & (kind < 0.6), MASK, torch.where(chosen & (kind >= 0.6) & (kind < 0.9), other, tokens))
    return seen, chosen


def new_model(seed: int = 0) -> EsmForMaskedLM:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = EsmConfig(
            **SMALL,
            vocab_size=33,
            mask_token_id=MASK,
            pad_token_id=1,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            position_embedding_type="rotary",
            token_dropout=True,
            emb_layer_norm_before=False,
            layer_norm_eps=1e-5,
        )
        return EsmForMaskedLM(config)


def saved_model() -> EsmForMaskedLM:
    """The trained model."""
    model = new_model()
    weights = {name: value.float() for name, value in load_file(WEIGHTS).items()}
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert not unexpected and all("decoder" in name for name in missing), (missing, unexpected)  # tied
    return model.eval()


def trained_model(family: Family, steps: int, seed: int = 0, batch: int = 48) -> EsmForMaskedLM:
    """Train by masked language modelling, on whole sequences and on crops."""
    model = new_model(seed).train()
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, betas=(0.9, 0.98))
    rates = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, steps, pct_start=0.1)
    for _ in range(steps):
        length = int(torch.randint(CROP, 2 * LENGTH - CROP, (1,), generator=generator).clamp(max=LENGTH))
        start = int(torch.randint(0, LENGTH - length + 1, (1,), generator=generator))
        residues = family.sample(batch, generator)[:, start : start + length]
        ends = residues.new_full((batch, 1), CLS), residues.new_full((batch, 1), EOS)
        tokens = torch.cat([ends[0], residues, ends[1]], 1)
        seen, chosen = corrupted(tokens, generator)
        logits = model.lm_head(model.esm(seen).last_hidden_state[chosen])
        loss = torch.nn.functional.cross_entropy(logits, tokens[chosen])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        rates.step()
    return model.eval()


if __name__ == "__main__":
    state = trained_model(Family(), STEPS).state_dict()
    save_file({name: value.half() for name, value in state.items() if "decoder" not in name}, WEIGHTS)
