"""Every kind of adapter: twenty steps, resumed in the middle, exported and merged, against stock PEFT."""

from __future__ import annotations

import json
import math
import warnings
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from torch.utils.data import DataLoader
from transformers import EsmModel

from contactlm import ContactModule, ContrastiveModule
from contactlm.alphabet import encode
from contactlm.model.lora import LoraOptions
from contactlm.modules.export import export_adapter, export_merged
from contactlm.types import ModelError
from tests.callbacks.test_callbacks import trainer
from tests.conftest import random_sequence
from tests.modules.test_memory import made_batch

SEQUENCE = random_sequence(7, 37)
KINDS: dict[str, LoraOptions] = {
    "lora": LoraOptions(),
    "rslora": LoraOptions(r=6, alpha=3, use_rslora=True),
    "dora": LoraOptions(r=4, use_dora=True),
    "dora on all": LoraOptions(r=2, use_dora=True, dropout=0.0, target_modules="all-linear"),
    "value and dense": LoraOptions(r=3, target_modules=("value", "intermediate.dense", "output.dense", "query")),
    "one layer": LoraOptions(layers_to_transform=(1,)),
    "patterns": LoraOptions(rank_pattern={"query": 2, r"layer\.1\..*key": 5}, alpha_pattern={"key": 3.5}),
    "gaussian": LoraOptions(init_lora_weights="gaussian"),
    "orthogonal": LoraOptions(init_lora_weights="orthogonal"),
    "biases": LoraOptions(bias="lora_only"),
    "all of it": LoraOptions(
        r=4,
        use_dora=True,
        use_rslora=True,
        layers_to_transform=(0,),
        target_modules=("query", "value", "output.dense"),
        rank_pattern={"value": 2},
        bias="lora_only",
    ),
}


def adam(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=2e-2)


def made(esm: Path, kind: str, seed: int = 0) -> ContactModule:
    torch.manual_seed(seed)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*adapters learn nothing")
        return ContactModule(str(esm), lora=KINDS[kind], optimizer=adam, head_lr_factor=20)


class Losses(L.Callback):
    def __init__(self) -> None:
        self.values: list[float] = []

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.values.append(float(outputs["loss"]))


def steps(path: Path, module: ContactModule, upto: int, checkpoint: Path | None = None) -> tuple[L.Trainer, Losses]:
    batches, losses = [made_batch(2, 40)] * 5, Losses()
    torch.manual_seed(5)  # of the run, whose steps draw dropout by it
    runner = trainer(path, losses, max_steps=upto, num_sanity_val_steps=0)
    runner.fit(module, DataLoader(batches, batch_size=None), ckpt_path=checkpoint)
    return runner, losses


def logits(module: ContactModule) -> torch.Tensor:
    with torch.no_grad():
        return module.eval().contact_logits(torch.tensor([[0, *encode(SEQUENCE).tolist(), 2]]))[0]


def stock_logits(model: Any) -> torch.Tensor:
    """Of transformers' own contact prediction, eager, in float64: the probability keeps fewer digits."""
    tokens = torch.tensor([[0, *encode(SEQUENCE).tolist(), 2]])
    with torch.no_grad():
        return torch.logit(model.double().eval().predict_contacts(tokens, torch.ones_like(tokens)))[0].float()


FAST_KINDS = ("lora", "dora on all", "patterns")


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=() if kind in FAST_KINDS else pytest.mark.slow) for kind in KINDS]
)
def test_twenty_steps_go_on_and_go_out(tmp_path: Path, tiny_esm: Path, kind: str) -> None:
    module, first = made(tiny_esm, kind), made(tiny_esm, kind)
    untrained = logits(module)
    _, losses = steps(tmp_path, module.train(), 20)
    assert losses.values[-1] < losses.values[0] - 0.01
    expected = logits(module)
    assert (expected - untrained).abs().max() > 0.05
    runner, _ = steps(tmp_path, first, 10)
    runner.save_checkpoint(tmp_path / "ten.ckpt")
    second = made(tiny_esm, kind, seed=1)  # what adapters begin with is in the checkpoint
    steps(tmp_path, second, 20, tmp_path / "ten.ckpt")
    assert torch.equal(logits(second), expected)

    backbone = EsmModel.from_pretrained(tiny_esm, add_pooling_layer=False, attn_implementation="eager")
    out = export_adapter(module, tmp_path / "adapter")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # no key of the file is missing or too many
        warnings.filterwarnings("ignore", ".*is_gradient_checkpointing", FutureWarning)
        theirs = PeftModel.from_pretrained(backbone, out)
    torch.testing.assert_close(expected, stock_logits(theirs), rtol=1e-5, atol=1e-5)
    again = ContactModule.from_adapter(out)
    torch.testing.assert_close(logits(again), expected, rtol=0, atol=1e-6)
    assert {n for n, p in again.named_parameters() if p.requires_grad} == module.saved_names()
    merged = EsmModel.from_pretrained(
        export_merged(module, tmp_path / "merged"), add_pooling_layer=False, attn_implementation="eager"
    )
    torch.testing.assert_close(expected, stock_logits(merged), rtol=1e-5, atol=1e-5)
    assert torch.equal(logits(module), expected)  # the module is as it was


@pytest.mark.parametrize("kind", KINDS)
def test_what_learns_is_what_peft_lets_learn(tiny_esm: Path, kind: str) -> None:
    options = KINDS[kind]
    module = made(tiny_esm, kind)
    whole = ["query", "key", "value", "attention.output.dense", "intermediate.dense", "output.dense"]
    wanted = options.target_modules or ("query", "key")
    esm = EsmModel.from_pretrained(tiny_esm, add_pooling_layer=False)
    layers = options.layers_to_transform
    theirs = get_peft_model(
        esm,
        LoraConfig(
            r=options.r,
            lora_alpha=options.alpha,
            target_modules=list(whole if wanted == "all-linear" else wanted),
            modules_to_save=["contact_head"],
            layers_to_transform=None if layers is None else list(layers),
            rank_pattern=dict(options.rank_pattern or {}),
            alpha_pattern=dict(options.alpha_pattern or {}),
            use_rslora=options.use_rslora,
            use_dora=options.use_dora,
            bias=options.bias,
        ),
    )
    shapes = {n: tuple(p.shape) for n, p in theirs.base_model.model.named_parameters() if p.requires_grad}
    ours = {n: tuple(p.shape) for n, p in module.backbone.esm.named_parameters() if p.requires_grad}
    after_the_last_map = ("1.attention.self.value", "1.attention.output", "1.intermediate", "1.output")
    idle = {n for n in shapes if any(f"layer.{part}." in n for part in after_the_last_map)}
    assert ours == {n: shape for n, shape in shapes.items() if n not in idle}
    scaling = {n: m.scaling["default"] for n, m in esm.named_modules() if isinstance(m, LoraLayer)}
    for name, part in module.backbone.esm.named_modules():
        if name in scaling:
            assert part.scaling["default"] == pytest.approx(scaling[name])


def test_names_of_peft_and_of_ours_mean_the_same(tiny_esm: Path) -> None:
    module = ContactModule(str(tiny_esm), lora=LoraOptions(r=16, alpha=8, use_rslora=True))
    assert module.backbone.esm.encoder.layer[0].attention.self.query.scaling["default"] == 8 / math.sqrt(16)


def test_adapters_that_learn_nothing_are_named(tiny_esm: Path) -> None:
    with pytest.warns(
        UserWarning, match=r"2 of 4 adapters learn nothing \(encoder.layer.1.attention.self.value and 1 more"
    ):
        ContactModule(str(tiny_esm), lora=LoraOptions(target_modules=("value", "attention.output.dense")))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for options in (LoraOptions(), LoraOptions(target_modules="all-linear", layers_to_transform=(0,))):
            ContactModule(str(tiny_esm), lora=options)
        # here the last layer's states are read
        ContrastiveModule(str(tiny_esm), lora=LoraOptions(target_modules="all-linear"))
    with pytest.raises(ModelError, match=r"all adapters \(encoder.layer.1.attention.self.value\) come after the last"):
        ContactModule(str(tiny_esm), lora=LoraOptions(target_modules=("value",), layers_to_transform=(1,)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target_modules": ("querry",)}, r"'querry'\] not in the backbone; .*; did you mean query\?"),
        ({"target_modules": "query"}, "target_modules: 'query' given; give a list of names, or all-linear"),
        ({"layers_to_transform": (0, 2)}, r"layers_to_transform \[0, 2\]: \[2\]; the backbone has layers 0 to 1"),
        ({"layers_to_transform": ()}, "none given"),
        ({"rank_pattern": {"kez": 4}}, r"rank_pattern: no target module is called 'kez'; did you mean key\?"),
        ({"rank_pattern": {"value": 4}}, "no target module is called 'value'"),
        ({"alpha_pattern": {"(": 4}}, "'\\(' is no regular expression"),
        ({"rank_pattern": {"key": 0}}, "r=0"),
        ({"init_lora_weights": "pissa"}, "pissa and its like, .* begin by changing the frozen weights"),
        ({"init_lora_weights": "orthogonal", "r": 3}, "orthogonal needs even ranks"),
        ({"bias": "all"}, "bias: 'all' given; choose from none, lora_only"),
        ({"use_rslore": True}, r"there is no option 'use_rslore'; did you mean use_rslora\? \(options: r, alpha"),
    ],
)
def test_options_that_cannot_be(tiny_esm: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        ContactModule(str(tiny_esm), lora=options)  # type: ignore[arg-type]  # plain values, as a checkpoint has them


def test_a_stock_adapter_of_some_layers_is_read(tmp_path: Path, tiny_esm: Path) -> None:
    esm = EsmModel.from_pretrained(tiny_esm, add_pooling_layer=False, attn_implementation="eager")
    config = LoraConfig(
        r=3, target_modules=["query", "value"], layers_to_transform=[0], use_dora=True, modules_to_save=["contact_head"]
    )
    torch.manual_seed(2)
    theirs = get_peft_model(esm, config)
    for name, parameter in theirs.named_parameters():
        if "lora_" in name:
            parameter.data.add_(torch.randn(parameter.shape), alpha=0.1)
    theirs.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["layers_to_transform"] == [0]
    module = ContactModule.from_adapter(tmp_path, pretrained=str(tiny_esm))
    torch.testing.assert_close(logits(module), stock_logits(theirs), rtol=1e-5, atol=1e-5)
