"""PDB ids, and text files of them."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from contactlm.data.rcsb.download import download_structures
from contactlm.data.rcsb.ids import parse_id, read_id_list
from contactlm.types import DataError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1ABC", ("1abc", None)),
        (" 4hhb_A ", ("4hhb", "A")),
        ("4hhb a", ("4hhb", "a")),
        ("4hhb\tAA1", ("4hhb", "AA1")),
        ("pdb_00004HHB", ("pdb_00004hhb", None)),
        ("PDB_00004hhb_B", ("pdb_00004hhb", "B")),
    ],
)
def test_ids_are_read(text: str, expected: tuple[str, str | None]) -> None:
    assert parse_id(text) == expected


@pytest.mark.parametrize(
    "text", ["", "abcd", "0abc", "1ab", "1abcd", "1abc_", "1abc_A_B", "../1abc", "pdb_4hhb", "1äbc"]
)
def test_what_is_no_id_is_an_error(text: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is not a PDB id such as"):
        parse_id(text)
    with pytest.raises(DataError, match="is not a PDB id such as"):
        download_structures(["1abc", text], tmp_path, "http://127.0.0.1:9", progress=False)
    assert list(tmp_path.iterdir()) == []


def test_id_lists_are_read(tmp_path: Path) -> None:
    path = tmp_path / "ids.txt"
    path.write_text("# a comment\n\n1ABC\n2xyz_B  # its chain B\n2xyz C\npdb_00001abc\n")
    assert read_id_list(path) == [("1abc", None), ("2xyz", "B"), ("2xyz", "C"), ("pdb_00001abc", None)]


def test_bad_lists_are_errors_that_say_where(tmp_path: Path) -> None:
    path = tmp_path / "ids.txt"
    path.write_text("1abc\n\nnonsense\n")
    with pytest.raises(DataError, match=r"ids\.txt, line 3: 'nonsense' is not a PDB id"):
        read_id_list(path)
    path.write_text("# nothing\n")
    with pytest.raises(DataError, match="holds no PDB id"):
        read_id_list(path)
    path.write_bytes(b"\xff\x00")
    with pytest.raises(DataError, match="a list of PDB ids cannot be read as text"):
        read_id_list(path)


def test_the_shipped_lists_share_no_entry() -> None:
    folder = Path(__file__).resolve().parents[3] / "lightning_configs" / "ids"
    train, test = read_id_list(folder / "train.txt"), read_id_list(folder / "test.txt")
    assert len(train) == len(set(train)) > 300 and len(test) == len(set(test)) > 90
    assert not {entry for entry, _ in train} & {entry for entry, _ in test}


def test_the_shipped_lists_follow_the_splits_of_the_structure_set(shared: Path) -> None:
    folder = Path(__file__).resolve().parents[3] / "lightning_configs" / "ids"
    with (shared / "pdb" / "MANIFEST.csv").open(newline="") as handle:
        rows = [row for row in csv.DictReader(handle) if row["split"] in ("train", "test")]
    clusters: dict[str, set[str]] = {"train": set(), "test": set()}
    for split, found in clusters.items():
        of_chain = {
            (row["entry_id"].lower(), None if chain == "_" else chain): names.split("+")
            for row in rows
            if row["split"] == split
            for chain, names in (part.rsplit(":", 1) for part in row["clusters"].split(";") if part)
        }
        for key in read_id_list(folder / f"{split}.txt"):
            found.update(of_chain[key])  # every line is a chain of that split
    assert not clusters["train"] & clusters["test"]
