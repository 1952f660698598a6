"""What a step costs, told from sizes, and counted by PyTorch."""

from __future__ import annotations

import pytest
import torch

from contactlm import ContactModule, ContrastiveModule, MapModule
from contactlm.callbacks.flops import flop_counter
from contactlm.model.backbone import load_esm
from contactlm.model.evidence import Evidence
from contactlm.model.lora import LoraOptions, add_lora
from contactlm.model.retrieval_backbone import RetrievalBackbone
from contactlm.model.step_flops import retrieval_flops

from .families import ARCHITECTURES, architecture

OPTIONS = {
    "lora": {},
    "lora, frozen head": {"train_head": False},
    "lora everywhere": {"lora": LoraOptions(target_modules=["query", "key", "value", "dense"])},
    "checkpointed": {"activation_checkpointing": True},
    "all weights": {"lora": None},
    "all weights, checkpointed": {"lora": None, "activation_checkpointing": True},
    "head": {"lora": None, "freeze_backbone": True},
}


def crops(B: int, L: int) -> dict[str, object]:
    generator = torch.Generator().manual_seed(B * L)
    tokens = torch.randint(4, 24, (B, L + 2), generator=generator)
    tokens[:, 0], tokens[:, -1] = 0, 2
    tokens[0, -3:] = torch.tensor([2, 1, 1])  # one of them is padded
    cb = torch.randn(B, L, 3, generator=generator).cumsum(1) * 3
    return {"tokens": tokens, "attention_mask": tokens != 1, "cb": cb}


def counted(module: MapModule, batch: dict[str, object]) -> tuple[int, int]:
    module.train()
    module.log = lambda *_, **__: None  # type: ignore[method-assign]
    with flop_counter() as counter:
        loss = module.training_step(batch, 0)  # type: ignore[arg-type]
        forward = counter.get_total_flops()
        loss.backward()
        return counter.get_total_flops(), forward


@pytest.mark.parametrize("options", OPTIONS)
def test_the_sum_of_products_is_what_is_counted(options: str) -> None:
    module = ContactModule(None, architecture("ESM2"), **OPTIONS[options])
    if options == "lora, frozen head":
        for weight in module.head_parameters():
            torch.nn.init.uniform_(weight, 0.1, 1)
    for B, L in ((1, 11), (3, 30)):
        batch = crops(B, L)
        assert module.step_flops(batch) == counted(module, batch), (B, L)


@pytest.mark.parametrize("name", [name for name in ARCHITECTURES if name != "ESM2"])
def test_so_it_is_of_every_family(name: str) -> None:
    batch = crops(2, 20)
    for options in ({}, {"lora": None}):
        module = ContactModule(None, architecture(name), **options)
        assert module.step_flops(batch) == counted(module, batch), options


@pytest.mark.parametrize("options", ["lora", "checkpointed", "all weights"])
def test_so_it_is_of_the_contrastive_objective(options: str) -> None:
    module = ContrastiveModule(None, architecture("ESM2"), projection_dim=24, **OPTIONS[options])
    for B, L in ((1, 11), (3, 30)):
        batch = crops(B, L)
        assert module.step_flops(batch) == counted(module, batch), (B, L)


def test_what_depends_on_more_than_sizes_has_to_be_counted() -> None:
    batch = crops(2, 20)
    assert ContactModule(None, architecture("ESM2"), attention="plain").step_flops(batch) is None
    frozen = ContactModule(None, architecture("ESM2"), train_head=False)
    torch.nn.init.zeros_(frozen.head_parameters()[0][:, :2])  # heads that nobody reads are left out
    assert frozen.step_flops(batch) is None
    assert MapModule(torch.nn.Linear(2, 2)).step_flops(batch) is None


@pytest.mark.parametrize(("L", "segments", "hits"), [(11, 1, 1), (30, 5, 3), (513, 4, 2)])  # the last is computed twice
def test_so_it_is_of_a_model_that_reads_structures(L: int, segments: int, hits: int) -> None:
    B = 2
    esm = add_lora(load_esm(None, architecture("ESM2")), LoraOptions()).base_model.model
    backbone = RetrievalBackbone(esm, layers=2, width=32)
    for weight in (backbone.decoder.head_weight, backbone.template.weight):
        torch.nn.init.ones_(weight)
    batch = crops(B, L)
    evidence = Evidence.none(B, L, esm.config.hidden_size, hits, segments)
    with flop_counter() as counter:
        logits = backbone(batch["tokens"], batch["attention_mask"], None, evidence)
        forward = counter.get_total_flops()
        logits.sum().backward()
    told = retrieval_flops(backbone, B, L + 2, segments, hits)
    assert (told.total, told.forward) == (counter.get_total_flops(), forward)
