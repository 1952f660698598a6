"""Whole commands of a model whose weights are spread over two processes (FSDP2): they do what one process does."""

import signal
from pathlib import Path

import numpy as np
import pytest
import torch

from contactlm import ContactModule, predict_contacts
from contactlm.maps.contact_map import ContactMap
from contactlm.modules.sharded_file import is_sharded, load_file
from tests.devices.commands import (
    DRAWING,
    IN_ONE_FILE,
    IN_PARTS,
    KINDS,
    SEQUENCE,
    SHARDED,
    Folders,
    checkpoint,
    fits,
    logged,
    run_commands,
    run_of,
    same_state,
    scores_of,
    start_ranks,
)  # fmt: skip
from tests.processes import finish, output, run_ranks, start

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


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
    """A run of one process that goes on with two, which write parts, then one file, and in the end parts again.

    Each way is ended by a signal after its first step, but for the last one, which is then called once more.
    """
    folder, kind, last = work / "parts", {"lora": KINDS["lora"]}, "--ckpt_path=last"
    alone = fits(tiny_esm, pdb_folders, kind, last, "--data.batch_size=6")
    joined, shared = (fits(tiny_esm, pdb_folders, kind, last, *SHARDED, how) for how in (IN_ONE_FILE, IN_PARTS))
    ways = {
        "alone": (alone, [2], signal.SIGKILL),
        "shared": (shared, [1, None], signal.SIGTERM),
        "joined": (joined, [2, 2], signal.SIGKILL),
    }
    ended = {}
    for name, way in ways.items():
        processes = start_ranks(way[0], folder, name, *way[1:])
        for process in processes:
            process.join(100)
        ended[name] = [process.exitcode for process in processes]
    assert ended == {"alone": [-9], "shared": [143, 0], "joined": [-9, -9]}, output(folder, "shared0")
    run_ranks(run_commands, 2, [*shared, *shared], folder=folder)
    final, best = (checkpoint(run_of(folder, version=3), name) for name in ("last", "best"))
    test = ["test", f"--data.test_dir={pdb_folders[1]}", "--data.min_length=10", "--model.window=40"]
    test += ["--trainer.accelerator=cpu", f"--ckpt_path={best}", "--name=lora"]
    exports = [["export", f"--ckpt_path={final}", f"--out={out}", *more] for out, more in EXPORTS.items()]
    finish(start(run_commands, [test, *exports], folder=folder), folder)
    return folder


EXPORTS: dict[str, list[str]] = {"adapter": [], "plain.ckpt": ["--plain"]}
CHANGED = "had {} samples a step (processes x batch_size), now {}: the same samples"


def test_a_run_goes_on_on_other_devices_and_is_the_unbroken_run(one: Path, parts: Path) -> None:
    last = checkpoint(run_of(parts, version=3))
    assert is_sharded(last) and {path.name[:4] for path in last.iterdir()} == {"meta", "part"}
    halves = [sum(map(torch.numel, torch.load(part, weights_only=True).values())) for part in last.glob("part-*")]
    saved = load_file(last)
    same_state(saved, load_file(checkpoint(run_of(one))))
    assert sum(halves) == 3 * sum(weight.numel() for weight in saved["state_dict"].values())  # weights, two moments
    assert len(halves) == 2 and max(halves) < 0.7 * sum(halves)
    ways = [[row for row in logged(run_of(parts, version=n)) if row.get("train/loss")] for n in range(4)]
    assert [[row["step"] for row in rows] for rows in ways] == [["0"], ["1"], ["2"], ["3", "4"]]
    losses = [float(row["train/loss"]) for rows in ways for row in rows]
    expected = [float(row["train/loss"]) for row in logged(run_of(one)) if row["train/loss"]]
    assert losses == pytest.approx(expected, abs=1e-5)
    assert CHANGED.format("1 x 6", "2 x 3") in output(parts, "shared0")
    assert "samples a step" not in output(parts, "shared1") + output(parts, "joined0") + output(parts, "rank0")


def test_a_spent_budget_stays_spent(parts: Path) -> None:
    assert "train/loss" not in (run_of(parts, version=4) / "metrics.csv").read_text()
    assert scores_of(run_of(parts, version=4)) == scores_of(run_of(parts, version=3))


def test_parts_are_scored_exported_and_made_one(one: Path, parts: Path) -> None:
    for ours, theirs in zip(scores_of(run_of(parts, version=5)), scores_of(run_of(one)), strict=True):
        assert float(ours["auprc_sep6"]) == pytest.approx(float(theirs["auprc_sep6"]), abs=1e-3)
    last = checkpoint(run_of(parts, version=3))
    same_state(load_file(parts / "plain.ckpt"), load_file(last), 0)
    adapter = ContactModule.from_adapter(parts / "adapter").predict_map(SEQUENCE).probability
    assert np.array_equal(adapter, predict_contacts(SEQUENCE, last).probability)
    np.testing.assert_allclose(adapter, predict_contacts(SEQUENCE, checkpoint(run_of(one))).probability, atol=1e-5)
