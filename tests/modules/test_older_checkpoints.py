"""Checkpoints and a structure database written before the code moved into rooms still load.

``before_the_rooms`` was made at commit 3884aa2 with tiny random models and ten optimizer steps on synthetic proteins:
checkpoints there name their classes ``contactlm.module.ContactModule`` and the like.
"""

import json
from pathlib import Path

import numpy as np
import pytest

import contactlm
from contactlm import predict_contacts
from contactlm.cli.main import main
from contactlm.modules.checkpoint import CHECKPOINT_KEY, check_checkpoint
from contactlm.modules.predict import checkpoint_class

BEFORE = Path(__file__).parent / "before_the_rooms"
EXPECTED = json.loads((BEFORE / "expected.json").read_text())
CLASSES = {"contact": "ContactModule", "contrastive": "ContrastiveModule", "retrieval": "RetrievalModule"}


@pytest.mark.parametrize("name", CLASSES)
def test_a_checkpoint_predicts_as_it_did(name: str) -> None:
    path = BEFORE / f"{name}.ckpt"
    written = check_checkpoint(path)[CHECKPOINT_KEY]["class"]
    assert written.count(".") == 2  # contactlm.FILE.CLASS, as it was
    module_class = checkpoint_class(path)
    assert module_class is getattr(contactlm, CLASSES[name])
    given = {"index": str(BEFORE / "structures")} if name == "retrieval" else {}
    module = module_class.load_from_checkpoint(path, weights_only=True, **given)
    predicted = module.predict_map(EXPECTED["sequence"]).probability[0]
    assert np.allclose(predicted, EXPECTED["first_row"][name], atol=2e-6)


def test_a_run_goes_on_from_one_and_writes_public_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, option in (("a.fasta", "predict"), ("b.fasta", "")):
        Path(name).write_text(f">query{option}\n{EXPECTED['sequence']}\n")
    path = BEFORE / "contact.ckpt"
    assert main(["predict", f"--ckpt_path={path}", "--data.predict_paths", "a.fasta", "b.fasta", "--out=maps"]) == 0
    assert {file.suffix for file in Path("maps").glob("query*")} == {".npz", ".rr", ".png"}
    assert len(predict_contacts(EXPECTED["sequence"], path)) == len(EXPECTED["sequence"])
