"""``data.batch_size auto``: the plan's number, told to whatever asks later; refused where there is no GPU."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from contactlm import ContactModule
from contactlm.cli.main import main
from contactlm.model.loading import architecture_of
from contactlm.modules.fitting import crop_batch, largest_batch
from contactlm.modules.step_cost import step_cost


def given(tiny_esm: Path, folders: tuple[Path, Path]) -> list[str]:
    data = [f"--data.train_dir={folders[0]}", "--data.read_workers=0", "--data.batch_size=auto", "--data.min_length=10"]
    more = ["--data.crop_length=30", "--trainer.accelerator=cpu", "--budget.max_tokens=200", "--test_after_fit=false"]
    return ["fit", *data, *more, f"--model.pretrained={tiny_esm}", "--trainer.enable_progress_bar=false"]


@pytest.mark.slow
def test_the_number_is_the_plan_s_and_stays(
    tiny_esm: Path, pdb_folders: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    make = partial(ContactModule, None, architecture_of(str(tiny_esm)))
    three, four = (step_cost(make, crop_batch(rows, 30)).total for rows in (3, 4))
    memory = (three + four) / 2 / 0.9
    monkeypatch.setattr("contactlm.callbacks.batch_size._check_device", lambda _: None)  # as on a GPU
    monkeypatch.setattr("contactlm.callbacks.batch_size.memory_for", lambda _: memory)
    assert main(given(tiny_esm, pdb_folders)) == 0
    (config,), (record,) = tmp_path.rglob("config.yaml"), tmp_path.rglob("run.json")
    assert yaml.safe_load(config.read_text())["data"]["batch_size"] == 3
    run = json.loads(record.read_text())
    assert run["scheme"]["batch_size"] == 3
    assert run["tokens"] == 3 * 32 * run["steps"] and run["steps"] == 3  # of the budget nothing was spent before
    monkeypatch.setattr("contactlm.callbacks.batch_size.memory_for", lambda _: 1e12)  # a larger card
    assert main([*given(tiny_esm, pdb_folders), "--ckpt_path=last", "--budget.max_tokens=400"]) == 0
    assert {yaml.safe_load(path.read_text())["data"]["batch_size"] for path in tmp_path.rglob("config.yaml")} == {3}
    monkeypatch.setattr("contactlm.callbacks.batch_size.memory_for", lambda _: 1e4)
    capsys.readouterr()
    assert main([*given(tiny_esm, pdb_folders), "--name=small"]) == 1
    assert "not one crop of 30 residues fits" in capsys.readouterr().err


def test_without_a_gpu_it_is_refused(
    tiny_esm: Path, pdb_folders: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(given(tiny_esm, pdb_folders)) == 1
    assert "data.batch_size is auto, which is for a GPU; on cpu" in capsys.readouterr().err


@pytest.mark.slow
def test_beyond_eight_it_comes_in_eights_and_fits() -> None:
    sizes = {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64}
    make, cpu = partial(ContactModule, None, sizes), torch.device("cpu")
    wanted = step_cost(make, crop_batch(21, 20)).total / 0.9
    rows, cost = largest_batch(make, 20, wanted, cpu, None)
    assert rows == 16 and cost.total <= 0.9 * wanted
