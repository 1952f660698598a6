"""Another definition of contacts: in training, scores, maps and files; kept; and never compared with another."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch

from contactlm import ContactDataModule, ContactModule, contact_map, read_chains
from contactlm.cli.main import main
from contactlm.maps.contact_map import ContactMap
from contactlm.maps.restraints import RestraintOptions, chosen_pairs
from contactlm.types import ContactDefinition, DataError
from tests.conftest import random_sequence, write_pdb

CA10 = ContactDefinition("ca", 10.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("defined")
    for i in range(8):
        write_pdb(root / f"c{i}.pdb", {"A": random_sequence(i, 40 + i)}, seed=i)
    return root


def test_a_definition_is_read_back_and_has_bounds() -> None:
    for each in (ContactDefinition(), CA10, ContactDefinition("cb", 6.5)):
        assert ContactDefinition.from_text(str(each)) == each
    for atom, below in (("cb", 5.9), ("ca", 12.1), ("cg", 8.0)):
        with pytest.raises(DataError, match="atom is cb or ca, and below is 6 to 12"):
            ContactDefinition(atom, below)  # type: ignore[arg-type]


def test_data_and_labels_follow_the_definition(folder: Path, tiny_esm: Path) -> None:
    data = ContactDataModule(str(folder), contact=CA10, read_workers=0, dev_fraction=0.0, crop="whole")
    data.setup("fit")
    store = data.chains["train"]
    chain = read_chains(folder / f"{store.ids[0].removesuffix('_A')}.pdb")[0]
    np.testing.assert_array_equal(store.cb_of(0), chain.ca)
    module = ContactModule(str(tiny_esm), lora=None, freeze_backbone=True)
    module.contact = CA10
    labels = module.training_labels(torch.tensor(np.array(store.cb_of(0)))[None])[0].numpy()
    np.testing.assert_array_equal(labels, contact_map(chain.ca, 10.0))
    plain = ContactDataModule(str(folder), read_workers=0, dev_fraction=0.0)
    plain.setup("fit")
    np.testing.assert_array_equal(plain.chains["train"].cb_of(0), chain.cb)  # the cache keeps them apart


def test_maps_say_what_a_contact_is(folder: Path, tiny_esm: Path, tmp_path: Path) -> None:
    module = ContactModule(str(tiny_esm), lora=None, freeze_backbone=True)
    chain = read_chains(folder / "c0.pdb")[0]
    plain = module.predict_map(chain.sequence)
    module.contact = CA10
    made = module.predict_map(chain.sequence)
    assert "contact" not in plain.how and (plain.contact, made.contact) == (ContactDefinition(), CA10)
    made.save(tmp_path / "m.npz")
    again = ContactMap.load(tmp_path / "m.npz").on_structure(folder / "c0.pdb")
    assert again.contact == CA10
    np.testing.assert_array_equal(again.residues.cb, chain.ca)  # type: ignore[union-attr]
    again.save(tmp_path / "m.rr")
    assert all(line.split()[3] == "10" for line in (tmp_path / "m.rr").read_text().splitlines() if " 0 10 " in line)
    assert " 0 8 " not in (tmp_path / "m.rr").read_text() and " 0 10 " in (tmp_path / "m.rr").read_text()
    assert chosen_pairs(again, RestraintOptions(min_probability=0))[0].upper == 10
    again.save(tmp_path / "m.cst")
    assert "CB" not in (tmp_path / "m.cst").read_text()
    with pytest.raises(DataError, match="is of contacts cb < 8 Å, but this map of ca < 10 Å"):
        made.save(tmp_path / "m.html", beside=plain)


@pytest.mark.slow
def test_a_run_keeps_its_definition_and_refuses_others(
    folder: Path, tiny_esm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["contactlm"])
    data = [f"--data.train_dir={folder}", f"--data.test_dir={folder}", "--data.read_workers=0", "--data.batch_size=2"]
    common = [*data, "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]
    fit = ["fit", *common, f"--model.pretrained={tiny_esm}", "--trainer.max_steps=1", "--name=d"]
    assert main([*fit, "--data.contact.atom=ca", "--data.contact.below=10"]) == 0
    run = tmp_path / "runs" / "d" / "version_0"
    assert json.loads((run / "run.json").read_text())["equal"]["contact"] == "ca < 10 Å"
    kept = run / "checkpoints" / "last.ckpt"
    assert ContactModule.load_from_checkpoint(kept).contact == CA10
    trained = next(csv.DictReader((run / "test_scores.csv").open()))
    assert main(["test", *common, f"--ckpt_path={kept}", "--name=t"]) == 0  # as it was trained
    again = next(csv.DictReader((tmp_path / "runs" / "t" / "version_0" / "test_scores.csv").open()))
    assert trained["p_at_L_long"] == again["p_at_L_long"] and trained["id"] == again["id"]
    capsys.readouterr()
    assert main(["test", *common, f"--ckpt_path={kept}", "--data.contact.below=8"]) == 1
    assert "the checkpoint predicts contacts ca < 10 Å, but those of the data are cb < 8 Å" in capsys.readouterr().err
    assert main(["test", *common, f"--model.pretrained={tiny_esm}", "--data.contact.atom=ca"]) == 1
    assert "contact: ca < 8 Å given, the model has cb < 8 Å" in capsys.readouterr().err
    assert main(["export", f"--ckpt_path={kept}", "--out=exported"]) == 0
    assert ContactModule.from_adapter("exported").contact == CA10
    trainer = L.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False)
    with pytest.raises(DataError, match="the model has cb < 8"):
        trainer.test(ContactModule(str(tiny_esm)), ContactDataModule(test_dir=str(folder), contact=CA10), verbose=False)
