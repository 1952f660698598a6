"""Modules whose frozen weights are held in bfloat16, int8 or nf4: trained, resumed, loaded, exported, scored."""

from __future__ import annotations

import importlib.util
import json
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from contactlm import ContactModule, ContrastiveModule, JacobianModule, predict_contacts
from contactlm.cli.main import main
from contactlm.model.frozen_weights import whole_weights
from contactlm.model.lora import LoraOptions
from contactlm.modules.export import export_adapter, export_merged
from contactlm.modules.memory import step_cost
from contactlm.types import ModelError
from tests.callbacks.test_callbacks import trainer
from tests.conftest import random_sequence
from tests.modules.test_adapters import SEQUENCE, adam, logits, steps
from tests.modules.test_memory import made_batch

QUANT = pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed")
WAYS: dict[str, dict[str, str]] = {
    "bfloat16": {"backbone_dtype": "bfloat16"},
    "int8": {"quantization": "int8"},
    "nf4": {"quantization": "nf4", "backbone_dtype": "bfloat16"},
}
WAY = [pytest.param(how, id=name, marks=[QUANT] if "quantization" in how else []) for name, how in WAYS.items()]


def made(esm: Path, seed: int = 0, **options: Any) -> ContactModule:
    torch.manual_seed(seed)
    return ContactModule(str(esm), optimizer=adam, head_lr_factor=20, **options)


def in_float32(module: ContactModule) -> ContactModule:
    """The same model with its rounded weights in float32."""
    lora = LoraOptions(**module.hparams["lora"])
    twin = ContactModule(module.hparams["pretrained"], lora=lora)
    twin.backbone.esm.load_state_dict(whole_weights(module.backbone.esm))
    return twin


@pytest.mark.slow
@pytest.mark.parametrize("how", WAY)
@pytest.mark.parametrize("lora", [LoraOptions(use_dora=True, bias="lora_only")], ids=["dora"])
def test_twenty_steps_go_on_and_go_out(tmp_path: Path, tiny_esm: Path, how: dict[str, str], lora: LoraOptions) -> None:
    module, first, exact = made(tiny_esm, lora=lora, **how), made(tiny_esm, lora=lora, **how), made(tiny_esm, lora=lora)
    _, losses = steps(tmp_path, module, 20)
    _, wanted = steps(tmp_path, exact, 20)
    assert losses.values[-1] < losses.values[0] - 0.01
    assert losses.values[0] == pytest.approx(wanted.values[0], abs=0.02)
    expected = logits(module)
    runner, _ = steps(tmp_path, first, 10)
    runner.save_checkpoint(tmp_path / "ten.ckpt")
    steps(tmp_path, second := made(tiny_esm, 1, lora=lora, **how), 20, tmp_path / "ten.ckpt")
    assert torch.equal(logits(second), expected)

    saved = torch.load(tmp_path / "ten.ckpt", weights_only=True)
    assert all(weight.dtype == torch.float32 for weight in saved["state_dict"].values())
    assert sum(weight.numel() for weight in saved["state_dict"].values()) < 8000  # adapters and head alone
    assert saved["contactlm"]["backbone_checksum"] == exact.backbone_checksum  # of the file, however it is held
    loaded = ContactModule.load_from_checkpoint(tmp_path / "ten.ckpt", weights_only=True)
    assert {name: loaded.hparams[name] for name in how} == how and torch.equal(logits(loaded), logits(first))
    whole = ContactModule.load_from_checkpoint(
        tmp_path / "ten.ckpt", weights_only=True, backbone_dtype="float32", quantization=None
    )
    assert whole.held == {} and 0 < (logits(whole) - logits(first)).abs().max() < 1

    twin = logits(in_float32(module))
    torch.testing.assert_close(twin, expected, rtol=0, atol=0.1 if "backbone_dtype" in how else 1e-4)
    merged = ContactModule(str(export_merged(module, tmp_path / "merged")), lora=None, freeze_backbone=True)
    assert {p.dtype for p in merged.parameters()} == {torch.float32}
    torch.testing.assert_close(logits(merged), twin, rtol=1e-5, atol=2e-5)
    out = export_adapter(module, tmp_path / "adapter")
    assert torch.equal(logits(ContactModule.from_adapter(out)), expected)  # held as it was trained
    assert ContactModule.from_adapter(out, backbone_dtype="float32", quantization=None).held == {}
    assert torch.equal(logits(module), expected)


@pytest.mark.parametrize("how", WAY)
def test_mixed_precision_goes_with_it(tmp_path: Path, tiny_esm: Path, how: dict[str, str]) -> None:
    first = []
    for options in ({}, how):
        module = made(tiny_esm, **options)
        runner = trainer(tmp_path, max_steps=5, num_sanity_val_steps=0, precision="bf16-mixed")
        runner.fit(module, DataLoader([made_batch(2, 40)] * 5, batch_size=None))
        first.append(float(runner.callback_metrics["train/loss"]))
    assert first[1] == pytest.approx(first[0], abs=0.03)


def test_weights_that_few_bits_hold_are_not_trained(tmp_path: Path, tiny_esm: Path) -> None:
    with pytest.raises(ModelError, match="backbone_dtype bfloat16 is for frozen weights, and without LoRA all"):
        ContactModule(str(tiny_esm), lora=None, backbone_dtype="bfloat16")

    class Thaw(L.Callback):
        def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            pl_module.requires_grad_(True)

    runner = trainer(tmp_path, Thaw(), max_epochs=2, num_sanity_val_steps=0)
    with pytest.raises(
        ModelError, match=r"12 weights in bfloat16 are to learn, such as backbone\.esm\.encoder\.layer\.0"
    ):
        module = made(tiny_esm, backbone_dtype="bfloat16")
        runner.fit(module, DataLoader([made_batch(2, 40)], batch_size=None))


@pytest.mark.parametrize("how", WAY)
def test_the_other_modules_take_it(tmp_path: Path, tiny_esm: Path, how: dict[str, str]) -> None:
    sequence = random_sequence(1, 24)
    for made_of in (
        partial(ContrastiveModule, str(tiny_esm)),
        partial(JacobianModule, str(tiny_esm), cache_dir=str(tmp_path)),
    ):
        torch.manual_seed(0)
        exact = made_of()
        torch.manual_seed(0)
        narrow = made_of(**how)
        a, b = (torch.tensor(predict_contacts(sequence, module).probability) for module in (exact, narrow))
        assert narrow.run_facts["equal"] == how and exact.run_facts["equal"] == {}
        assert 0 < float((a - b).abs().mean()) < 0.25  # ranks of unrelated scores differ by a third


@pytest.mark.slow
@pytest.mark.parametrize("how", WAY)
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_cost_of_a_step_is_told(how: dict[str, str], device: str) -> None:
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("autograd on tensors of a GPU, though they have no data, needs a PyTorch built for one")
    sizes = {"num_hidden_layers": 3, "hidden_size": 128, "num_attention_heads": 4, "intermediate_size": 512}
    exact, cost = (
        step_cost(partial(ContactModule, None, sizes, **options), made_batch(2, 200), device) for options in ({}, how)
    )
    module = ContactModule(None, sizes, **how)  # type: ignore[arg-type]
    assert cost.weights == sum(x.nbytes for x in [*module.parameters(), *module.buffers()])
    assert cost.weights < 0.6 * exact.weights and cost.gradients == exact.gradients
    assert cost.flops == pytest.approx(exact.flops, rel=0.01)
    if "backbone_dtype" in how:
        assert cost.activations < 0.9 * exact.activations


@pytest.mark.slow
def test_the_command_line_knows_it(
    tiny_esm: Path, pdb_folders: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CONTACTLM_CACHE", str(tmp_path / "cache"))
    data = [f"--data.train_dir={pdb_folders[0]}", f"--data.test_dir={pdb_folders[1]}", "--data.read_workers=0"]
    data += ["--data.crop_length=30", "--data.batch_size=4", "--data.min_length=10", "--trainer.accelerator=cpu"]
    fit = ["fit", "--config=crop200", *data, f"--model.pretrained={tiny_esm}", "--model.backbone_dtype=bfloat16"]
    fit += ["--model.lora.use_dora=true", "--model.lora.rank_pattern.query=2", "--model.lora.layers_to_transform=[0]"]
    assert main([*fit, "--budget.max_tokens=400", "--trainer.val_check_interval=2"]) == 0
    (record,) = tmp_path.glob("runs/*/*/run.json")
    assert json.loads(record.read_text())["equal"]["backbone_dtype"] == "bfloat16"
    (checkpoint,) = tmp_path.glob("runs/*/*/checkpoints/best*.ckpt")
    (tmp_path / "a.fasta").write_text(f">a\n{SEQUENCE}\n")
    maps = {}
    for name, more in {"as trained": [], "whole": ["--model.backbone_dtype=float32"]}.items():
        test = ["test", f"--ckpt_path={checkpoint}", *data[1:], *more]
        assert main(test) == 0
        predict = ["predict", f"--ckpt_path={checkpoint}", "--data.predict_paths=a.fasta", "--formats=[npz]", *more]
        assert main([*predict, f"--out={name}", "--trainer.accelerator=cpu"]) == 0
        options = {"backbone_dtype": "float32"} if more else {}
        module = ContactModule.load_from_checkpoint(checkpoint, weights_only=True, **options)
        assert module.held == ({} if more else {"backbone_dtype": "bfloat16"})
        (path,) = (tmp_path / name).rglob("a.npz")
        maps[name] = np.load(path)["probability"]
        np.testing.assert_allclose(maps[name], module.predict_map(SEQUENCE).probability, atol=1e-6)
    assert (maps["whole"] != maps["as trained"]).any()
    capsys.readouterr()
