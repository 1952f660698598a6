"""Whole commands of a model whose weights are spread over two processes (FSDP2): they do what one process does."""

import csv
import os
import signal
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from contactlm import ContactModule, predict_contacts
from contactlm.maps.contact_map import ContactMap
from contactlm.modules.sharded_file import is_sharded, load_file
from contactlm.structure.parse import read_chains
from tests.modules.test_retrieval import write_database
from tests.processes import finish, free_port, output, rank_env, run_ranks, start
from tests.retrieval.made import mutated
from tests.runs.test_interruption import _counted, command

Folders = tuple[Path, Path]
SEQUENCE = "MKTAYIAKQRQISFVKSHFSRQ"
pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

SHARDED = ["--trainer.strategy=ModelParallelStrategy", "--trainer.strategy.data_parallel_size=2"]
SHARDED += ["--trainer.strategy.tensor_parallel_size=1", "--trainer.devices=2"]
IN_ONE_FILE, IN_PARTS = (f"--trainer.strategy.save_distributed_checkpoint={value}" for value in ("false", "true"))
FIT = [
    "--test_after_fit=true",
    "--model.window=40",
    "--trainer.gradient_clip_val=0.001",
]  # chains of one to four passes
SHORT = f"--budget.max_tokens={2 * 6 * 32}"
KINDS = {
    "lora": ["--model.lora.dropout=0"],
    "all": ["--model.lora=null", "--model.activation_checkpointing=true", SHORT],
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


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory, pdb_folders: Folders) -> Path:
    """The folder of all runs, with a database of relatives and sequences to predict."""
    folder = tmp_path_factory.mktemp("work")
    own = {path.stem: read_chains(path)[0].sequence for path in pdb_folders[0].glob("t*.pdb")}
    write_database(folder / "db", {f"near-{name}_A": mutated(text, 0.15, 1) for name, text in own.items()})
    (folder / "a.fasta").write_text(f">long\n{SEQUENCE * 4}\n>short\n{SEQUENCE}\n")
    for name in ("one", "plain", "parts", "replicated"):
        (folder / name).mkdir()
    return folder


def fits(esm: Path, folders: Folders, kinds: dict[str, list[str]], *more: str) -> list[list[str]]:
    return [[*command(esm, folders, *FIT, *options, *more), f"--name={kind}"] for kind, options in kinds.items()]


@pytest.fixture(scope="module")
def one(work: Path, tiny_esm: Path, pdb_folders: Folders) -> Path:
    """What one process came to, with batches of twice the size."""
    process = start(run_commands, fits(tiny_esm, pdb_folders, KINDS, "--data.batch_size=6"), folder=work / "one")
    finish(process, work / "one")
    return work / "one"


@pytest.fixture(scope="module")
def replicated(work: Path, tiny_esm: Path, pdb_folders: Folders) -> Path:
    """What two processes came to that both hold all weights."""
    options = ["--trainer.strategy=ddp", "--trainer.devices=2"]
    run_ranks(run_commands, 2, fits(tiny_esm, pdb_folders, DRAWING, *options), folder=work / "replicated")
    return work / "replicated"


@pytest.fixture(scope="module")
def plain(work: Path, tiny_esm: Path, pdb_folders: Folders) -> Path:
    """What two processes came to that share the weights and write checkpoints of one file; they predict, too."""
    strategy = [*SHARDED, IN_ONE_FILE]
    predict = ["predict", "--data.predict_paths=[../a.fasta]", "--ckpt_path=runs/lora/version_0/checkpoints/last.ckpt"]
    predict += ["--model.window=40", "--formats=[npz]", "--trainer.accelerator=cpu", *strategy]
    commands = [*fits(tiny_esm, pdb_folders, KINDS | DRAWING, *strategy), predict]
    run_ranks(run_commands, 2, commands, folder=work / "plain")
    return work / "plain"


def test_sharded_training_is_that_of_one_process(one: Path, plain: Path, replicated: Path) -> None:
    exact = dict.fromkeys(("train/loss", "budget/tokens", "flops/total", "train/skipped_steps"), 1e-5)
    ranked = dict.fromkeys(("dev/auprc_sep6", "dev/mcc_sep6"), 1e-3)  # pairs of equal logits may change places
    for kind in KINDS | DRAWING:
        ours, theirs = run_of(plain, kind), run_of(one if kind in KINDS else replicated, kind)
        same_state(load_file(checkpoint(ours)), load_file(checkpoint(theirs)))
        assert checkpoint(ours, "best").name == checkpoint(theirs, "best").name
        for mine, other in zip(logged(ours), logged(theirs), strict=True):
            for name, tolerance in (exact | ranked).items():
                assert (mine[name] == "") == (other[name] == "")
                assert mine[name] == "" or float(mine[name]) == pytest.approx(float(other[name]), abs=tolerance), kind


def test_each_chain_is_scored_once_whatever_the_passes_of_a_process(one: Path, plain: Path, replicated: Path) -> None:
    for kind in KINDS | DRAWING:
        ours, theirs = run_of(plain, kind), run_of(one if kind in KINDS else replicated, kind)
        for mine, other in zip(scores_of(ours), scores_of(theirs), strict=True):
            assert mine["id"] == other["id"]
            for name in ("auprc_sep6", "mcc_sep6", "p_at_L_long"):
                assert float(mine[name]) == pytest.approx(float(other[name]), abs=1e-3), (kind, name)
    maps = {path.stem: ContactMap.load(path) for path in (plain / "predictions").glob("*.npz")}
    assert {name: len(each) for name, each in maps.items()} == {"long": 88, "short": 22}
    expected = predict_contacts(SEQUENCE * 4, checkpoint(run_of(one)), window=40)
    np.testing.assert_allclose(maps["long"].probability, expected.probability, atol=1e-5)


@pytest.fixture(scope="module")
def parts(work: Path, tiny_esm: Path, pdb_folders: Folders) -> Path:
    """What two processes came to that write checkpoints in parts, were asked to end, killed, and went on."""
    folder = work / "parts"
    (fit,) = fits(tiny_esm, pdb_folders, {"lora": KINDS["lora"]}, *SHARDED, IN_PARTS, "--ckpt_path=last")
    ended = []
    for number, step, of_rank_1 in ((signal.SIGTERM, 2, None), (signal.SIGKILL, 2, 2)):
        port = free_port()
        processes = [
            start(run_commands, [fit], at, number, folder=folder, name=f"{number}-{rank}", env=rank_env(rank, 2, port))
            for rank, at in enumerate((step, of_rank_1))
        ]
        for process in processes:
            process.join(100)
        ended.append([process.exitcode for process in processes])
    assert ended == [[143, 0], [-9, -9]], output(folder, "15-0")
    run_ranks(run_commands, 2, [fit], folder=folder)
    last, best = (checkpoint(run_of(folder, version=2), name) for name in ("last", "best"))
    test = ["test", f"--data.test_dir={pdb_folders[1]}", "--data.min_length=10", "--model.window=40"]
    test += ["--trainer.accelerator=cpu", f"--ckpt_path={best}", "--name=lora"]
    exports = [["export", f"--ckpt_path={last}", f"--out={out}", *more] for out, more in EXPORTS.items()]
    finish(start(run_commands, [test, *exports], folder=folder), folder)
    return folder


EXPORTS = {"adapter": [], "plain.ckpt": ["--plain"]}


def test_a_killed_run_goes_on_from_its_parts(one: Path, parts: Path) -> None:
    last = checkpoint(run_of(parts, version=2))
    assert is_sharded(last) and {path.name[:4] for path in last.iterdir()} == {"meta", "part"}
    halves = [sum(map(torch.numel, torch.load(part, weights_only=True).values())) for part in last.glob("part-*")]
    saved, whole = load_file(last), load_file(checkpoint(run_of(one)))
    same_state(saved, whole)
    assert sum(halves) == 3 * sum(weight.numel() for weight in saved["state_dict"].values())  # weights, two moments
    assert len(halves) == 2 and max(halves) < 0.7 * sum(halves)
    steps = [[row["step"] for row in logged(run_of(parts, version=n)) if row["train/loss"]] for n in range(3)]
    assert steps == [["0", "1"], ["2"], ["3", "4"]]


def test_parts_are_scored_exported_and_made_one(one: Path, parts: Path) -> None:
    for ours, theirs in zip(scores_of(run_of(parts, version=3)), scores_of(run_of(one)), strict=True):
        assert float(ours["auprc_sep6"]) == pytest.approx(float(theirs["auprc_sep6"]), abs=1e-3)
    last = checkpoint(run_of(parts, version=2))
    same_state(load_file(parts / "plain.ckpt"), load_file(last), 0)
    adapter = ContactModule.from_adapter(parts / "adapter").predict_map(SEQUENCE).probability
    assert np.array_equal(adapter, predict_contacts(SEQUENCE, last).probability)
    np.testing.assert_allclose(adapter, predict_contacts(SEQUENCE, checkpoint(run_of(one))).probability, atol=1e-5)
