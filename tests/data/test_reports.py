"""Folders as people have them: one model in two formats, unknown residues, assemblies, odd formats, odd text."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import pytest

from contactlm import ContactDataModule
from contactlm.data.files import find_structures
from contactlm.data.rcsb.ids import read_id_list
from contactlm.types import DataError


@pytest.fixture
def reports(shared: Path) -> Path:
    return shared / "pdb" / "reports"


def folder_of(tmp_path: Path, reports: Path, *names: str) -> Path:
    folder = tmp_path / "structures"
    folder.mkdir()
    for name in names:
        shutil.copy(reports / name, folder / name)
    return folder


def chains(folder: Path, **options: object) -> dict[str, int]:
    data = ContactDataModule(str(folder), dev_fraction=0, read_workers=0, **options)  # type: ignore[arg-type]
    data.prepare_data()
    data.setup("fit")
    store = data.chains["train"]
    return dict(zip(store.ids, store.lengths.tolist(), strict=True))


def test_one_model_in_two_formats_is_used_once(tmp_path: Path, reports: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = folder_of(tmp_path, reports, "08_AF-X-F1-model_v4.cif", "08_AF-X-F1-model_v4.pdb", "13_bom.pdb")
    found = find_structures(folder)
    assert [path.name for path in found] == ["08_AF-X-F1-model_v4.cif", "13_bom.pdb"]
    assert found.passed_over == {"08_AF-X-F1-model_v4.pdb": "the same model as 08_AF-X-F1-model_v4.cif"}
    with caplog.at_level(logging.INFO, logger="contactlm"):
        assert len(chains(folder)) == 2
    assert caplog.text.count("the same model as") == 1
    shutil.copy(folder / "13_bom.pdb", tmp_path / "13_bom.pdb")  # of another folder: another model
    assert len(find_structures(tmp_path)) == 3


def test_chains_of_unknown_residues_are_left_out_and_counted(
    tmp_path: Path, reports: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = folder_of(tmp_path, reports, "10_unk.pdb", "13_bom.cif")
    with caplog.at_level(logging.INFO, logger="contactlm"):
        assert chains(folder) == {"13_bom_A": 30}
    assert "left out: 1 chains of mostly unknown residues" in caplog.text
    assert len(chains(folder, min_known=0.0)) == 2


def test_assemblies_give_all_copies_to_complexes(tmp_path: Path, reports: Path) -> None:
    folder = folder_of(tmp_path, reports, "12_biounit.pdb1.gz", "12_biounit_models.pdb")
    assert chains(folder) == {"12_biounit_A": 30, "12_biounit_models_A": 30}
    assert chains(folder, assembly="complex") == {"12_biounit": 60, "12_biounit_models": 60}


@pytest.mark.parametrize("name", ["a.pdbx", "a.cif.zst", "a.mmtf.gz"])
def test_formats_that_are_not_read_are_named(tmp_path: Path, reports: Path, name: str) -> None:
    folder = folder_of(tmp_path, reports, "13_bom.cif")
    (folder / name).write_text("")
    assert find_structures(folder).passed_over == {name: "of a format that is not read; convert it to mmCIF"}
    (folder / "13_bom.cif").unlink()
    with pytest.raises(DataError, match=f"holds no structure file .*{name} .of a format that is not read"):
        find_structures(folder)


def test_lists_with_a_byte_order_mark(tmp_path: Path, reports: Path) -> None:
    folder = folder_of(tmp_path, reports, "13_bom.cif", "13_list_bom.txt", "13_ids_bom.txt", "13_bom.pdb")
    assert find_structures(folder / "13_list_bom.txt")[0].is_file()
    assert all(len(entry) == 4 for entry, _ in read_id_list(folder / "13_ids_bom.txt"))
    text = (folder / "13_list_bom.txt").read_text(encoding="utf-8-sig")
    (folder / "13_list_bom.txt").write_bytes(text.encode("utf-16"))
    for read in (find_structures, read_id_list):
        with pytest.raises(DataError, match=r"13_list_bom.txt.* is text in UTF-16: save it as UTF-8"):
            read(folder / "13_list_bom.txt")
