"""The one finder of input: links, hidden files, folders with odd names, and a word on what was passed over."""

from __future__ import annotations

import logging
import os
import socket
from pathlib import Path

import pytest

from contactlm import ContactDataModule
from contactlm.cli.index import index_command
from contactlm.cli.pack import pack_command
from contactlm.data.cache import StructureCache
from contactlm.data.files import find_structures, search_folder
from contactlm.data.sources import read_predict_inputs
from contactlm.structure.files import is_structure_name
from contactlm.types import DataError
from tests.conftest import random_sequence, write_pdb


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def found_in(folder: Path) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in search_folder(folder, is_structure_name)]


def test_links_to_folders_are_followed_each_folder_once(tmp_path: Path) -> None:
    inside, outside = tmp_path / "in", tmp_path / "out"
    touch(inside / "a.pdb", inside / "sub" / "b.pdb", outside / "c.pdb", outside / "deep" / "d.cif.gz")
    (inside / "linked").symlink_to(outside)
    (inside / "aa_again").symlink_to(inside / "sub")  # what is no link comes first, whatever the names
    (inside / "sub" / "loop").symlink_to(inside)
    (outside / "back").symlink_to(inside / "sub")
    found = search_folder(inside, is_structure_name)
    assert found_in(inside) == ["a.pdb", "linked/c.pdb", "linked/deep/d.cif.gz", "sub/b.pdb"]
    again = "a link to a folder that is searched already"
    assert found.passed_over == dict.fromkeys(["aa_again", "sub/loop", "linked/back"], again)


def test_links_in_circles_end(tmp_path: Path) -> None:
    touch(tmp_path / "a.pdb")
    (tmp_path / "self").symlink_to(tmp_path / "self")
    (tmp_path / "one.pdb").symlink_to(tmp_path / "two.pdb")
    (tmp_path / "two.pdb").symlink_to(tmp_path / "one.pdb")
    found = search_folder(tmp_path, is_structure_name)
    assert found == [tmp_path / "a.pdb"]
    assert found.passed_over == dict.fromkeys(["self", "one.pdb", "two.pdb"], "a dangling link")


def test_what_is_no_file_or_hidden_is_named(tmp_path: Path) -> None:
    touch(tmp_path / "a.pdb", tmp_path / "._a.pdb", tmp_path / "x.pdb" / "b.pdb", tmp_path / ".notes")
    (tmp_path / "gone.cif").symlink_to(tmp_path / "nowhere")
    with socket.socket(socket.AF_UNIX) as pipe:
        os.chdir(tmp_path)  # its path may be too long for a socket
        pipe.bind("s.ent")
        found = search_folder(tmp_path, is_structure_name)
    assert found_in(tmp_path) == ["a.pdb", "x.pdb/b.pdb"]  # a folder is searched, whatever its name
    reasons = {"._a.pdb": "hidden", "gone.cif": "a dangling link", "s.ent": "no regular file"}
    assert found.passed_over == reasons


def test_folders_that_cannot_be_searched_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path / "a.pdb", tmp_path / "closed" / "b.pdb")
    scandir = os.scandir

    def closed(path: Path) -> object:
        if Path(path).name == "closed":
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", closed)
    assert search_folder(tmp_path, is_structure_name).passed_over == {"closed": "cannot be searched: Permission denied"}


def test_many_are_counted(tmp_path: Path) -> None:
    touch(tmp_path / "a.pdb", *(tmp_path / f"._{i}.pdb" for i in range(8)))
    remark = find_structures(tmp_path).remark()
    assert remark.startswith("8 entries skipped: ._0.pdb (hidden), ") and remark.endswith(" and 3 more")
    (tmp_path / "a.pdb").unlink()
    with pytest.raises(DataError, match=r"holds no structure file.*; 8 entries skipped"):
        find_structures(tmp_path)


def messy_folder(path: Path) -> Path:
    """Two files, one of them behind a link; a hidden one, and a loop."""
    write_pdb(path / "in" / "a.pdb", {"A": random_sequence(1, 40)})
    write_pdb(path / "out" / "b.pdb", {"A": random_sequence(2, 45)}, seed=2)
    (path / "in" / "._a.pdb").write_text("of a Mac")
    (path / "in" / "._x.fasta").write_text("of a Mac")
    (path / "in" / "linked").symlink_to(path / "out")
    (path / "out" / "loop").symlink_to(path / "in")
    (path / "in" / "x.fasta").mkdir()
    return path / "in"


def test_every_command_finds_the_same_and_tells_the_same(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = messy_folder(tmp_path)
    remark = "2 entries skipped: ._a.pdb (hidden), linked/loop (a link to a folder that is searched already)"
    with caplog.at_level(logging.INFO, logger="contactlm"):
        data = ContactDataModule(test_dir=str(folder), read_workers=0)
        data.prepare_data()
        data.setup("test")
        assert data.chains["test"].ids == ["a_A", "b_A"] and not data.problems
        assert caplog.text.count(remark) == 1
        caplog.clear()
        given = ["--structures", str(folder), "--workers", "0", "--out"]
        assert pack_command([*given, str(tmp_path / "packed")]) == 0 and caplog.text.count(remark) == 1
        caplog.clear()
        assert index_command(["build", *given, str(tmp_path / "db")]) == 0 and caplog.text.count(remark) == 1


def test_predict_takes_neither_hidden_files_nor_folders(tmp_path: Path) -> None:
    folder = messy_folder(tmp_path)
    inputs = read_predict_inputs([str(folder)], StructureCache(workers=0, progress=False))
    assert inputs.store.ids == ["a_A", "b_A"] and not inputs.problems
    (note,) = inputs.notes
    assert "3 entries skipped: ._a.pdb (hidden), ._x.fasta (hidden), linked/loop" in note
