"""What is to be predicted, read in one go."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from contactlm import ContactDataModule
from contactlm.data import cache as cache_module
from contactlm.data.cache import StructureCache
from contactlm.data.files import find_structures
from contactlm.data.sources import read_predict_inputs
from contactlm.types import DataError
from tests.conftest import random_sequence, write_pdb


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Structures of one or two chains, one of them with a copy, one that cannot be read; sequences between them."""
    for i in range(5):
        chains = {"A": random_sequence(i, 30 + i), "B": random_sequence(i if i == 2 else 50 + i, 30 + i)}
        write_pdb(tmp_path / "in" / f"f{i}.pdb", chains, seed=i)
    (tmp_path / "in" / "f1x.pdb").write_text("<html>not found</html>\n")
    (tmp_path / "in" / "f3x.fasta").write_text(f">own\n{random_sequence(90, 33)}\n>f4_A\n{random_sequence(91, 20)}\n")
    return tmp_path / "in"


class Counted(StructureCache):
    """Counts the calls for files."""

    def __init__(self) -> None:
        super().__init__(workers=0, progress=False)
        self.asked: list[int] = []

    def load(self, paths):
        self.asked.append(len(paths))
        return super().load(paths)


@pytest.mark.parametrize("join", [False, True])
def test_structures_are_read_in_one_go(folder: Path, join: bool) -> None:
    cache = Counted()
    inputs = read_predict_inputs([str(folder)], cache, join)
    assert cache.asked == [6]
    one_by_one = [
        read_predict_inputs([str(path)], cache, join) for path in sorted(folder.iterdir()) if path.stem != "f1x"
    ]
    ids = [name for each in one_by_one for name in each.store.ids]
    assert inputs.store.ids == [*ids[:-2], "f4_A_2", ids[-1]] if not join else inputs.store.ids == ids
    sequences = [each.store.sequence_of(i) for each in one_by_one for i in range(len(each.store))]
    assert [inputs.store.sequence_of(i) for i in range(len(inputs.store))] == sequences
    assert list(inputs.problems) == [str(folder / "f1x.pdb")]
    assert sum("duplicate chains skipped" in note for note in inputs.notes) == (0 if join else 1)  # one line for all


def test_a_file_that_goes_away_costs_no_other(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = read_predict_inputs([str(folder)], StructureCache(workers=0, progress=False)).store
    stat = Path.stat

    def gone(self: Path, **options: object) -> object:
        if self.name == "f0.pdb" and "cache.py" in __import__("sys")._getframe(1).f_code.co_filename:
            raise FileNotFoundError(2, "No such file or directory")
        return stat(self, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Path, "stat", gone)
    inputs = read_predict_inputs([str(folder)], StructureCache(workers=0, progress=False))
    assert str(folder / "f0.pdb") in inputs.problems
    kept = [i for i, name in enumerate(expected.ids) if not name.startswith("f0")]
    assert inputs.store.ids == [expected.ids[i] for i in kept]
    for ours, theirs in enumerate(kept):
        np.testing.assert_array_equal(inputs.store.cb_of(ours), expected.cb_of(theirs))


def test_lists_of_files_of_one_folder_share_an_index(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[Path] = []
    hash_file = cache_module.hash_file
    monkeypatch.setattr(cache_module, "hash_file", lambda path: hashed.append(path) or hash_file(path))
    paths, cache = find_structures(folder), StructureCache(workers=0, progress=False)
    cache.load(paths)
    assert len(hashed) == 6
    read_predict_inputs([str(folder / "f3.pdb")], cache)
    write_pdb(folder / "f9.pdb", {"A": random_sequence(9, 44)})
    read_predict_inputs([str(folder / "f9.pdb")], cache)
    assert hashed[6:] == [folder / "f9.pdb"]
    cache.load([*paths, folder / "f9.pdb"])
    assert len(hashed) == 7
    paths[0].unlink()
    paths[1].write_text("changed")
    cache.load(paths[1:])
    (index,) = (cache.directory / "index").iterdir()
    assert len(cache_module._read_index(index)) == 6  # what is gone was dropped


def test_prepare_reads_what_is_to_be_predicted_and_nothing_else(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a trainer that predicts, the training set of the config is left alone."""
    import lightning as L
    from lightning.pytorch.trainer.states import TrainerFn

    data = ContactDataModule("nowhere", "nowhere", predict_paths=[str(folder)], read_workers=0)
    data.trainer = L.Trainer(logger=False, accelerator="cpu")
    data.trainer.state.fn = TrainerFn.PREDICTING
    data.prepare_data()
    monkeypatch.setattr(cache_module, "read_chains", lambda *_, **__: pytest.fail("a structure file was read"))
    data.setup("predict")
    assert len(data.chains["predict"]) == 11
    data.trainer.state.fn = TrainerFn.TESTING
    with pytest.raises(DataError, match="nowhere does not exist"):
        data.prepare_data()
