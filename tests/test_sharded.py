"""Whole commands of a model whose weights are spread over two processes (FSDP2): they do what one process does."""

import csv
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from contactlm.maps.contact_map import ContactMap
from contactlm.modules.sharded_file import is_sharded, load_file
from tests.processes import rank_env, free_port, finish, output, run_ranks, start
from tests.runs.test_interruption import _counted, _kill, command

Folders = tuple[Path, Path]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

SHARDED = ["--trainer.strategy=ModelParallelStrategy", "--trainer.strategy.data_parallel_size=2"]
SHARDED += ["--trainer.strategy.tensor_parallel_size=1", "--trainer.devices=2"]
IN_ONE_FILE, IN_PARTS = (f"--trainer.strategy.save_distributed_checkpoint={value}" for value in ("false", "true"))
FIT = ["--test_after_fit=true", "--model.window=40", "--model.lora.dropout=0"]  # chains of one to four passes


def run_commands(commands: list[list[str]], kill_at: int | None = None) -> None:
    """Commands one after the other, in this process; killed at a training step of the first, where that is given."""
    from contactlm import ContactModule
    from contactlm.cli.main import main

    sys.argv = ["contactlm"]
    if kill_at is not None:
        ContactModule.training_step = _counted(ContactModule.training_step, kill_at, _kill)  # type: ignore[method-assign]
    for arguments in commands:
        assert main(arguments) == 0, arguments


def checkpoint(folder: Path, name: str = "last", version: int = 0) -> Path:
    return next((folder / "runs/crop200" / f"version_{version}" / "checkpoints").glob(f"{name}*.ckpt"))


def logged(folder: Path, version: int = 0) -> list[dict[str, str]]:
    return list(csv.DictReader((folder / "runs/crop200" / f"version_{version}" / "metrics.csv").open()))


def test_scores(folder: Path, version: int = 0) -> list[dict[str, str]]:
    rows = csv.DictReader((folder / "runs/crop200" / f"version_{version}" / "test_scores.csv").open())
    return sorted(rows, key=lambda row: row["id"])


test_scores.__test__ = False  # type: ignore[attr-defined]  # a helper


def same_state(ours: dict[str, Any], theirs: dict[str, Any], tolerance: float = 1e-5) -> None:
    """Weights, optimizer, budget, FLOPs and progress of two checkpoints."""
    assert ours["state_dict"].keys() == theirs["state_dict"].keys()
    for name, weight in theirs["state_dict"].items():
        torch.testing.assert_close(ours["state_dict"][name], weight, atol=tolerance, rtol=tolerance)
    for mine, other in zip(ours["optimizer_states"], theirs["optimizer_states"], strict=True):
        assert mine["param_groups"] == other["param_groups"] and mine["state"].keys() == other["state"].keys()
        for number, values in other["state"].items():
            for name, value in values.items():
                torch.testing.assert_close(mine["state"][number][name], value, atol=tolerance, rtol=1e-3)
    for name in ("TokenBudget", "FlopsMeter", "LossGuard"):
        mine, other = (dict(state["callbacks"][name]) for state in (ours, theirs))
        assert {k: v for k, v in mine.items() if "shape" not in k} == {k: v for k, v in other.items() if "shape" not in k}
    assert ours["global_step"] == theirs["global_step"]


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory, tiny_esm: Path, pdb_folders: Folders) -> Path:
    """What one process came to, with batches of twice the size."""
    folder = tmp_path_factory.mktemp("one")
    arguments = [*command(tiny_esm, pdb_folders, *FIT), "--data.batch_size=6"]
    fasta = folder / "a.fasta"
    fasta.write_text(">long\n" + "MKTAYIAKQRQISFVKSHFSRQ" * 4 + "\n>short\nMKTAYIAKQRQISFVKSHFSRQ\n")
    process = start(run_commands, [arguments], folder=folder)
    finish(process, folder)
    return folder


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory, tiny_esm: Path, pdb_folders: Folders, one: Path) -> Path:
    """What two processes came to that write checkpoints of one file; they predict, too."""
    folder = tmp_path_factory.mktemp("plain")
    strategy = [*SHARDED, IN_ONE_FILE]
    fit = command(tiny_esm, pdb_folders, *FIT, *strategy)
    predict = ["predict", f"--data.predict_paths=[{one / 'a.fasta'}]", "--ckpt_path=runs/crop200/version_0/checkpoints/last.ckpt"]
    predict += ["--model.window=40", "--formats=[npz]", "--trainer.accelerator=cpu", *strategy]
    run_ranks(run_commands, 2, [fit, predict], folder=folder)
    return folder


def test_sharded_training_is_that_of_one_process(one: Path, plain: Path) -> None:
    same_state(load_file(checkpoint(plain)), load_file(checkpoint(one)))
    columns = ("train/loss", "dev/auprc_sep6", "dev/mcc_sep6", "budget/tokens", "flops/total", "train/skipped_steps")
    for ours, theirs in zip(logged(plain), logged(one), strict=True):
        for name in columns:
            assert (ours[name] == "") == (theirs[name] == "")
            assert ours[name] == "" or float(ours[name]) == pytest.approx(float(theirs[name]), abs=1e-5), name
    assert checkpoint(plain, "best").name == checkpoint(one, "best").name


def test_each_chain_is_scored_once_whatever_the_passes_of_a_process(one: Path, plain: Path) -> None:
    for ours, theirs in zip(test_scores(plain), test_scores(one), strict=True):
        assert ours["id"] == theirs["id"]
        for name in ("auprc_sep6", "mcc_sep6", "p_at_L_long"):
            assert float(ours[name]) == pytest.approx(float(theirs[name]), abs=1e-4), name
    maps = {path.stem: ContactMap.load(path) for path in (plain / "predictions").glob("*.npz")}
    assert {name: len(each) for name, each in maps.items()} == {"long": 88, "short": 22}
