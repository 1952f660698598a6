"""Real complexes whose chains lie in files of their own: antibodies, and a docking benchmark."""

from __future__ import annotations

import math
from pathlib import Path

import lightning as L
import pytest

from contactlm import ContactDataModule, ContactModule
from contactlm.callbacks import ContactEvaluation
from contactlm.structure.contacts import contact_map
from contactlm.types import chain_numbers
from tests.benchmarks.complex_pairs import antibody_rows, docking_rows

SHARED = Path(__file__).resolve().parents[2] / "shared"
pytestmark = pytest.mark.skipif(not (SHARED / "antibodies").is_dir(), reason="needs real structures")


def inter_contacts(store: object, index: int) -> int:
    labels = contact_map(store.cb_of(index))  # type: ignore[attr-defined]
    chain = chain_numbers(store.chain_lengths[index])  # type: ignore[attr-defined]
    return int((labels[chain[:, None] != chain] == 1).sum()) // 2


def test_heavy_and_light_chains_are_complexes_with_an_interface(tmp_path: Path) -> None:
    folder, pairs = SHARED / "antibodies", tmp_path / "pairs.csv"
    pairs.write_text("\n".join(antibody_rows(folder / "MANIFEST.csv")))
    data = ContactDataModule(str(folder / "train"), str(folder / "test"), pairs=str(pairs), dev_fraction=0.0)
    data.setup("fit")
    counts = {role: len(data.chains[role]) for role in ("train", "test")}
    assert counts["train"] > 35 and counts["test"] > 8
    assert sum(counts.values()) == len(pairs.read_text().split())
    contacts = sorted(inter_contacts(data.chains["test"], index) for index in range(counts["test"]))
    assert contacts[len(contacts) // 2] > 15  # the two domains lie against each other


@pytest.mark.slow
def test_a_docking_benchmark_is_scored_by_interface(tmp_path: Path, tiny_esm: Path) -> None:
    pairs = tmp_path / "pairs.csv"
    pairs.write_text("\n".join(docking_rows(SHARED / "pdb" / "test")))
    data = ContactDataModule(
        test_dir=str(SHARED / "pdb" / "test"), assembly="complex", pairs=str(pairs), eval_batch_size=1
    )
    evaluation = ContactEvaluation(write_rows=False)
    trainer = L.Trainer(
        accelerator="cpu", logger=False, callbacks=[evaluation], enable_progress_bar=False, enable_model_summary=False
    )
    (scores,) = trainer.test(ContactModule(str(tiny_esm), lora=None, freeze_backbone=True), data, verbose=False)
    assert scores["test/proteins"] == len(pairs.read_text().split()) == 5
    assert 0.2 < scores["test/inter_interface_auc"] < 0.8  # random weights know nothing
    for name in ("p_at_10", "p_at_L5", "trivial_p_at_L5", "r_precision"):
        assert 0 <= scores[f"test/inter_{name}"] < 0.3, name
    assert all(not math.isnan(row["inter_interface_auc"]) for row in evaluation.rows)
