"""Retrieval and contrastive modules on two processes that share the weights (FSDP2): scored and predicted with.

Each is trained on two processes; two processes and one score and predict with the checkpoint, by whole commands.
"""

from pathlib import Path

import numpy as np
import pytest

from contactlm.maps.contact_map import ContactMap
from tests.devices.commands import (
    DRAWING,
    KINDS,
    SHARDED,
    Folders,
    fits,
    run_commands,
    run_of,
    scores_of,
)
from tests.processes import finish, run_ranks, start

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

TRAINED = {"retrieval": KINDS["retrieval"], "contrastive": DRAWING["contrastive"]}
PREDICTED = {
    "t00_A": 35,
    "t05_A": 50,
    "t11_A": 68,
    "long": 88,
    "short": 22,
}  # residues; some have relatives in the base


def looks(kind: str, trained: str, folders: Folders, out: str, *strategy: str) -> list[list[str]]:
    """The commands that score and predict with a checkpoint, 40 residues a pass: each process needs another number."""
    files = [str(folders[0] / f"{name[:3]}.pdb") for name in PREDICTED if name.startswith("t")]
    options = [f"--ckpt_path={trained}", "--model.window=40", "--trainer.accelerator=cpu", *strategy]
    options += ["--model.index=../db"] if kind == "retrieval" else []
    test = ["test", f"--data.test_dir={folders[1]}", "--data.min_length=10", f"--name={out}-{kind}"]
    predict = ["predict", f"--data.predict_paths={[*files, '../a.fasta']}", f"--out={out}-{kind}", "--formats=[npz]"]
    return [[*test, *options], [*predict, *options]]


@pytest.fixture(scope="module")
def kinds(work: Path, tiny_esm: Path, pdb_folders: Folders) -> Path:
    """The folder with what all came to: ``two`` by two processes, ``one`` by one, of each kind."""
    folder = work / "kinds"
    folder.mkdir()
    shared, alone = fits(tiny_esm, pdb_folders, TRAINED, *SHARDED, "--test_after_fit=false"), []
    last = {kind: f"runs/{kind}/version_0/checkpoints/last.ckpt" for kind in TRAINED}
    for kind, trained in last.items():
        shared += looks(kind, trained, pdb_folders, "two", *SHARDED)
        alone += looks(kind, trained, pdb_folders, "one")
    run_ranks(run_commands, 2, shared, folder=folder)
    finish(start(run_commands, alone, folder=folder), folder)
    return folder


@pytest.mark.parametrize("kind", TRAINED)
def test_each_protein_is_scored_and_predicted_once_as_by_one_process(kinds: Path, kind: str) -> None:
    ours, theirs = (scores_of(run_of(kinds, f"{name}-{kind}")) for name in ("two", "one"))
    assert [row["id"] for row in ours] == ["s0_A", "s1_A", "s2_A"]
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.keys() == other.keys() and ("copy_auprc_sep6" in mine) == (kind == "retrieval")
        for name in mine.keys() & {"auprc_sep6", "mcc_sep6", "p_at_L_long", "copy_auprc_sep6"}:
            assert float(mine[name]) == pytest.approx(float(other[name]), abs=1e-3), name
    maps = {path.stem: ContactMap.load(path) for path in (kinds / f"two-{kind}").glob("*.npz")}
    assert {name: len(each) for name, each in maps.items()} == PREDICTED
    for name, each in maps.items():
        expected = ContactMap.load(kinds / f"one-{kind}" / f"{name}.npz")
        np.testing.assert_allclose(each.probability, expected.probability, atol=1e-5)
        assert each.how.get("hits") == expected.how.get("hits")
        assert bool(each.how.get("hits")) == (kind == "retrieval" and name.startswith("t"))
