"""The arms of the reference experiments: thin configs that differ in what they test, and in nothing else."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import yaml

from contactlm.cli.configs import resolve_arguments
from contactlm.cli.main import ContactCLI, main
from contactlm.shipped import config_folder

RETRIEVAL = {
    *("model_class", "model.index", "model.hits", "model.decoder_layers", "model.decoder_width", "model.template_bias"),
    *("model.decoder_lr_factor", "model.max_identity", "model.shuffled_hits", "model.cache_dir"),
}
# What each arm tests: the options that may differ from crop200.
TESTED = {
    "full1020": {"data.crop", "data.crop_length", "data.batch_size", "trainer.accumulate_grad_batches"},
    "cut200": {"data.crop"},
    "crop200": set(),
    "crop384": {"data.crop_length", "data.batch_size"},
    "twoseg": {"data.crop"},
    "fullft": {"model.lora"},
    "headonly": {"model.lora", "model.freeze_backbone"},
    "zeroshot": {"model.lora", "model.freeze_backbone", "model.train_head", "trainer.max_steps"},
    "contrastive": {
        "model_class",
        "model.projection_dim",
        "model.temperature",
        "model.positives",
        "model.negatives",
        "model.train_head",
        "model.loss_min_separation",
        "model.attention",
    },
}
BESIDE_RETRIEVAL = {
    "retrieval_tokens": {"model.template_bias": (True, False)},
    "retrieval_shuffled": {"model.shuffled_hits": (False, True)},
}
TESTED |= dict.fromkeys(("retrieval", *BESIDE_RETRIEVAL), RETRIEVAL)
TOKENS_OF_A_LOOK = 20 * 16 * 202  # batches of crop200 between two looks at the dev set


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["contactlm"])


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        found |= flat(value, f"{name}.") if isinstance(value, dict) and name != "model.lora" else {name: value}
    return found


def options_of(arm: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    for name in ("before_instantiate_classes", "instantiate_classes", "_run_subcommand"):
        monkeypatch.setattr(ContactCLI, name, lambda *_: None)
    config = ContactCLI(resolve_arguments(["fit", "--config", arm])).config["fit"]
    options = flat({key: value for key, value in config.as_dict().items() if key != "config"})
    # Not part of what is learned: where logs go, and how many batches lie between two looks at the dev set.
    return {k: v for k, v in options.items() if k not in ("trainer.logger", "trainer.val_check_interval")}


@pytest.mark.parametrize("arm", TESTED)
def test_an_arm_differs_from_crop200_in_what_it_tests_alone(arm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, own = options_of("crop200", monkeypatch), options_of(arm, monkeypatch)
    differing = {key for key in plain.keys() | own.keys() if plain.get(key, "none") != own.get(key, "none")}
    assert differing <= TESTED[arm]
    assert own["budget.max_tokens"] == 5_000_000


@pytest.mark.parametrize("arm", BESIDE_RETRIEVAL)
def test_a_control_differs_from_retrieval_in_one_option(arm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    full, own = options_of("retrieval", monkeypatch), options_of(arm, monkeypatch)
    assert {key: (full[key], own[key]) for key in full if full[key] != own[key]} == BESIDE_RETRIEVAL[arm]
    assert full.keys() == own.keys()


@pytest.mark.parametrize("arm", TESTED)
def test_an_arm_is_a_thin_config_that_logs_under_its_name(arm: str) -> None:
    text = (config_folder() / f"{arm}.yaml").read_text()
    assert len(text.splitlines()) <= 25 and text.startswith("# ")
    config = yaml.safe_load(text)
    assert [logger["init_args"]["name"] for logger in config["trainer"]["logger"]] == [arm, arm]
    data = config["data"]
    looks = config["trainer"].get("val_check_interval", 20) * data["batch_size"] * (data["crop_length"] + 2)
    assert abs(looks - TOKENS_OF_A_LOOK) / TOKENS_OF_A_LOOK < 0.05


def test_zeroshot_scores_dev_and_test_and_trains_nothing(tmp_path: Path, tiny_esm: Path, pdb_folders, capsys) -> None:
    folders = [f"--data.train_dir={pdb_folders[0]}", f"--data.test_dir={pdb_folders[1]}", "--data.min_length=10"]
    model = [f"--model.pretrained={tiny_esm}", "--trainer.accelerator=cpu"]
    assert main(["fit", "--config=zeroshot", *folders, *model]) == 0
    assert "mcc_sep6" in capsys.readouterr().out
    run = tmp_path / "runs" / "zeroshot" / "version_0"
    assert not list(run.rglob("*.ckpt"))
    rows = list(csv.DictReader((run / "metrics.csv").open()))
    scored = {key for row in rows for key, value in row.items() if value}
    assert {"dev/mcc_sep6", "test/mcc_sep6"} <= scored and "train/loss" not in scored
