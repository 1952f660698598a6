"""Known structures without the libraries that ``contactlm[retrieval]`` brings: one message, and all else works."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest

from contactlm import RetrievalModule
from contactlm.cli.main import main
from contactlm.retrieval.search import StructureSearch
from contactlm.structure.secondary import secondary_structure
from contactlm.types import ContactLMError, MissingExtraError
from tests.conftest import random_sequence
from tests.missing import hide_libraries
from tests.retrieval.made import QUERY, made_database

LIBRARIES = ("pyhmmer", "pydssp")
REMEDY = 'pip install "contactlm[retrieval]"'


@pytest.fixture(autouse=True)
def _not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hide_libraries(monkeypatch, *LIBRARIES)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["contactlm"])


def complaint(capsys: pytest.CaptureFixture, *arguments: str) -> str:
    assert main(arguments) == 1
    error = capsys.readouterr().err
    assert "Traceback" not in error
    return error.splitlines()[-1]


def test_index_build_says_what_to_install(pdb_folders: tuple[Path, Path], capsys: pytest.CaptureFixture) -> None:
    text = complaint(capsys, "index", "build", "--structures", str(pdb_folders[1]), "--out", "db", "--workers", "0")
    assert text.startswith("contactlm: error: pydssp cannot be imported") and text.endswith(REMEDY)
    assert not Path("db").exists()


def test_fit_says_it_with_and_without_a_database(tmp_path: Path, tiny_esm: Path, capsys: pytest.CaptureFixture) -> None:
    database = made_database(tmp_path, {"1abc_A": QUERY})
    for more in ([], [f"--model.index={database.path}", f"--model.pretrained={tiny_esm}"]):
        text = complaint(capsys, "fit", "--config=retrieval", *more)
        assert text.startswith("contactlm: error: pyhmmer cannot be imported") and text.endswith(REMEDY)


def test_a_module_and_a_search_say_it_before_anything_is_read(tmp_path: Path) -> None:
    with pytest.raises(MissingExtraError, match="contactlm\\[retrieval\\]"):
        RetrievalModule(str(tmp_path / "no_backbone"), index=str(tmp_path / "no_database"))
    database = made_database(tmp_path, {"1abc_A": QUERY})
    with pytest.raises(MissingExtraError, match="pyhmmer"):
        StructureSearch(database)


def test_secondary_structure_says_it() -> None:
    backbone = np.full((12, 3, 3), np.nan)
    backbone[:] = 2.0 * np.arange(12)[:, None, None]  # 3.5 Å apart
    with pytest.raises(MissingExtraError, match=r"^pydssp cannot be imported .*contactlm\[retrieval\]"):
        secondary_structure(backbone, "A" * 12)
    backbone[:, [0, 2]] = np.nan
    assert len(secondary_structure(backbone, "A" * 12)) == 12  # a trace needs no library


def test_the_message_comes_back_from_a_reader_process() -> None:
    error = MissingExtraError("pydssp", "retrieval", "No module named 'pydssp'")
    back = pickle.loads(pickle.dumps(error))
    assert isinstance(back, ContactLMError) and isinstance(back, ImportError) and str(back) == str(error)


@pytest.mark.slow
def test_the_rest_of_the_package_works(tiny_esm: Path, pdb_folders: tuple[Path, Path]) -> None:
    data = [f"--data.train_dir={pdb_folders[0]}", f"--data.test_dir={pdb_folders[1]}", "--data.min_length=10"]
    model = [f"--model.pretrained={tiny_esm}", "--trainer.accelerator=cpu", "--budget.max_tokens=200"]
    assert main(["fit", "--config=crop200", *data, *model]) == 0
    Path("a.fasta").write_text(f">one\n{random_sequence(0, 40)}\n")
    last = "runs/crop200/version_0/checkpoints/last.ckpt"
    assert main(["predict", f"--ckpt_path={last}", "--data.predict_paths=a.fasta", "--trainer.accelerator=cpu"]) == 0
