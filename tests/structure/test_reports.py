"""What programs really write, as public bug reports describe it: each kind as reported, and in other shapes."""

from __future__ import annotations

import bz2
import lzma
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from contactlm.structure.parse import read_chains
from contactlm.types import Chain, StructureError
from tests.structure.made import Res, cif, pdb_atoms, peptide

LETTERS = "GASKLMNPQRST"
REPORTED = {
    **{key: {"A": "GASKLMNPQR"} for key in ["01_icodes.cif", "01_icodes.pdb"]},
    **{key: {"A": LETTERS} for key in ["02_free_arg.cif", "02_free_arg.pdb", "02_free_arg_full_own_entity.cif"]},
    **{key: {"A": "GASKLMNPQR" + "X" * 14 + "STVWYFDEHI"} for key in ["09_labels_run_on.cif", "09_labels_run_on.pdb"]},
    "06_four_letter_termini.pdb": {"A": "MASKLMNPQRSTVWYH"},
}
LENGTHS = {
    "05_segids.pdb": {"A-P1": 30, "A-P2": 50},
    "05_segids_homodimer.pdb": {"A-PROA": 30, "A-PROB": 30},
    "06_amber.pdb": {"1": 30, "2": 30},
    **{key: {"A": 38} for key in ["07_chain_dot.cif", "07_chain_question.cif"]},
    **{key: {"A": 30} for key in ["13_bom.cif", "13_bom.pdb"]},
    "12_biounit.pdb1.gz": {"A": 30},
}


def read(path: Path, text: str | list[str], **options: str) -> dict[str, Chain]:
    path.write_text(text if isinstance(text, str) else "\n".join([*text, ""]))
    return by_id(path, **options)


def by_id(path: Path, **options: str) -> dict[str, Chain]:
    chains = {chain.id.rpartition("_")[2]: chain for chain in read_chains(path, **options)}
    assert all(np.isfinite(chain.cb[chain.resolved]).all() for chain in chains.values())
    return chains


def sequences(chains: dict[str, Chain]) -> dict[str, str]:
    return {name: chain.sequence for name, chain in chains.items()}


@pytest.mark.parametrize("name", REPORTED)
def test_reported_sequences(shared: Path, name: str) -> None:
    assert sequences(by_id(shared / "pdb" / "reports" / name)) == REPORTED[name]


@pytest.mark.parametrize("name", LENGTHS)
def test_reported_chains(shared: Path, name: str) -> None:
    chains = by_id(shared / "pdb" / "reports" / name)
    assert {key: len(chain) for key, chain in chains.items()} == LENGTHS[name]
    assert all(chain.resolved.all() for chain in chains.values())


@pytest.mark.parametrize("numbers", [[5, 6, 6, 6, 7, 8], [-2, -1, -1, -1, 0, 1], [9, 8, 8, 8, 7, 6]])
@pytest.mark.parametrize("letters", ["GASKLM", "GAAAAM"])
def test_label_numbers_without_insertion_codes(tmp_path: Path, numbers: list[int], letters: str) -> None:
    residues = peptide(letters)
    for residue, number, icode in zip(residues, numbers, "  AB  ", strict=True):
        residue.number = residue.label = number
        residue.icode = icode
    assert sequences(read(tmp_path / "a.cif", cif(residues))) == {"A": letters}
    assert sequences(read(tmp_path / "a.pdb", pdb_atoms(residues))) == {"A": letters}


def ligand(name: str = "ARG", hetero: bool = True, number: int = 426, chain: str = "A") -> Res:
    (residue,) = peptide("R", chain=chain, start=number, origin=60.0)
    return replace(residue, name=name, hetero=hetero, label=number)


@pytest.mark.parametrize("name", ["ARG", "LIG", "MSE"])
def test_a_ligand_with_a_polymer_number_is_no_residue(tmp_path: Path, name: str) -> None:
    residues = peptide(LETTERS)
    found = sequences(read(tmp_path / "a.cif", cif([*residues, ligand(name)], {"A": [r.name for r in residues]})))
    assert found == {"A": LETTERS}
    if name != "MSE":  # without a full sequence a modified residue may stand in a gap
        assert sequences(read(tmp_path / "a.cif", cif([*residues, ligand(name)]))) == {"A": LETTERS}


@pytest.mark.parametrize("number", [426, 13, 1])
def test_an_atom_residue_after_ter_that_nothing_is_bonded_to_is_a_ligand(tmp_path: Path, number: int) -> None:
    lines = [*pdb_atoms(peptide(LETTERS)), "TER", *pdb_atoms([ligand(hetero=False, number=number)])]
    chains = read(tmp_path / "a.pdb", lines)
    assert list(sequences(chains).values()) == [LETTERS]
    in_cif = cif([*peptide(LETTERS), ligand(hetero=False)])
    assert sequences(read(tmp_path / "a.cif", in_cif)) == {"A": LETTERS}


@pytest.mark.parametrize("hetero", [True, False])
def test_a_ligand_alone_in_a_chain_is_no_chain(tmp_path: Path, hetero: bool) -> None:
    residues = [*peptide(LETTERS), ligand(hetero=hetero, chain="B")]
    assert sequences(read(tmp_path / "a.pdb", pdb_atoms(residues))) == {"A": LETTERS}
    assert sequences(read(tmp_path / "a.cif", cif(residues))) == {"A": LETTERS}


def test_modified_residues_in_the_chain_stay(tmp_path: Path) -> None:
    residues = peptide(LETTERS)
    residues[5] = replace(residues[5], name="MSE", hetero=True)
    residues[7] = replace(residues[7], name="XYZ", hetero=True)
    assert sequences(read(tmp_path / "a.cif", cif(residues))) == {"A": "GASKLMNXQRST"}
    assert sequences(read(tmp_path / "a.pdb", pdb_atoms(residues))) == {"A": "GASKLMNXQRST"}


def with_segments(lines: list[str], segid: str) -> list[str]:
    return [f"{line[:72]}{segid:<4}{line[76:]}" for line in lines]


@pytest.mark.parametrize("start", [1, 13, 40])
def test_segment_ids_tell_chains_of_one_letter_apart(tmp_path: Path, start: int) -> None:
    one, other = pdb_atoms(peptide(LETTERS)), pdb_atoms(peptide("MKTAYIAK", start=start, origin=60.0))
    found = sequences(read(tmp_path / "a.pdb", [*with_segments(one, "PROA"), *with_segments(other, "PROB")]))
    assert found == {"A-PROA": LETTERS, "A-PROB": "MKTAYIAK"}


def test_segments_of_one_bonded_chain_are_one_chain(tmp_path: Path) -> None:
    lines = pdb_atoms(peptide(LETTERS))
    assert sequences(read(tmp_path / "a.pdb", [*with_segments(lines[:30], "A1"), "TER", *lines[30:]])) == {"A": LETTERS}


@pytest.mark.parametrize(("letter", "ids"), [(" ", ["1", "2", "3"]), ("A", ["A-1", "A-2", "A-3"])])
@pytest.mark.parametrize("runs_on", [True, False])
def test_ter_ends_a_chain_that_cannot_go_on(tmp_path: Path, letter: str, ids: list[str], runs_on: bool) -> None:
    lines: list[str] = []
    for i in range(3):  # copies that differ in nothing but their place
        lines += [*pdb_atoms(peptide(LETTERS, letter, 1 + 12 * i * runs_on, origin=60.0 * i)), "TER"]
    chains = read(tmp_path / "a.pdb", lines)
    assert sequences(chains) == dict.fromkeys(ids, LETTERS)
    assert np.diff([chain.ca[0, 0] for chain in chains.values()]) == pytest.approx(60.0)


def test_ter_inside_a_chain_that_may_go_on_ends_nothing(tmp_path: Path) -> None:
    one, other = pdb_atoms(peptide(LETTERS)), pdb_atoms(peptide("MKTAYIAK", start=40, origin=60.0))
    assert sequences(read(tmp_path / "a.pdb", [*one, "TER", *other])) == {"A": LETTERS + "X" * 27 + "MKTAYIAK"}


def test_numbers_that_begin_again_elsewhere_begin_a_chain(tmp_path: Path) -> None:
    lines = [*pdb_atoms(peptide(LETTERS)), *pdb_atoms(peptide("MKTAYIAK", origin=60.0))]
    assert sequences(read(tmp_path / "a.pdb", lines)) == {"A-1": LETTERS, "A-2": "MKTAYIAK"}


@pytest.mark.parametrize("unset", [".", "?"])
def test_unset_chain_ids_are_label_ids(tmp_path: Path, unset: str) -> None:
    residues = [*peptide(LETTERS, "A"), *peptide("MKTAYIAK", "B", origin=60.0)]
    text = cif(residues).replace(" A 1\n", f" {unset} 1\n").replace(" B 1\n", f" {unset} 1\n")
    assert f" {unset} 1\n" in text
    assert sequences(read(tmp_path / "a.cif", text)) == {"A": LETTERS, "B": "MKTAYIAK"}


def test_label_numbers_run_on_over_two_gaps(tmp_path: Path) -> None:
    residues = [
        *peptide("GASK"),
        *peptide("LMNP", start=12, origin=60.0, seed=1),
        *peptide("QRST", start=18, origin=90.0, seed=2),
    ]
    for label, residue in enumerate(residues, start=1):
        residue.label = label
    expected = {"A": "GASK" + 7 * "X" + "LMNP" + "XX" + "QRST"}
    assert sequences(read(tmp_path / "a.cif", cif(residues))) == expected
    assert sequences(read(tmp_path / "a.pdb", pdb_atoms(residues))) == expected
    bonded = peptide("GASKLM")
    bonded[3].number, bonded[4].number, bonded[5].number = 10, 11, 12  # a jump of the numbers in a bonded chain
    assert sequences(read(tmp_path / "a.cif", cif(bonded))) == {"A": "GASKLM"}


@pytest.mark.parametrize("suffix", ["pdb", "cif"])
def test_one_alternate_location_counts_for_a_residue(shared: Path, suffix: str) -> None:
    chain = by_id(shared / "pdb" / "reports" / f"11_altlocs_mixed.{suffix}")["A"]
    apart = np.linalg.norm(chain.cb - chain.ca, axis=1)
    assert apart == pytest.approx(1.522, abs=0.01)
    other = by_id(shared / "pdb" / "reports" / f"11_altlocs_mixed.{'cif' if suffix == 'pdb' else 'pdb'}")["A"]
    np.testing.assert_allclose(chain.cb, other.cb, atol=1e-5)


@pytest.mark.parametrize("first", [0.55, 0.45])
def test_neighbours_are_of_one_conformation(tmp_path: Path, first: float) -> None:
    residues = peptide("GASKLM")
    for i, occupancy in ((2, first), (3, 0.8)):  # A is likelier in one of them, or in both
        other = replace(residues[i], altloc="B", occupancy=1 - occupancy, xyz=residues[i].moved(2.0))
        residues[i] = replace(residues[i], altloc="A", occupancy=occupancy, alternates=[other])
    chain = read(tmp_path / "a.pdb", pdb_atoms(residues))["A"]
    expected = np.array([residue.xyz["CA"] for residue in residues])
    np.testing.assert_allclose(chain.ca, expected, atol=1e-3)


def test_byte_order_marks(tmp_path: Path) -> None:
    text = "\n".join([*pdb_atoms(peptide(LETTERS)), ""])
    (tmp_path / "a.pdb").write_bytes(b"\xef\xbb\xbf" + text.encode())
    chain = by_id(tmp_path / "a.pdb")["A"]
    assert np.linalg.norm(chain.cb[0] - chain.ca[0]) == pytest.approx(1.522, abs=0.01)  # the first N was read
    (tmp_path / "a.pdb").write_bytes(text.encode("utf-16"))
    with pytest.raises(StructureError, match="UTF-16: save it as UTF-8"):
        read_chains(tmp_path / "a.pdb")


def test_assemblies_and_other_compressions(tmp_path: Path) -> None:
    text = "\n".join([*pdb_atoms(peptide(LETTERS)), ""]).encode()
    for name, content in (("a.pdb1", text), ("a.pdb.bz2", bz2.compress(text)), ("a.pdb2.XZ", lzma.compress(text))):
        (tmp_path / name).write_bytes(content)
        assert [chain.id for chain in read_chains(tmp_path / name)] == ["a_A"]
    for name in ("a.pdb.bz2", "a.pdb2.XZ"):
        content = (tmp_path / name).read_bytes()
        for damaged in (content[: len(content) // 2], b"no " + content):
            (tmp_path / name).write_bytes(damaged)
            with pytest.raises(StructureError, match=r"damaged (bz2|xz) data"):
                read_chains(tmp_path / name)
    with pytest.raises(StructureError, match=r"known are \.pdb \.pdb1 .*\.bcif"):
        read_chains(tmp_path / "a.cif1")


def models(suffix: str, *structures: list[Res]) -> str:
    if suffix == "cif":
        first, *others = (cif(each, model=i) for i, each in enumerate(structures, start=1))
        rows = [line for text in others for line in text.splitlines() if line.startswith("ATOM")]
        return first.replace("\n#\n", "\n", 1).removesuffix("#\n") + "\n".join([*rows, "#", ""])
    blocks = [[f"MODEL {i}", *pdb_atoms(each), "TER", "ENDMDL"] for i, each in enumerate(structures, start=1)]
    return "\n".join([line for block in blocks for line in block] + ["END", ""])


@pytest.mark.parametrize("suffix", ["pdb", "cif"])
def test_models_that_are_copies_are_read_where_wanted(tmp_path: Path, suffix: str) -> None:
    structures = [peptide(LETTERS, origin=60.0 * i) + peptide("MKTAYIAK", "B", origin=60.0 * i + 25) for i in range(3)]
    path = tmp_path / f"a.{suffix}"
    assert list(read(path, models(suffix, *structures))) == ["A", "B"]
    chains = by_id(path, models="copies")
    assert list(chains) == ["A", "B", "A-2", "B-2", "A-3", "B-3"]
    assert chains["A-3"].sequence == LETTERS and chains["A-3"].ca[0, 0] - chains["A"].ca[0, 0] == pytest.approx(120.0)
    ensemble = [peptide(LETTERS, origin=0.5 * i) for i in range(3)]
    assert list(read(path, models(suffix, *ensemble), models="copies")) == ["A"]
    with pytest.raises(ValueError, match="models='all'; it can be 'first' or 'copies'"):
        read_chains(path, models="all")


def test_binary_cif_gives_what_the_pdb_file_gives(shared: Path) -> None:
    (binary,) = read_chains(shared / "pdb" / "edge" / "1gbt.bcif.gz")
    assert binary.id == "1gbt_A" and len(binary) == 223 and binary.sequence.startswith("IVGGYTCGANTVPYQVSLNSG")
    steps = np.linalg.norm(np.diff(binary.ca, axis=0), axis=1)
    assert np.nanmedian(steps) == pytest.approx(3.8, abs=0.05)
    assert np.nanmedian(np.linalg.norm(binary.cb - binary.ca, axis=1)) == pytest.approx(1.522, abs=0.01)


@pytest.mark.parametrize("content", [b"", b"\x81", b"\xc1", b"data_x\n", b"\x81\xaadataBlocks\x90"])
def test_what_is_no_binary_cif(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.bcif").write_bytes(content)
    with pytest.raises(StructureError, match="cannot be read as BinaryCIF"):
        read_chains(tmp_path / "a.bcif")
