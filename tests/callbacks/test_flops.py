"""What a step costs, told from three lengths, against PyTorch's counter; and what the meter counts."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from contactlm import ContactModule, ContrastiveModule, MapModule
from contactlm.callbacks import FlopsMeter, TokenBudget
from contactlm.callbacks import flops as flops_file
from contactlm.callbacks.flops import flop_counter, quadratic
from contactlm.model.lora import LoraOptions
from tests.callbacks.test_callbacks import CountBatches, data_module, trainer
from tests.model.families import ARCHITECTURES, architecture

OPTIONS: dict[str, dict[str, Any]] = {
    "lora": {},
    "lora, frozen head": {"train_head": False},
    "lora everywhere": {"lora": LoraOptions(target_modules=["query", "key", "value", "dense"])},
    "checkpointed": {"activation_checkpointing": True},
    "all weights": {"lora": None},
    "all weights, checkpointed": {"lora": None, "activation_checkpointing": True},
    "head": {"lora": None, "freeze_backbone": True},
    "plain": {"attention": "plain"},
}


def crops(B: int, L: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(B * L)
    tokens = torch.randint(4, 24, (B, L + 2), generator=generator)
    tokens[:, 0], tokens[:, -1] = 0, 2
    tokens[0, -3:] = torch.tensor([2, 1, 1])  # one of them is padded
    cb = torch.randn(B, L, 3, generator=generator).cumsum(1) * 3
    return {"tokens": tokens, "attention_mask": tokens != 1, "cb": cb}


def counted(module: MapModule, B: int, T: int) -> tuple[int, int]:
    module.train()
    module.log = lambda *_, **__: None  # type: ignore[method-assign]
    with flop_counter() as counter:
        loss = module.training_step(crops(B, T - 2), 0)
        forward = counter.get_total_flops()
        loss.backward()
        return counter.get_total_flops(), forward


def check_lengths_tell(module: MapModule) -> None:
    assert module.flops_follow_length
    seen = [(T, [Fraction(flops, B) for flops in counted(module, B, T)]) for B, T in ((1, 13), (3, 32), (2, 47))]
    for B, T in ((1, 12), (3, 22), (2, 56)):
        whole, forward = (B * quadratic(T, {length: costs[part] for length, costs in seen}) for part in range(2))
        assert (whole, forward) == counted(module, B, T), (B, T)


@pytest.mark.parametrize("options", OPTIONS)
def test_three_lengths_tell_what_all_others_cost(options: str) -> None:
    module = ContactModule(None, architecture("ESM2"), **OPTIONS[options])
    if options == "lora, frozen head":
        nn.init.zeros_(module.head_parameters()[0][:, :2])  # heads that nobody reads are left out
    check_lengths_tell(module)


@pytest.mark.parametrize("name", [name for name in ARCHITECTURES if name != "ESM2"])
def test_so_they_do_of_every_family(name: str) -> None:
    for options in ({}, {"lora": None}):
        check_lengths_tell(ContactModule(None, architecture(name), **options))


@pytest.mark.parametrize("options", ["lora", "checkpointed", "all weights"])
def test_so_they_do_of_the_contrastive_objective(options: str) -> None:
    check_lengths_tell(ContrastiveModule(None, architecture("ESM2"), projection_dim=24, **OPTIONS[options]))


class Cubic(ContactModule):
    """Costs something else than its lengths tell."""

    def training_labels(self, cb):
        L = cb.shape[1]
        torch.ones(L, L) @ torch.ones(L, L)
        return super().training_labels(cb)


class Silent(ContactModule):
    flops_follow_length = False


@pytest.mark.slow
def test_four_lengths_are_counted_and_then_believed(tmp_path: Path, pdb_folders, tiny_esm: Path, monkeypatch) -> None:
    counters = []
    monkeypatch.setattr(flops_file, "flop_counter", lambda counter=flop_counter: counters.append(1) or counter())
    sums = []
    for kind in (ContactModule, Silent, Cubic):
        counters.clear()
        meter, seen = FlopsMeter(), CountBatches()
        data = data_module(pdb_folders, crop="whole", batch_size=1)  # of different lengths
        trainer(tmp_path, TokenBudget(1500), meter, seen, limit_val_batches=0).fit(kind(str(tiny_esm)), data)
        lengths = len(set(seen.tokens))
        assert lengths > 4
        assert len(counters) == (4 if kind is ContactModule else lengths)
        sums.append((meter.total, meter.forward))
    assert sums[0] == sums[1] and sums[2] > sums[0]
