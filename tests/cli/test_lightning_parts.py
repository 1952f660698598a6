"""Every callback and trainer flag that Lightning exports, through the command line: three steps, then a resume."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import yaml
from lightning.pytorch import Trainer, callbacks

from contactlm import ContactModule
from contactlm.cli.arguments import REFUSED
from contactlm.cli.main import main
from tests.callbacks.test_callbacks import data_module, trainer
from tests.cli.test_cli import data_options

Folders = tuple[Path, Path]
Options = dict[str, Any]
PAGE = Path(__file__).parents[2] / "contactlm" / "callbacks" / "README.md"
STEPS, ALL = 3, 5  # of the run that goes on, and in the end
ABSTRACT = {"Callback", "BaseFinetuning", "BasePredictionWriter", "Checkpoint", "ProgressBar"}
WATCHING: dict[str, Options] = {  # these change nothing of a run
    "DeviceStatsMonitor": {},
    "EarlyStopping": {"monitor": "dev/mcc_sep6", "mode": "max", "patience": 9},
    "LambdaCallback": {},
    "LearningRateMonitor": {},
    "ModelCheckpoint": {"dirpath": "others"},
    "ModelSummary": {},
    "OnExceptionCheckpoint": {"dirpath": "failed"},
    "RichModelSummary": {},
    "TQDMProgressBar": {},
    "ThroughputMonitor": {"batch_size_fn": "tests.cli.test_lightning_parts.rows"},
}
CHANGING: dict[str, Options] = {
    "EMAWeightAveraging": {"decay": 0.5},
    "GradientAccumulationScheduler": {"scheduling": {0: 2, 2: 3}},
    "RichProgressBar": {},  # alone, since there can be one progress bar
    "WeightAveraging": {},
}
FLAGS: dict[str, Options] = {
    "of looks and logs": {
        "benchmark": True, "deterministic": True, "detect_anomaly": True, "default_root_dir": "root",
        "enable_autolog_hparams": False, "enable_model_summary": True, "inference_mode": False, "limit_test_batches": 1,
        "limit_predict_batches": 1, "limit_val_batches": 1, "log_every_n_steps": 0, "max_time": "00:01:00:00",
        "min_epochs": 1, "min_steps": 1, "num_sanity_val_steps": 2, "profiler": "simple",
        "reload_dataloaders_every_n_epochs": 1, "sync_batchnorm": True, "use_distributed_sampler": True,
        "enable_progress_bar": False, "val_check_interval": 2,
    },
    "of steps": {"accumulate_grad_batches": 2, "gradient_clip_val": 0.1, "gradient_clip_algorithm": "value"},
    "of epochs": {"limit_train_batches": 2, "max_epochs": 9, "check_val_every_n_epoch": 1, "precision": "bf16-mixed"},
    "of a thorough profiler": {"profiler": "advanced"},
}  # fmt: skip
# in every run here, or tests elsewhere: fast_dev_run in test_cli.py, strategies and nodes in test_distributed.py
EVERYWHERE = {"accelerator", "callbacks", "devices", "enable_checkpointing", "fast_dev_run", "logger", "max_steps"}
EVERYWHERE |= {"model_registry", "num_nodes", "plugins", "strategy"}


def rows(batch: Options) -> int:
    return len(batch["tokens"])


def test_all_that_lightning_exports_is_run_or_refused() -> None:
    known = {*WATCHING, *CHANGING, *(REFUSED.keys() & set(callbacks.__all__)), "BackboneFinetuning", *ABSTRACT}
    assert known == set(callbacks.__all__)
    flags = set(inspect.signature(Trainer.__init__).parameters) - {"self"}
    assert {*EVERYWHERE, *(REFUSED.keys() & flags)}.union(*FLAGS.values()) == flags
    section = PAGE.read_text().partition("## Lightning's own")[2].partition("\n## ")[0]
    assert re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE) == sorted(REFUSED)


def fit(folder: Path, tiny_esm: Path, folders: Folders, options: Options, *more: str, status: int = 0) -> None:
    folder.mkdir(exist_ok=True)
    logger = {"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": {"save_dir": str(folder)}}
    (folder / "c.yaml").write_text(yaml.safe_dump({"trainer": {"accelerator": "cpu", "logger": logger, **options}}))
    small = ["--data.crop_length=30", "--data.batch_size=4", "--data.split=random", "--data.leak_report=never"]
    small += ["--budget.look_every=1.0", "--dashboard.lengths=[]", "--test_after_fit=false"]
    small += [f"--model.pretrained={tiny_esm}", f"--checkpoint.dirpath={folder}", f"--config={folder / 'c.yaml'}"]
    assert main(["fit", "--config=crop200", *data_options(folders), *small, *more]) == status


def of(names: dict[str, Options]) -> Options:
    prefix = "lightning.pytorch.callbacks"
    return {"callbacks": [{"class_path": f"{prefix}.{name}", "init_args": given} for name, given in names.items()]}


CASES = {"callbacks that watch": of(WATCHING), **{name: of({name: given}) for name, given in CHANGING.items()}, **FLAGS}


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_a_part_runs_and_a_resumed_run_is_the_unbroken_one(
    name: str, tmp_path: Path, tiny_esm: Path, pdb_folders: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["contactlm"])
    resume = f"--ckpt_path={tmp_path / 'first' / 'last.ckpt'}"
    for folder, steps, more in (("first", STEPS, []), ("again", ALL, [resume]), ("whole", ALL, [])):
        fit(tmp_path / folder, tiny_esm, pdb_folders, CASES[name], f"--trainer.max_steps={steps}", *more)
    first, again, whole = (
        torch.load(tmp_path / folder / "last.ckpt", weights_only=True) for folder in ("first", "again", "whole")
    )
    assert (first["global_step"], again["global_step"], whole["global_step"]) == (STEPS, ALL, ALL)
    assert again["callbacks"]["TokenBudget"]["tokens"] == whole["callbacks"]["TokenBudget"]["tokens"]
    for part in {"state_dict", "current_model_state"} & whole.keys():
        assert again[part].keys() == whole[part].keys() and not any("word_embeddings" in key for key in whole[part])
        assert all(torch.equal(again[part][key], weight) for key, weight in whole[part].items())
    if "profiler" in CASES[name]:
        assert "Report" in next((tmp_path / "first").rglob("fit-profile.txt")).read_text()


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_run_is_refused_in_one_line(
    name: str, tmp_path: Path, tiny_esm: Path, pdb_folders: Folders, capsys: pytest.CaptureFixture
) -> None:
    needed = {"ModelPruning": {"pruning_fn": "l1_unstructured"}, "StochasticWeightAveraging": {"swa_lrs": 0.1}}
    options = of({name: needed.get(name, {})}) if name in callbacks.__all__ else {name: name == "barebones" or 1}
    fit(tmp_path, tiny_esm, pdb_folders, options, status=1)
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{name} does not run here: " in line and ("give " in line or "by --" in line or "prune what" in line)


class Weights(L.Callback):
    """The weights after each step."""

    def __init__(self) -> None:
        self.steps: list[dict[str, torch.Tensor]] = []

    def on_train_batch_end(self, trainer, pl_module, *_) -> None:
        self.steps.append({name: weight.detach().clone() for name, weight in pl_module.named_parameters()})


def test_averages_are_of_trained_weights_and_frozen_ones_stay(
    tmp_path: Path, tiny_esm: Path, pdb_folders: Folders
) -> None:
    """Rounding would move the average of a weight that does not change, and checkpoints do not hold frozen ones.

    A checkpoint is scored by its average, also by the trainer that has fitted.
    """
    seen, module = Weights(), ContactModule(str(tiny_esm))
    saver = callbacks.ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=2, save_top_k=-1)
    parts = (seen, callbacks.EMAWeightAveraging(decay=0.9), saver)
    runner = trainer(tmp_path, *parts, max_steps=4, num_sanity_val_steps=0, enable_checkpointing=True)
    data = data_module(pdb_folders)
    runner.fit(module, data)
    average = {name: weight.detach().clone() for name, weight in module.named_parameters()}
    runner.test(module, data, ckpt_path=tmp_path / "step=2.ckpt", verbose=False)
    saved = torch.load(tmp_path / "step=2.ckpt", weights_only=True)["state_dict"]
    assert all(torch.equal(module.state_dict()[name], weight) for name, weight in saved.items())
    runner.test(module, data, ckpt_path=tmp_path / "step=4.ckpt", verbose=False)
    assert all(torch.equal(average[name], weight) for name, weight in module.named_parameters())
    for name, weight in module.named_parameters():
        expected = seen.steps[0][name]
        for step in seen.steps[1:]:
            expected = 0.9 * expected + 0.1 * step[name] if weight.requires_grad else step[name]
        torch.testing.assert_close(weight.detach(), expected, rtol=1e-5, atol=1e-7)
        assert weight.requires_grad or torch.equal(weight, seen.steps[0][name])
    assert any(not torch.equal(seen.steps[-1][name], weight) for name, weight in module.named_parameters())
