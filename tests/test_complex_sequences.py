"""Complexes from sequences: as text, in FASTA, as a table of pairs; copies of one chain; the jump that is kept."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch

from contactlm import ContactDataModule, ContactModule, predict_contacts
from contactlm.cli.main import main
from contactlm.maps.complexes import merge_copies
from contactlm.maps.contact_map import ContactMap
from contactlm.model.pair_head import PairOptions
from contactlm.types import (
    CHAIN_JUMP,
    ContactDefinition,
    DataError,
    ModelError,
    chain_letters,
    residue_positions,
    split_chains,
)
from tests.conftest import random_sequence, sharpened, write_pdb

A, B = random_sequence(1, 24), random_sequence(2, 17)


@pytest.fixture(scope="module")
def module(tiny_esm: Path) -> ContactModule:
    return sharpened(ContactModule(str(tiny_esm), lora=None, freeze_backbone=True))


def test_a_complex_as_text_is_that_of_its_chains(module: ContactModule) -> None:
    expected = module.predict_map(A + B, chain_lengths=[24, 17])
    together = predict_contacts([A, f"{A}:{B}", B], module)
    assert [len(each) for each in together] == [24, 41, 17]
    assert together[1].chain_lengths == [24, 17] and together[1].sequence == A + B
    np.testing.assert_allclose(together[1].probability, expected.probability, rtol=0, atol=1e-5)
    np.testing.assert_allclose(together[0].probability, module.predict_map(A).probability, rtol=0, atol=1e-5)
    assert "chain_lengths" not in together[0].how
    with pytest.raises(ValueError, match="query_2: chain 2 of 2 is empty"):
        predict_contacts([A, f"{A}:"], module)


def test_copies_are_alike_and_their_fold_is_taken_out_of_the_interface(module: ContactModule) -> None:
    made = predict_contacts(f"{A}:{B}:{A}", module)
    p, first, last = made.probability, slice(0, 24), slice(41, 65)
    assert "copies" in made.how and "copies" not in predict_contacts(f"{A}:{B}", module).how
    assert (p == p.T).all()
    np.testing.assert_array_equal(p[first, first], p[last, last])
    np.testing.assert_array_equal(p[first, last], p[first, last].T)
    rng = np.random.default_rng(0)
    raw = rng.random((10, 10)).astype(np.float32)
    raw = (raw + raw.T) / 2
    merged, said = merge_copies(torch.from_numpy(raw), "MKVLA" * 2, [5, 5])
    np.testing.assert_allclose(merged[:5, :5], (raw[:5, :5] + raw[5:, 5:]) / 2, rtol=1e-6)
    np.testing.assert_allclose(merged[:5, 5:], (raw[:5, 5:] + raw[:5, 5:].T) / 2, rtol=1e-6)  # all are neighbours
    assert said
    ones = torch.zeros(20, 20)
    ones[0, 8] = ones[8, 0] = ones[10, 18] = ones[18, 10] = ones[0, 18] = ones[18, 0] = ones[8, 10] = ones[10, 8] = 1
    ones[3, 15] = ones[15, 3] = 0.5
    kept, _ = merge_copies(ones, "MKVLAMKVLA" * 2, [10, 10])
    assert kept[0, 18] == 0 and kept[3, 15] == kept[5, 13] == 0.25  # an echo; and what no fold explains
    untouched, said = merge_copies(torch.from_numpy(raw), "MKVLAGKVLA", [5, 5])
    assert said == "" and untouched.data_ptr() == torch.from_numpy(raw).data_ptr()


def test_names_and_lengths_of_chains() -> None:
    assert chain_letters(28)[-3:] == ["Z", "AA", "AB"]
    assert split_chains("MK:V:LA") == ("MKVLA", [2, 1, 2]) and split_chains("MK") == ("MK", None)
    assert residue_positions([2, 1], 7).tolist() == [0, 1, 9]
    made = ContactMap("x", "MKVLA", np.full((5, 5), 0.5), how={"chain_lengths": [2, 3]})
    assert made.chain_names == ["A", "B"]


def predict(tmp_path: Path, *more: str) -> dict[str, ContactMap]:
    out = tmp_path / "maps"
    arguments = ["predict", f"--out={out}", "--trainer.accelerator=cpu", "--data.read_workers=0", *more]
    assert main(arguments) in (0, 3)
    rows = list(csv.DictReader((out / "summary.csv").open()))
    return {row["id"]: ContactMap.load(out / f"{row['file']}.npz") for row in rows}


def test_fasta_and_pairs_are_predicted(tmp_path: Path, tiny_esm: Path, module: ContactModule, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    fasta, pairs = tmp_path / "in.fasta", tmp_path / "pairs.csv"
    fasta.write_text(f">one\n{A}\n>two\n{B}\n>both x\n{A}:\n{B}\n")
    pairs.write_text("# of one list\none,two\ntwo, two\none,three\n")
    common = [f"--model.pretrained={tiny_esm}", f"--data.predict_paths=[{fasta}]"]
    made = predict(tmp_path, *common, "--formats=[npz,csv,rr]")
    assert {name: each.chain_lengths for name, each in made.items()} == {"one": [24], "two": [17], "both": [24, 17]}
    row = next(csv.DictReader((tmp_path / "maps" / "both.csv").open()))
    assert {row["chain_i"], row["chain_j"]} <= {"A", "B"} and 1 <= int(row["number_j"]) <= 24
    listed = predict(tmp_path / "pairs", *common, f"--data.pairs={pairs}", "--formats=[npz]")
    assert {name: each.chain_lengths for name, each in listed.items()} == {"one:two": [24, 17], "two:two": [17, 17]}
    np.testing.assert_allclose(listed["one:two"].probability, made["both"].probability, rtol=0, atol=1e-5)
    with pytest.raises(DataError, match=r"line 1: 'one' names no two chains"):
        pairs.write_text("one\n")
        ContactDataModule(predict_paths=[str(fasta)], pairs=str(pairs)).setup("predict")


def test_pairs_of_files_in_one_frame_are_complexes_to_train_on(tmp_path: Path) -> None:
    for i in range(4):
        for part, seed in (("H", 20), ("L", 40)):
            write_pdb(tmp_path / "s" / f"x{i}_{part}.pdb", {part: random_sequence(seed + i, 20 + i)}, seed=i)
    (tmp_path / "pairs.csv").write_text("x0_H_H,x0_L_L\nx1_H,x1_L\nx2_H,gone\nother,elsewhere\n")
    data = ContactDataModule(
        str(tmp_path / "s"), pairs=str(tmp_path / "pairs.csv"), min_length=10, read_workers=0, dev_fraction=0.0
    )
    data.setup("fit")
    store = data.chains["train"]
    assert (store.ids, store.chain_lengths) == (["x0_H_H:x0_L_L", "x1_H_H:x1_L_L"], [(20, 20), (21, 21)])
    assert np.isfinite(store.cb_of(0)).all()


@pytest.mark.slow
def test_the_jump_is_that_of_training_and_kept(tmp_path: Path, tiny_esm: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["contactlm"])
    for i in range(6):
        write_pdb(tmp_path / "s" / f"c{i}.pdb", {"A": random_sequence(i, 24), "B": random_sequence(30 + i, 20)}, seed=i)
    fit = ["fit", f"--data.train_dir={tmp_path / 's'}", "--data.assembly=complex", "--data.chain_jump=33"]
    fit += [
        f"--model.pretrained={tiny_esm}",
        "--data.min_length=10",
        "--data.read_workers=0",
        "--trainer.accelerator=cpu",
    ]
    fit += ["--data.crop=whole", "--data.batch_size=2", "--trainer.max_steps=1", "--trainer.enable_progress_bar=false"]
    assert main([*fit, "--name=j"]) == 0
    kept = tmp_path / "runs" / "j" / "version_0" / "checkpoints" / "last.ckpt"
    module = ContactModule.load_from_checkpoint(kept)
    assert module.chain_jump == 33 and ContactModule(str(tiny_esm)).chain_jump == CHAIN_JUMP
    (tmp_path / "in.fasta").write_text(f">both\n{A}:{B}\n")
    made = predict(
        tmp_path, f"--ckpt_path={kept}", f"--data.predict_paths=[{tmp_path / 'in.fasta'}]", "--formats=[npz]"
    )
    assert torch.equal(module.positions_of([24, 17]), torch.from_numpy(residue_positions([24, 17], 33)))
    np.testing.assert_allclose(made["both"].probability, module.predict_map(f"{A}:{B}").probability, atol=1e-5)


def test_distances_of_copies_are_alike(tiny_esm: Path) -> None:
    made = ContactModule(str(tiny_esm), lora=None, pair=PairOptions(read_outs=2, channels=4, blocks=1))
    found = made.predict_map(f"{A}:{A}").distance
    assert found is not None
    np.testing.assert_array_equal(found[:24, :24], found[24:, 24:])
    np.testing.assert_array_equal(found[:24, 24:], found[:24, 24:].T)
    made.contact = ContactDefinition("ca", 10.0)
    with pytest.raises(ModelError, match="but a pair head has cb < 8"):
        made.training_labels(torch.zeros(1, 5, 3))
