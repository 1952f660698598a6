"""Whole commands of a model whose weights are spread over two processes (FSDP2): they do what one process does."""

import signal
from pathlib import Path

import numpy as np
import pytest

from contactlm import ContactModule, predict_contacts
from contactlm.maps.contact_map import ContactMap
from contactlm.metrics.distances import NAMES
from tests.devices.commands import (
    DRAWING,
    KINDS,
    SEQUENCE,
    SHARDED,
    Folders,
    checkpoint,
    fits,
    load_file,
    logged,
    run_commands,
    run_of,
    same_state,
    scores_of,
    start_ranks,
)  # fmt: skip
from tests.processes import finish, output, run_ranks, start

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


LOOKED_AT = ("retrieval", "contrastive")
PREDICTED = {
    "t00_A": 35,
    "t05_A": 50,
    "t11_A": 68,
    "long": 88,
    "short": 22,
}  # residues; some have relatives in the base


def looks(kind: str, home: str, folders: Folders, out: str, *strategy: str) -> list[list[str]]:
    """The commands that score and predict with a checkpoint, 40 residues a pass: each process needs another number."""
    files = [str(folders[0] / f"{name[:3]}.pdb") for name in PREDICTED if name.startswith("t")]
    trained = f"{home}/runs/{kind}/version_0/checkpoints/last.ckpt"
    options = [f"--ckpt_path={trained}", "--model.window=40", "--trainer.accelerator=cpu", *strategy]
    options += ["--model.index=../db"] if kind == "retrieval" else []
    test = ["test", f"--data.test_dir={folders[1]}", "--data.min_length=10", f"--name={out}-{kind}"]
    predict = ["predict", f"--data.predict_paths={[*files, '../a.fasta']}", f"--out={out}-{kind}", "--formats=[npz]"]
    return [[*test, *options], [*predict, *options]]


@pytest.fixture(scope="module")
def replicated(work: Path, tiny_esm: Path, pdb_folders: Folders) -> Path:
    """What two processes came to that both hold all weights."""
    options = ["--trainer.strategy=ddp", "--trainer.devices=2"]
    kinds = DRAWING | {"pair": KINDS["pair"]}
    run_ranks(run_commands, 2, fits(tiny_esm, pdb_folders, kinds, *options), folder=work / "replicated")
    return work / "replicated"


@pytest.fixture(scope="module")
def plain(work: Path, tiny_esm: Path, pdb_folders: Folders) -> Path:
    """What two processes came to that share the weights; they predict, too."""
    predict = ["predict", "--data.predict_paths=[../a.fasta]", "--ckpt_path=runs/lora/version_0/checkpoints/last.ckpt"]
    predict += ["--model.window=40", "--formats=[npz]", "--trainer.accelerator=cpu", *SHARDED]
    commands = [*fits(tiny_esm, pdb_folders, KINDS | DRAWING, *SHARDED), predict]
    for kind in LOOKED_AT:
        commands += looks(kind, ".", pdb_folders, "two", *SHARDED)
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


def test_a_pair_head_of_two_processes_is_that_of_one(one: Path, replicated: Path) -> None:
    ours, theirs = run_of(replicated, "pair"), run_of(one, "pair")
    same_state(load_file(checkpoint(ours)), load_file(checkpoint(theirs)))
    for mine, other in zip(scores_of(ours), scores_of(theirs), strict=True):
        for name in NAMES:  # of whichever process scored it
            assert float(mine[name]) == pytest.approx(float(other[name]), abs=1e-3), (mine["id"], name)


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
def looked_at(work: Path, plain: Path, pdb_folders: Folders) -> Path:
    """What one process scores and predicts with checkpoints that two made."""
    folder = work / "looked-at"
    folder.mkdir()
    alone = [command for kind in LOOKED_AT for command in looks(kind, "../plain", pdb_folders, "one")]
    finish(start(run_commands, alone, folder=folder), folder)
    return folder


@pytest.mark.parametrize("kind", LOOKED_AT)
def test_each_protein_is_scored_and_predicted_once_as_by_one_process(looked_at: Path, plain: Path, kind: str) -> None:
    ours, theirs = scores_of(run_of(plain, f"two-{kind}")), scores_of(run_of(looked_at, f"one-{kind}"))
    assert [row["id"] for row in ours] == ["s0_A", "s1_A", "s2_A"]
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.keys() == other.keys() and ("copy_auprc_sep6" in mine) == (kind == "retrieval")
        for name in mine.keys() & {"auprc_sep6", "mcc_sep6", "p_at_L_long", "copy_auprc_sep6"}:
            assert float(mine[name]) == pytest.approx(float(other[name]), abs=1e-3), name
    maps = {path.stem: ContactMap.load(path) for path in (plain / f"two-{kind}").glob("*.npz")}
    assert {name: len(each) for name, each in maps.items()} == PREDICTED
    for name, each in maps.items():
        expected = ContactMap.load(looked_at / f"one-{kind}" / f"{name}.npz")
        np.testing.assert_allclose(each.probability, expected.probability, atol=1e-5)
        assert each.how.get("hits") == expected.how.get("hits")
        assert bool(each.how.get("hits")) == (kind == "retrieval" and name.startswith("t"))


@pytest.fixture(scope="module")
def resumed(work: Path, tiny_esm: Path, pdb_folders: Folders) -> Path:
    """A run of one process that goes on with two, which share the weights.

    Each way is ended by a signal after its first step, but for the last one, which is then called once more.
    """
    folder, kind, last = work / "resumed", {"lora": KINDS["lora"]}, "--ckpt_path=last"
    alone = fits(tiny_esm, pdb_folders, kind, last, "--data.batch_size=6")
    shared = fits(tiny_esm, pdb_folders, kind, last, *SHARDED)
    ended = {}
    ways = {"alone": (alone, [2], signal.SIGKILL), "shared": (shared, [1, None], signal.SIGTERM)}
    for name, way in ways.items():
        processes = start_ranks(way[0], folder, name, *way[1:])
        for process in processes:
            process.join(100)
        ended[name] = [process.exitcode for process in processes]
    assert ended == {"alone": [-9], "shared": [143, 0]}, output(folder, "shared0")
    run_ranks(run_commands, 2, [*shared, *shared], folder=folder)
    final, best = (checkpoint(run_of(folder, version=2), name) for name in ("last", "best"))
    test = ["test", f"--data.test_dir={pdb_folders[1]}", "--data.min_length=10", "--model.window=40"]
    test += ["--trainer.accelerator=cpu", f"--ckpt_path={best}", "--name=lora"]
    finish(start(run_commands, [test, ["export", f"--ckpt_path={final}", "--out=adapter"]], folder=folder), folder)
    return folder


CHANGED = "had {} samples a step (processes x batch_size), now {}: the same samples"


def test_a_run_goes_on_on_other_devices_and_is_the_unbroken_run(one: Path, resumed: Path) -> None:
    same_state(load_file(checkpoint(run_of(resumed, version=2))), load_file(checkpoint(run_of(one))))
    ways = [[row for row in logged(run_of(resumed, version=n)) if row.get("train/loss")] for n in range(3)]
    assert [[row["step"] for row in rows] for rows in ways] == [["0"], ["1"], ["2", "3", "4"]]
    losses = [float(row["train/loss"]) for rows in ways for row in rows]
    expected = [float(row["train/loss"]) for row in logged(run_of(one)) if row["train/loss"]]
    assert losses == pytest.approx(expected, abs=1e-5)
    assert CHANGED.format("1 x 6", "2 x 3") in output(resumed, "shared0")
    assert "samples a step" not in output(resumed, "shared1") + output(resumed, "rank0")


def test_a_spent_budget_stays_spent(resumed: Path) -> None:
    assert "train/loss" not in (run_of(resumed, version=3) / "metrics.csv").read_text()
    assert scores_of(run_of(resumed, version=3)) == scores_of(run_of(resumed, version=2))


def test_one_process_scores_and_exports_what_two_trained(one: Path, resumed: Path) -> None:
    for ours, theirs in zip(scores_of(run_of(resumed, version=4)), scores_of(run_of(one)), strict=True):
        assert float(ours["auprc_sep6"]) == pytest.approx(float(theirs["auprc_sep6"]), abs=1e-3)
    last = checkpoint(run_of(resumed, version=2))
    adapter = ContactModule.from_adapter(resumed / "adapter").predict_map(SEQUENCE).probability
    assert np.array_equal(adapter, predict_contacts(SEQUENCE, last).probability)
    np.testing.assert_allclose(adapter, predict_contacts(SEQUENCE, checkpoint(run_of(one))).probability, atol=1e-5)
