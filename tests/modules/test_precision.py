"""Half precision, activation checkpointing: the same training in fewer bits or less memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import Tensor

from contactlm import ContactModule
from contactlm.callbacks import ContactEvaluation, FlopsMeter, LossGuard, TokenBudget
from contactlm.model.backbone import ContactBackbone
from contactlm.model.lora import LoraOptions
from contactlm.model.losses import contact_loss
from contactlm.types import ModelError
from tests.callbacks.test_callbacks import closed_form_flops, data_module, trainer
from tests.model.made import make_tokens, tiny_esm

STEPS = 50
GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
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


def esm_of(module: ContactModule) -> Any:
    return module.backbone.esm


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
    esm_of(checkpointed).encoder.layer[1].LayerNorm.register_forward_hook(lambda *_: calls.append(1))
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
    esm_of(module).encoder.layer[0].LayerNorm.register_forward_hook(lambda *_: calls.append(1))
    module.eval().contact_logits(make_tokens([9]))
    assert len(calls) == 1
    assert not esm_of(module).embeddings.word_embeddings._forward_hooks  # nobody asks embeddings for a gradient


def recomputed_flops(B: int, T: int, module: ContactModule, r: int) -> int:
    """The second forward pass of all layers but the last: what it computes up to the input of its last product."""
    config = esm_of(module).config
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


class Losses(L.Callback):
    def __init__(self) -> None:
        self.values: list[float] = []

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.values.append(float(outputs["loss"]))


def adam(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=2e-3)


def run(path: Path, folders: tuple[Path, Path], **options: Any) -> tuple[list[float], dict[str, float], LossGuard]:
    """Losses of some steps of a small model, its test scores, and what the guard had to do."""
    losses, guard, evaluation = Losses(), LossGuard(max_consecutive=1), ContactEvaluation()
    module = ContactModule(None, DEEP | {"num_hidden_layers": 2}, lora=None, optimizer=adam, head_lr_factor=10)
    data = data_module(folders)
    runner = trainer(path, losses, guard, evaluation, max_steps=STEPS, gradient_clip_val=1.0, **options)
    runner.fit(module, data)
    (scores,) = runner.test(module, data, verbose=False)
    assert all(p.dtype == torch.float32 and bool(p.isfinite().all()) for p in module.parameters())
    return losses.values, dict(scores), guard


def cpu_float16() -> MixedPrecision:
    """What 16-mixed is on a GPU; of its own accord Lightning takes bfloat16 on the CPU."""
    return MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=2.0**10))


@pytest.fixture(scope="module")
def in_float32(
    tmp_path_factory: pytest.TempPathFactory, pdb_folders: tuple[Path, Path]
) -> tuple[list[float], dict[str, float]]:
    """Losses and test scores without any precision lost."""
    losses, scores, _ = run(tmp_path_factory.mktemp("float32"), pdb_folders)
    return losses, scores


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["bf16-mixed", "float16 with a gradient scaler"])
def test_mixed_precision_trains_as_float32_does(
    tmp_path: Path, pdb_folders: tuple[Path, Path], in_float32: tuple[list[float], dict[str, float]], kind: str
) -> None:
    expected, wanted = in_float32
    how: dict[str, Any] = {"precision": kind} if kind == "bf16-mixed" else {"plugins": [cpu_float16()]}
    losses, scores, guard = run(tmp_path, pdb_folders, **how)
    assert len(losses) == len(expected) == STEPS and guard.skipped == 0
    assert expected[-1] < 0.9 * expected[0]
    assert losses == pytest.approx(expected, abs=2e-3)
    for name in ("mcc", "mcc_sep6", "auprc_sep6", "p_at_L_long"):
        assert scores[f"test/{name}"] == pytest.approx(wanted[f"test/{name}"], abs=0.03), name


@pytest.mark.parametrize(("dtype", "bound"), [(torch.bfloat16, 0.1), (torch.float16, 0.01)])
@pytest.mark.parametrize("seed", [0, 1])
def test_logits_in_half_precision_are_close_to_float32(dtype: torch.dtype, bound: float, seed: int) -> None:
    model, tokens = ContactBackbone(tiny_esm(seed, spread=4.0)).train(), make_tokens([17, 30, 2, 9], seed)
    labels = (torch.rand(4, 30, 30, generator=torch.Generator().manual_seed(seed)) < 0.1).to(torch.int8)
    exact = model(tokens)
    weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
    with torch.autocast("cpu", dtype):
        logits = model(tokens)
        loss = contact_loss(logits, labels)
    assert logits.dtype == loss.dtype == torch.float32
    assert float((logits - exact).abs().max().detach()) < bound * float(exact.std().detach())
    expected = contact_loss(exact, labels)
    torch.testing.assert_close(loss, expected, rtol=0, atol=1e-4)
    scale = 1024  # as a gradient scaler does, so that small gradients do not vanish in float16
    got = torch.cat([g.flatten() for g in torch.autograd.grad(loss * scale, weights)]) / scale
    want = torch.cat([g.flatten() for g in torch.autograd.grad(expected, weights)])
    assert bool(got.isfinite().all())
    assert float(torch.cosine_similarity(got, want, dim=0)) > 0.999


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_loss_of_many_pairs_is_exact_in_half_precision(dtype: torch.dtype) -> None:
    L = 300  # 90,000 pairs: more than float16 can count, and than bfloat16 can tell apart
    labels = torch.randint(-1, 2, (1, L, L), generator=torch.Generator().manual_seed(0), dtype=torch.int8)
    logits = torch.randn(1, L, L, generator=torch.Generator().manual_seed(1)).to(dtype)
    torch.testing.assert_close(contact_loss(logits, labels), contact_loss(logits.float(), labels), rtol=0, atol=1e-6)


@GPU
@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed"])
def test_mixed_precision_on_a_gpu(tmp_path: Path, pdb_folders: tuple[Path, Path], precision: str) -> None:
    expected, wanted, _ = run(tmp_path, pdb_folders, accelerator="gpu", devices=1)
    losses, scores, _ = run(tmp_path, pdb_folders, accelerator="gpu", devices=1, precision=precision)
    assert losses == pytest.approx(expected, abs=2e-2)
    assert scores["test/auprc_sep6"] == pytest.approx(wanted["test/auprc_sep6"], abs=0.05)


@pytest.mark.parametrize("precision", ["bf16-true", "16-true"])
def test_true_half_precision_is_refused(tmp_path: Path, pdb_folders: tuple[Path, Path], precision: str) -> None:
    with pytest.raises(ModelError, match=f"precision is {precision}.*take bf16-mixed"):
        trainer(tmp_path, precision=precision).fit(ContactModule(None, DEEP), data_module(pdb_folders))
    with pytest.raises(ModelError, match=f"precision is {precision}.*take bf16-mixed"):
        trainer(tmp_path, precision=precision).test(ContactModule(None, DEEP), data_module(pdb_folders))


def test_a_compiled_module_is_refused(tmp_path: Path, pdb_folders: tuple[Path, Path]) -> None:
    whole, part = (ContactModule(None, DEEP) for _ in range(2))
    part.backbone = torch.compile(part.backbone)  # type: ignore[assignment]
    for module in (torch.compile(whole), part):
        with pytest.raises(ModelError, match=r"torch\.compile: .* hand over the module itself"):
            trainer(tmp_path).fit(module, data_module(pdb_folders))  # type: ignore[arg-type]
