"""The arms of the reference experiments: thin configs that differ in what they test, and in nothing else."""

from __future__ import annotations

import csv
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import yaml

from contactlm.cli.arguments import resolve_arguments
from contactlm.cli.contact_cli import ContactCLI
from contactlm.cli.main import main
from contactlm.shipped import config_folder

RETRIEVAL = {
    *("model_class", "model.index", "model.hits", "model.decoder_layers", "model.decoder_width", "model.template_bias"),
    *("model.decoder_lr_factor", "model.max_identity", "model.cache_dir"),
}
# What each arm tests: the options that may differ from crop200.
TESTED = {
    "full1020": {"data.crop", "data.crop_length", "data.batch_size", "trainer.accumulate_grad_batches"},
    "cut200": {"data.crop"},
    "crop200": set(),
    "crop384": {"data.crop_length", "data.batch_size"},
    "twoseg": {"data.crop"},
    "twoseg384": {"data.crop", "data.crop_length", "data.batch_size"},
    "whole1": {"data.crop", "data.crop_length", "data.batch_size"},
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
        "model.pair",
        "model.distance_bins",
    },
}
TESTED["jacobian"] = {
    *TESTED["zeroshot"],
    *(
        "model_class",
        "model.symmetrise",
        "model.masked",
        "model.substitutions",
        "model.cache_dir",
        "model.attention",
        "model.pair",
        "model.distance_bins",
    ),
}
BESIDE_RETRIEVAL = {
    "retrieval_tokens": {"model.template_bias": (True, False)},
}
TESTED |= dict.fromkeys(("retrieval", *BESIDE_RETRIEVAL), RETRIEVAL)
# The crop, its length and the size of a batch, where they are not those of crop200.
CROPS = {
    "full1020": ("cut", 1020, 2),
    "cut200": ("cut", 200, 16),
    "crop384": ("random", 384, 8),
    "twoseg": ("two_segments", 200, 16),
    "twoseg384": ("two_segments", 384, 2),
    "whole1": ("cut", 1020, 1),
}


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


@cache
def resolved(*configs: str) -> dict[str, Any]:
    """What ``contactlm fit`` would run with."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("sys.argv", ["contactlm"])
        for name in ("before_instantiate_classes", "instantiate_classes", "_run_subcommand"):
            patched.setattr(ContactCLI, name, lambda *_: None)
        config = ContactCLI(resolve_arguments(["fit", *(f"--config={each}" for each in configs)])).config["fit"]
    return flat({key: value for key, value in config.as_dict().items() if key != "config"})


def options_of(arm: str) -> dict[str, Any]:
    return {k: v for k, v in resolved(arm).items() if k not in ("name", "trainer.logger")}  # where logs go


@pytest.mark.parametrize("arm", TESTED)
def test_an_arm_differs_from_crop200_in_what_it_tests_alone(arm: str) -> None:
    plain, own = options_of("crop200"), options_of(arm)
    differing = {key for key in plain.keys() | own.keys() if plain.get(key, "none") != own.get(key, "none")}
    assert differing <= TESTED[arm]
    assert own["budget.max_tokens"] == 5_000_000


@pytest.mark.parametrize("arm", BESIDE_RETRIEVAL)
def test_a_control_differs_from_retrieval_in_one_option(arm: str) -> None:
    full, own = options_of("retrieval"), options_of(arm)
    assert {key: (full[key], own[key]) for key in full if full[key] != own[key]} == BESIDE_RETRIEVAL[arm]
    assert full.keys() == own.keys()


@pytest.mark.parametrize("arm", TESTED)
def test_an_arm_is_what_it_tests(arm: str) -> None:
    text = (config_folder() / f"{arm}.yaml").read_text()
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    assert text.startswith("# ") and lines[0].startswith("config: ") and 2 <= len(lines) <= 6
    assert yaml.safe_load(text)["name"] == arm


@pytest.mark.parametrize(
    "configs",
    [
        *((arm,) for arm in TESTED),
        *product(("random8m",), ("crop200", "full1020", "retrieval_tokens")),
    ],
)
def test_an_arm_alone_and_over_a_layer(configs: tuple[str, ...]) -> None:
    config, (*under, arm) = resolved(*configs), configs
    assert (config["name"], config["trainer.logger"]) == (arm, resolved()["trainer.logger"])
    assert (config["data.train_ids"], config["data.test_ids"]) == ("ids/train.txt", "ids/test.txt")
    crop = tuple(config[f"data.{option}"] for option in ("crop", "crop_length", "batch_size"))
    assert crop == CROPS.get(arm, ("random", 200, 16))
    assert (config["trainer.val_check_interval"], config["budget.look_every"]) == (None, 0.05)  # by tokens, in all arms
    of_layer = {"model.pretrained", "data.synthetic.folder", "data.split", "budget.max_tokens"}
    assert {key: config.get(key) for key in of_layer} == {key: resolved(*under).get(key) for key in of_layer}


@pytest.mark.parametrize("config", [None, "quickstart", "random8m"])
def test_what_is_no_arm_fetches_nothing(config: str | None) -> None:
    options = resolved(*([config] if config else []))
    assert options["data.train_ids"] is None and options["data.test_ids"] is None
    assert options["name"] == ("quickstart" if config == "quickstart" else "contactlm")


@pytest.mark.slow
def test_zeroshot_scores_dev_and_test_and_trains_nothing(tmp_path: Path, tiny_esm: Path, pdb_folders, capsys) -> None:
    folders = [f"--data.train_dir={pdb_folders[0]}", f"--data.test_dir={pdb_folders[1]}", "--data.min_length=10"]
    model = [f"--model.pretrained={tiny_esm}", "--trainer.accelerator=cpu"]
    assert main(["fit", "--config=zeroshot", *folders, *model]) == 0
    told = capsys.readouterr()
    assert "mcc_sep6" in told.out and "training nothing: " in told.err
    run = tmp_path / "runs" / "zeroshot" / "version_0"
    assert not list(run.rglob("*.ckpt"))
    rows = list(csv.DictReader((run / "metrics.csv").open()))
    scored = {key for row in rows for key, value in row.items() if value}
    assert {"dev/mcc_sep6", "test/mcc_sep6"} <= scored and "train/loss" not in scored
