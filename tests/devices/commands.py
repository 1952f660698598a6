"""Whole commands in processes of their own, and what they leave."""

import csv
import os
import signal
import sys
from collections.abc import Callable
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

from contactlm import ContactModule
from tests.processes import free_port, rank_env, start
from tests.runs.test_interruption import _counted, command

Folders = tuple[Path, Path]
SEQUENCE = "MKTAYIAKQRQISFVKSHFSRQ"
SHARDED = ["--trainer.strategy=ModelParallelStrategy", "--trainer.strategy.data_parallel_size=2"]
SHARDED += ["--trainer.strategy.tensor_parallel_size=1", "--trainer.devices=2"]
FIT = [
    "--test_after_fit=true",
    "--model.window=40",
    "--trainer.gradient_clip_val=0.001",
]  # chains of one to four passes
SHORT = f"--budget.max_tokens={2 * 6 * 32}"
KINDS = {
    "lora": ["--model.lora.dropout=0"],
    "all": ["--model.lora=null", "--model.activation_checkpointing=true", "--data.train_dir=../packed", SHORT],
    "pair": ["--model.pair.read_outs=3", "--model.pair.blocks=1", "--model.lora.dropout=0", SHORT],
    "retrieval": ["--model_class=contactlm.RetrievalModule", "--model.index=../db", "--model.lora.dropout=0", SHORT],
}
DRAWING = {  # what differs from one process to the next, and is compared with two processes that share no weights
    "contrastive": ["--model_class=contactlm.ContrastiveModule", "--model.lora.dropout=0.3", SHORT],
}


def run_commands(commands: list[list[str]], signal_at: int | None = None, number: int = signal.SIGKILL) -> None:
    """Commands one after the other, in this process, which sends itself a signal at a training step of the first."""
    from contactlm.cli.main import main

    sys.argv = ["contactlm"]
    if signal_at is not None:
        send = partial(os.kill, os.getpid(), number)
        ContactModule.training_step = _counted(ContactModule.training_step, signal_at, send)  # type: ignore[method-assign]
    for arguments in commands:
        if status := main(arguments):
            sys.exit(status)


def run_of(folder: Path, kind: str = "lora", version: int = 0) -> Path:
    return folder / "runs" / kind / f"version_{version}"


def checkpoint(run: Path, name: str = "last") -> Path:
    return next((run / "checkpoints").glob(f"{name}*.ckpt"))


def load_file(path: Path) -> dict[str, Any]:
    return torch.load(path, weights_only=True)


def logged(run: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((run / "metrics.csv").open()))


def scores_of(run: Path) -> list[dict[str, str]]:
    return sorted(csv.DictReader((run / "test_scores.csv").open()), key=lambda row: row["id"])


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
        assert {k: v for k, v in mine.items() if "shape" not in k} == {
            k: v for k, v in other.items() if "shape" not in k
        }
    assert ours["global_step"] == theirs["global_step"]


def fits(esm: Path, folders: Folders, kinds: dict[str, list[str]], *more: str) -> list[list[str]]:
    return [[*command(esm, folders, *FIT, *options, *more), f"--name={kind}"] for kind, options in kinds.items()]


def start_ranks(
    commands: list[list[str]],
    folder: Path,
    name: str,
    at: list[int | None],
    number: int,
    run: Callable[..., None] = run_commands,
) -> list[BaseProcess]:
    """Processes of a run that send themselves a signal at a training step; one alone is of no group."""
    port = free_port()
    environments = [rank_env(rank, len(at), port) if len(at) > 1 else None for rank in range(len(at))]
    return [
        start(run, commands, at[rank], number, folder=folder, name=f"{name}{rank}", env=env)
        for rank, env in enumerate(environments)
    ]
