"""Half precision, activation checkpointing: the same training in fewer bits or less memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from contactlm import ContactModule
from contactlm.callbacks import FlopsMeter, TokenBudget
from contactlm.model.lora import LoraOptions
from tests.model.made import make_tokens
from tests.test_callbacks import closed_form_flops, data_module, trainer

DEEP = {"num_hidden_layers": 4, "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64}


def twins(**options: Any) -> tuple[ContactModule, ContactModule]:
    """The same weights, adapters not zero, without and with activation checkpointing."""
    modules = []
    for activation_checkpointing in (False, True):
        module = ContactModule(None, DEEP, activation_checkpointing=activation_checkpointing, **options)
        generator = torch.Generator().manual_seed(3)
        for name, parameter in module.named_parameters():
            if "lora_" in name:
                parameter.data.normal_(0, 0.3, generator=generator)
        modules.append(module)
    return modules[0], modules[1]


def loss_and_gradients(module: ContactModule, tokens: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    torch.manual_seed(5)  # dropout draws from it
    loss = module.loss(module.contact_logits(tokens), labels)
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("lora", [LoraOptions(r=4, dropout=0.3, target_modules=("query", "key", "value")), None])
@pytest.mark.parametrize("autocast", [False, True])
def test_checkpointed_layers_give_the_same_loss_and_gradients(lora: LoraOptions | None, autocast: bool) -> None:
    plain, checkpointed = twins(lora=lora)
    tokens = make_tokens([17, 30, 9])
    labels = torch.randint(-1, 2, (3, 30, 30), generator=torch.Generator().manual_seed(0), dtype=torch.int8)
    calls = []
    checkpointed.backbone.esm.encoder.layer[1].LayerNorm.register_forward_hook(lambda *_: calls.append(1))
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        expected, wanted = loss_and_gradients(plain, tokens, labels)
        loss, gradients = loss_and_gradients(checkpointed, tokens, labels)
    assert len(calls) == 2
    torch.testing.assert_close(loss, expected, rtol=0, atol=0)
    assert gradients.keys() == wanted.keys() and len(wanted) >= 10
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, wanted[name], rtol=0, atol=1e-6, msg=name)
    other = loss_and_gradients(plain.eval(), tokens, labels)[0]
    assert lora is None or float((other - expected).abs()) > 1e-4  # dropout did something


def test_nothing_is_computed_twice_where_nothing_is_trained() -> None:
    module = ContactModule(None, DEEP, activation_checkpointing=True)
    calls = []
    module.backbone.esm.encoder.layer[0].LayerNorm.register_forward_hook(lambda *_: calls.append(1))
    module.eval().contact_logits(make_tokens([9]))
    assert len(calls) == 1
    assert not module.backbone.esm.embeddings.word_embeddings._forward_hooks  # nobody asks embeddings for a gradient


def recomputed_flops(B: int, T: int, module: ContactModule, r: int) -> int:
    """The second forward pass of all layers but the last: what it computes up to the input of its last product."""
    config = module.backbone.esm.config
    d, ff, H = config.hidden_size, config.intermediate_size, config.num_attention_heads
    N, pairs = B * T, B * T * T
    projections = 4 * 2 * N * d * d + 2 * 2 * 2 * N * d * r + 2 * N * d * ff
    attention = 2 * 2 * pairs * d + 2 * 2 * pairs * H
    return (config.num_hidden_layers - 1) * (projections + attention)


def test_flops_include_the_second_pass(tmp_path: Path, pdb_folders: tuple[Path, Path]) -> None:
    by_shape = []
    for module in twins():
        meter = FlopsMeter()
        trainer(tmp_path, meter, TokenBudget(300)).fit(module, data_module(pdb_folders))
        (flops,) = meter.by_shape.values()
        assert meter.total == 3 * flops
        by_shape.append(flops)
    assert by_shape[0] == closed_form_flops(4, 32, module, r=8)
    assert by_shape[1] - by_shape[0] == recomputed_flops(4, 32, module, r=8)


def test_a_resumed_run_counts_anew_when_checkpointing_is_switched_on(
    tmp_path: Path, pdb_folders: tuple[Path, Path]
) -> None:
    plain, checkpointed = twins()
    first = trainer(tmp_path, FlopsMeter(), TokenBudget(300))
    first.fit(plain, data_module(pdb_folders))
    first.save_checkpoint(tmp_path / "a.ckpt")
    meter = FlopsMeter()
    again = trainer(tmp_path, meter, TokenBudget(600))
    again.fit(checkpointed, data_module(pdb_folders), ckpt_path=tmp_path / "a.ckpt")
    once = closed_form_flops(4, 32, plain, r=8)
    assert meter.total == 5 * once + 2 * recomputed_flops(4, 32, plain, r=8)
