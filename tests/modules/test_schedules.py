"""Learning rate schedulers from a config, each stepped at its own frequency."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

from contactlm import ContactModule
from contactlm.cli.main import main
from contactlm.modules.optimization import CosineWithWarmup
from contactlm.types import TrainingError

RATE = 1e-2
TINY = {"num_hidden_layers": 2, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 16}


class Rates(L.Callback):
    """Notes the learning rate that each optimizer step is made with, and each look at the dev set."""

    noted: list[float | str] = []  # noqa: RUF012 - found again by the test

    def on_before_optimizer_step(self, trainer: L.Trainer, module: Any, optimizer: torch.optim.Optimizer) -> None:
        self.noted.append(optimizer.param_groups[0]["lr"])

    def on_validation_end(self, trainer: L.Trainer, module: Any) -> None:
        self.noted.append("look")


@pytest.fixture
def fit(tmp_path: Path, pdb_folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch):
    def run(scheduler: str) -> list[float | str]:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr("sys.argv", ["contactlm"])
        monkeypatch.setattr(Rates, "noted", [])
        Path("own.yaml").write_text(
            f"model: {{scheduler: {scheduler}, optimizer: {{class_path: torch.optim.SGD, "
            f"init_args: {{lr: {RATE}}}}}}}\n"
        )
        options = ["--model.pretrained=null", f"--model.architecture={TINY}", "--model.lora=null"]
        options += [f"--data.train_dir={pdb_folders[0]}", "--data.min_length=10", "--data.read_workers=0"]
        options += [
            "--data.crop_length=30",
            "--data.batch_size=2",
            "--budget.max_tokens=576",
            "--data.dev_fraction=0.3",
        ]
        options += ["--trainer.accelerator=cpu", "--trainer.val_check_interval=3", "--test_after_fit=false"]
        options += [f"--trainer.callbacks={__name__}.Rates", "--trainer.enable_progress_bar=false"]
        assert main(["fit", "--config=own.yaml", *options]) == 0
        return Rates.noted

    return run


def steps(noted: list[float | str]) -> list[float]:
    return [rate for rate in noted if not isinstance(rate, str)]


@pytest.mark.slow
def test_one_cycle_steps_every_optimizer_step(fit) -> None:
    rates = steps(
        fit(f"{{class_path: torch.optim.lr_scheduler.OneCycleLR, init_args: {{max_lr: {RATE}, total_steps: 20}}}}")
    )
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=RATE)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, 20)
    expected = []
    for _ in rates:
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert len(rates) >= 8 and rates == pytest.approx(expected, rel=1e-12)


@pytest.mark.slow
def test_a_cosine_with_warm_up(fit) -> None:
    name = "contactlm.modules.optimization.CosineWithWarmup"
    rates = steps(fit(f"{{class_path: {name}, init_args: {{warmup_steps: 3, total_steps: 9}}}}"))
    rise = [1e-3 + (1 - 1e-3) * n / 3 for n in range(3)]
    fall = [(1 + math.cos(math.pi * n / 6)) / 2 for n in range(6)]
    assert rates[:9] == pytest.approx([RATE * factor for factor in rise + fall][: len(rates)], rel=1e-6)
    with pytest.raises(TrainingError, match="warmup_steps is 9 and total_steps 9"):
        CosineWithWarmup(torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0), 9, 9)


@pytest.mark.slow
@pytest.mark.parametrize("made_by", ["torch", "lightning"])
def test_a_plateau_counts_looks_at_the_dev_set(fit, made_by: str) -> None:
    """With patience 0 and a threshold that no score can pass, every look but the first lowers the rate once."""
    where = "torch.optim.lr_scheduler" if made_by == "torch" else "lightning.pytorch.cli"
    monitor = "" if made_by == "torch" else "monitor: dev/auprc_sep6, "
    options = f"{{{monitor}mode: max, patience: 0, factor: 0.5, threshold: 10, threshold_mode: abs}}"
    noted = fit(f"{{class_path: {where}.ReduceLROnPlateau, init_args: {options}}}")
    looks, expected = 0, []
    for entry in noted:
        looks += entry == "look"
        if not isinstance(entry, str):
            expected.append(RATE * 0.5 ** max(0, looks - 1))
    assert noted.count("look") >= 2 and steps(noted) == pytest.approx(expected, rel=1e-12)
    assert expected[-1] < RATE


@pytest.mark.slow
def test_a_plateau_of_the_loss_counts_steps(fit) -> None:
    options = "{mode: min, patience: 0, factor: 0.5, threshold: 10, threshold_mode: abs}"
    rates = steps(fit(f"{{class_path: torch.optim.lr_scheduler.ReduceLROnPlateau, init_args: {options}}}"))
    assert rates == pytest.approx([RATE * 0.5 ** max(0, n - 1) for n in range(len(rates))], rel=1e-12)


def test_a_score_that_no_look_gives_is_named(tmp_path: Path, fit, capsys: pytest.CaptureFixture) -> None:
    options = "{monitor: dev/mcc_sep7, mode: max}"
    with pytest.raises(AssertionError):
        fit(f"{{class_path: lightning.pytorch.cli.ReduceLROnPlateau, init_args: {options}}}")
    error = capsys.readouterr().err
    assert "monitors dev/mcc_sep7, which no look at the dev set gives" in error and "dev/mcc_sep6" in error


def test_predict_map_takes_the_windows_of_its_module() -> None:
    module = ContactModule(None, TINY, lora=None, window=20, overlap=12)
    sequence = "MKTAYIAKQRQISFVKSHFSRQLEERLGLI"
    how = module.predict_map(sequence).how
    assert (how["window"], how["overlap"]) == (20, 12)
    assert module.predict_map(sequence, window=24).how["window"] == 24
    assert module.predict_map(sequence, overlap=14).how["overlap"] == 14
    assert module.predict_map(sequence, window=None).how["window"] is None
