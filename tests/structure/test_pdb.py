"""What becomes of each kind of oddity of the PDB format: one small file written for each."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from contactlm.structure.contacts import virtual_cbeta
from contactlm.structure.parse import read_chains
from contactlm.types import Chain, StructureError
from tests.structure.made import Res, modres, pdb_atoms, peptide, seqres, three

LETTERS = "MKTAYIAKQRQISFVKSHFS"


@pytest.fixture
def read(tmp_path: Path):
    def read_lines(lines: list[str], sequence: str = "seqres", name: str = "1abc.pdb") -> list[Chain]:
        path = tmp_path / name
        path.write_bytes(("\n".join(lines) + "\n").encode("latin-1"))
        return read_chains(path, sequence)

    return read_lines


def ca(residues: list[Res]) -> np.ndarray:
    return np.array([r.xyz["CA"] for r in residues], dtype=np.float32)


def test_an_ordinary_chain(read):
    residues = peptide(LETTERS)
    (chain,) = read([*seqres(three(LETTERS)), *pdb_atoms(residues), "TER", "END"])
    assert (chain.id, chain.sequence, len(chain)) == ("1abc_A", LETTERS, len(LETTERS))
    assert np.array_equal(chain.ca, ca(residues))
    expected = virtual_cbeta(*(np.array([r.xyz[atom] for r in residues]) for atom in ("N", "CA", "C")))
    assert np.allclose(chain.cb, expected, atol=2e-5)
    assert chain.resolved.all()
    assert (chain.ca.dtype, chain.cb.dtype, chain.resolved.dtype) == (np.float32, np.float32, np.bool_)


def test_modres_gives_the_parent_by_chain_number_and_insertion_code(read):
    residues = peptide("GAAAAG") + peptide("GAAAAG", chain="B", origin=50.0)
    for r in residues:
        if r.number in (2, 3, 4, 5):
            r.name, r.hetero = "XQ7", True
    residues[3].number, residues[3].icode = 3, "A"  # 3 and 3A, then a gap at 4
    lines = [modres("XQ7", "A", 3, " ", "SER"), modres("XQ7", "A", 3, "A", "CYS"), modres("XQ7", "B", 5, " ", "LYS")]
    a, b = read([*lines, *pdb_atoms(residues)])
    assert a.sequence == "GXSCXG"
    assert b.sequence == "GXXXKG"


def test_modres_comes_before_the_table_and_names_the_parent_in_seqres(read):
    residues = peptide("GAAG")
    residues[1].name, residues[1].hetero = "MSE", True
    lines = [modres("MSE", "A", 2, " ", "CYS"), *seqres(["MSE", "GLY", "MSE", "ALA", "GLY"])]
    (chain,) = read([*lines, *pdb_atoms(residues)])
    assert chain.sequence == "CGCAG"
    assert chain.resolved.tolist() == [False, True, True, True, True]


def test_modres_of_an_ordinary_residue_changes_no_other(read):
    """Glycosylation sites have such records; here the parent differs to show where it applies."""
    residues = peptide("GNANG")
    (chain,) = read([modres("ASN", "A", 2, " ", "SER"), *seqres(three("GNANGN")), *pdb_atoms(residues)])
    assert chain.sequence == "GSANGN"


@pytest.mark.parametrize("hetero", [True, False])
@pytest.mark.parametrize(("name", "letter"), [("MSE", "M"), ("PTR", "Y"), ("DVA", "V"), ("HSD", "H"), ("XQ7", "X")])
def test_modified_residues_without_modres(read, name, letter, hetero):
    residues = peptide("GAAG")
    residues[2].name, residues[2].hetero = name, hetero
    (chain,) = read(pdb_atoms(residues))
    assert chain.sequence == f"GA{letter}G"
    assert chain.resolved.all()


def test_selenocysteine_pyrrolysine_and_unknown(read):
    residues = peptide("GUXAG")
    residues[3].name = "PYL"
    (chain,) = read([*seqres(["GLY", "SEC", "UNK", "PYL", "GLY", "ASX"]), *pdb_atoms(residues)])
    assert chain.sequence == "GUXOGB"


def test_insertion_codes_are_residues(read):
    residues = peptide(LETTERS)
    for i, r in enumerate(residues[5:8]):
        r.number, r.icode = 5, "ABC"[i]
    for r in residues[8:]:
        r.number = int(r.number) - 3
    (chain,) = read([*seqres(three(LETTERS)), *pdb_atoms(residues)])
    assert chain.sequence == LETTERS
    assert np.array_equal(chain.ca, ca(residues))


@pytest.mark.parametrize("numbers", [range(-9, 11), range(99, 79, -1), [*range(50, 60), *range(10)]])
def test_order_is_that_of_the_file_whatever_the_numbers(read, numbers):
    residues = peptide(LETTERS)
    for r, number in zip(residues, numbers, strict=True):
        r.number = number
    for header in ([], seqres(three(LETTERS))):
        (chain,) = read([*header, *pdb_atoms(residues)])
        assert chain.sequence == LETTERS
        assert np.array_equal(chain.ca, ca(residues))


def test_unresolved_residues_stay_in_the_sequence(read):
    residues = peptide(LETTERS)
    missing = [0, 1, 7, 8, 9, 19]
    kept = [r for i, r in enumerate(residues) if i not in missing]
    lines = [*seqres(three(LETTERS)), *pdb_atoms(kept)]
    (chain,) = read(lines)
    assert chain.sequence == LETTERS
    assert np.flatnonzero(~chain.resolved).tolist() == missing
    assert np.isnan(chain.ca[missing]).all()
    assert np.isnan(chain.cb[missing]).all()
    assert np.array_equal(chain.ca[chain.resolved], ca(kept))
    (observed,) = read(lines, "observed")
    assert observed.sequence == "".join(np.array(list(LETTERS))[chain.resolved])
    assert np.array_equal(observed.cb, chain.cb[chain.resolved])
    assert observed.resolved.all()


@pytest.mark.parametrize(("first", "second", "expected"), [(0.4, 0.6, 1), (0.6, 0.4, 0), (0.5, 0.5, 0), (0.0, 0.2, 1)])
def test_of_alternate_locations_the_highest_occupancy_counts(read, first, second, expected):
    residues = peptide("GASG")
    other = replace(residues[1], xyz=residues[1].moved(0.7), altloc="B", occupancy=second)
    residues[1] = replace(residues[1], altloc="A", occupancy=first, alternates=[other])
    (chain,) = read(pdb_atoms(residues))
    assert np.allclose(chain.ca[1], (residues[1], other)[expected].xyz["CA"])


@pytest.mark.parametrize("blank", [1.0, 0.9])
def test_an_atom_without_location_keeps_the_occupancy_it_has(read, blank):
    """A at 0.4, then a blank one at 1.0, then B at 0.6: what replaces an alternate location is judged as itself."""
    residues = peptide("GASG")
    kept = replace(residues[1], xyz=residues[1].moved(0.7), occupancy=blank)
    last = replace(residues[1], xyz=residues[1].moved(1.4), altloc="B", occupancy=0.6)
    residues[1] = replace(residues[1], altloc="A", occupancy=0.4, alternates=[kept, last])
    (chain,) = read(pdb_atoms(residues))
    assert np.allclose(chain.ca[1], kept.xyz["CA"])


def test_a_lone_alternate_location_counts(read):
    residues = peptide("GASG")
    residues[1].altloc = "B"
    (chain,) = read(pdb_atoms(residues))
    assert np.array_equal(chain.ca, ca(residues))


@pytest.mark.parametrize("hetero", [True, False])
@pytest.mark.parametrize(("first", "second", "expected"), [(0.4, 0.6, "S"), (0.6, 0.4, "M"), (0.5, 0.5, "M")])
def test_of_two_residue_types_the_one_of_the_higher_occupancy_counts(read, first, second, expected, hetero):
    residues = peptide("GASG")
    other = replace(residues[1], name="SER", xyz=residues[1].moved(0.3), altloc="B", occupancy=second)
    residues[1] = replace(residues[1], name="MSE", altloc="A", hetero=hetero, occupancy=first, alternates=[other])
    (chain,) = read([*seqres(["GLY", "MSE", "SER", "GLY"]), *pdb_atoms(residues)])
    assert chain.sequence == f"G{expected}SG"
    assert np.allclose(chain.ca[1], (residues[1] if expected == "M" else other).xyz["CA"])


def test_the_first_model_only(read):
    first, second = peptide("GASG"), peptide("GASGKK", seed=1)
    for end in (["ENDMDL"], []):
        models = ["MODEL        1", *pdb_atoms(first), *end, "MODEL        2", *pdb_atoms(second), *end]
        (chain,) = read(models)
        assert chain.sequence == "GASG"
        assert np.array_equal(chain.ca, ca(first))


def test_an_empty_first_model_is_refused(read):
    with pytest.raises(StructureError, match="first model"):
        read(["MODEL        1", "ENDMDL", "MODEL        2", *pdb_atoms(peptide("GASG")), "ENDMDL"])


def test_a_chain_of_ca_only(read):
    residues = [r.without("N", "C", "O", "CB") for r in peptide(LETTERS)]
    (chain,) = read([*seqres(three(LETTERS + "GG")), *pdb_atoms(residues)])
    assert chain.sequence == LETTERS + "GG"
    assert np.array_equal(chain.cb[:-2], ca(residues))


def test_incomplete_backbones(read):
    residues = peptide("GASKVG")
    changed = [
        r.without(*lost) for r, lost in zip(residues[1:5], [["N"], ["CA"], ["C"], ["N", "CA", "C", "O"]], strict=True)
    ]
    (chain,) = read(pdb_atoms([residues[0], *changed, residues[5]]))
    assert chain.sequence == "GASKVG"
    assert chain.resolved.tolist() == [True, True, False, True, False, True]
    assert np.array_equal(chain.cb[[1, 3]], chain.ca[[1, 3]])
    assert not np.array_equal(chain.cb[0], chain.ca[0])
    (observed,) = read(pdb_atoms([residues[0], *changed, residues[5]]), "observed")
    assert observed.sequence == "GAKG"


def nucleotides(chain: str) -> list[Res]:
    atoms = ["P", "O5'", "C5'", "C4'", "N9", "C8", "N7", "C5", "N1", "C2"]
    at = {atom: np.array([60.0 + i, 3.0, 1.0]) for i, atom in enumerate(atoms)}
    return [Res(name, i, {atom: xyz + 5 * i for atom, xyz in at.items()}, chain) for i, name in enumerate(["DA", "DC"])]


def test_nucleic_acids_are_left_out(read):
    lines = [*seqres(["DA", "DC"], "B"), *seqres(three("GASG"))]
    (chain,) = read(
        [*lines, *pdb_atoms(nucleotides("B")), "TER", *pdb_atoms(peptide("GASG")), *pdb_atoms(nucleotides("A"))]
    )
    assert (chain.id, chain.sequence) == ("1abc_A", "GASG")
    with pytest.raises(StructureError, match=r"1abc\.pdb: no protein chain"):
        read([*seqres(["DA", "DC"], "B"), *pdb_atoms(nucleotides("B"))])


def test_calcium_is_no_alpha_carbon(read):
    ion = Res("CA", 200, {"CA": np.array([1.0, 2.0, 3.0])}, hetero=True)
    lines = [line.replace(" CA   CA", "CA    CA") for line in pdb_atoms([ion])]
    (chain,) = read([*pdb_atoms(peptide("GASG")), "TER", *lines])
    assert chain.sequence == "GASG"


def test_ter_records_inside_a_chain_do_not_end_it(read):
    residues = peptide(LETTERS)
    residues[12].name, residues[12].hetero = "MSE", True
    lines = pdb_atoms(residues)
    (chain,) = read([*lines[:40], "TER", *lines[40:], "TER"])
    assert chain.sequence == LETTERS[:12] + "M" + LETTERS[13:]


@pytest.mark.parametrize("full", [[], seqres(three("GASG"))])
def test_free_amino_acids_are_ligands(read, full):
    free = [replace(r, hetero=True) for r in peptide("AP", start=201, seed=3, origin=30.0)]  # a dipeptide
    free.append(replace(peptide("M", start=203, origin=-40.0)[0], name="MSE", hetero=True))
    (chain,) = read([*full, *pdb_atoms(peptide("GASG")), "TER", *pdb_atoms(free)])
    assert chain.sequence == "GASG"


def test_ligands_with_backbone_names_are_left_out(read):
    ligand = replace(peptide("G", start=301, origin=30.0)[0], name="LIG", hetero=True)
    (chain,) = read([*pdb_atoms([*peptide("GASG"), ligand]), "TER"])
    assert chain.sequence == "GASG"


def test_hetero_residues_collected_at_the_end_return_to_their_places(read):
    residues = peptide(LETTERS)
    moved = [0, 7, 8, 12, 19]
    for i in moved:
        residues[i].name, residues[i].hetero = "MSE", True
    letters = "".join("M" if i in moved else one for i, one in enumerate(LETTERS))
    rest = [r for i, r in enumerate(residues) if i not in moved]
    for ter in ([], ["TER"]):
        (chain,) = read([*pdb_atoms(rest), *ter, *pdb_atoms([residues[i] for i in moved])])
        assert chain.sequence == letters
        assert np.array_equal(chain.ca, ca(residues))


def test_several_chains_keep_their_order_and_copies_are_all_kept(read):
    chains = [peptide("GASG", chain=one, origin=20.0 * i) for i, one in enumerate("Ba1")]
    found = read([line for residues in chains for line in [*pdb_atoms(residues), "TER"]])
    assert [(chain.id, chain.sequence) for chain in found] == [
        ("1abc_B", "GASG"),
        ("1abc_a", "GASG"),
        ("1abc_1", "GASG"),
    ]


def test_one_chain_in_pieces_is_one_chain(read):
    residues = peptide(LETTERS)
    other = peptide("GASG", chain="B", origin=60.0)
    a, b = read([*pdb_atoms(residues[:9]), *pdb_atoms(other), *pdb_atoms(residues[9:])])
    assert (a.sequence, b.sequence) == (LETTERS, "GASG")


def test_a_second_copy_under_the_same_numbers_is_a_chain_of_its_own(read):
    residues = peptide("GASG")
    one, other = read([*pdb_atoms(residues), "TER", *pdb_atoms([replace(r, xyz=r.moved(40)) for r in residues])])
    assert (one.id, other.id) == ("1abc_A-1", "1abc_A-2")
    assert np.array_equal(one.ca, ca(residues)) and np.allclose(other.ca, one.ca + 40, atol=1e-4)


def test_a_blank_chain_id_leaves_the_id_open(read):
    (chain,) = read([*seqres(three("GASGK"), " "), *pdb_atoms(peptide("GASG", chain=" "))])
    assert (chain.id, chain.sequence) == ("1abc_", "GASGK")


def test_headers_in_latin_1_and_windows_line_ends(read):
    lines = ["REMARK   1 AUTH   J.MÜLLER, Å", *seqres(three("GASG")), *pdb_atoms(peptide("GASG"))]
    (chain,) = read([line + "\r" for line in lines])
    assert (chain.id, chain.sequence) == ("1abc_A", "GASG")
    assert np.array_equal(chain.ca, read(lines)[0].ca)


def test_hybrid_36_numbers(read):
    residues = peptide(LETTERS)
    numbers = [*range(9990, 10000), "A000", "A001", "A002", "A003", "A003", "A004", "ZZZZ", "a000", "a001", "zzzz"]
    for r, number in zip(residues, numbers, strict=True):
        r.number = number
    residues[14].icode = "B"
    residues[15].name, residues[15].hetero = "XQ7", True
    lines = [*seqres(three(LETTERS)), *pdb_atoms(residues)]
    (chain,) = read([f"MODRES 1ABC XQ7 A A004  {'LYS'}  MODIFIED RESIDUE", *lines])
    assert chain.sequence == LETTERS[:15] + "K" + LETTERS[16:]
    assert np.array_equal(chain.ca, ca(residues))


def test_caps_are_no_residues(read):
    ace = Res("ACE", 0, {"C": np.array([-0.7, -1.1, 0.0]), "O": np.zeros(3), "CH3": np.ones(3)}, hetero=True)
    nh2 = Res("NH2", 5, {"N": np.array([30.0, 0.0, 0.0])}, hetero=True)
    (chain,) = read([*seqres(["ACE", *three("GASG"), "NH2"]), *pdb_atoms([ace, *peptide("GASG"), nh2])])
    assert chain.sequence == "GASG"


def test_a_single_residue_is_a_chain(read):
    (chain,) = read(pdb_atoms(peptide("W")))
    assert (chain.sequence, chain.ca.shape) == ("W", (1, 3))


@pytest.mark.parametrize("value", ["     nan", "********", "     inf"])
def test_coordinates_that_are_no_numbers_leave_a_residue_unresolved(read, value):
    residues = peptide("GASG")
    lines = [line[:38] + value + line[46:] if " SER " in line else line for line in pdb_atoms(residues)]
    (chain,) = read(lines)
    assert chain.sequence == "GASG"
    assert chain.resolved.tolist() == [True, True, False, True]


def test_placeholders_at_one_point_are_unresolved(read):
    residues = peptide("GASG", origin=20.0)
    residues[2] = replace(residues[2], xyz={atom: np.zeros(3) for atom in residues[2].xyz})
    (chain,) = read(pdb_atoms(residues))
    assert chain.resolved.tolist() == [True, True, False, True]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda line: line[:35], "line 7: it ends before its coordinates"),
        (lambda line: line[:30] + "   abc  " + line[38:], "line 7: no coordinates in '   abc "),
        (lambda line: line[:22] + "12?4" + line[26:], "line 7: '12[?]4' is no residue number"),
        (lambda line: line[:22] + "    " + line[26:], "line 7: '    ' is no residue number"),
        (lambda line: line[:30] + "1.00e+09" + line[38:], r"chain 'A': residue ALA 2 has a coordinate of 1e\+09"),
    ],
)
def test_unreadable_lines_are_named(read, change, message):
    lines = pdb_atoms(peptide("GASG"))
    lines[6] = change(lines[6])
    assert " CA  ALA" in lines[6] or len(lines[6]) < 54
    with pytest.raises(StructureError, match=rf"1abc\.pdb: {message}"):
        read(lines)


def test_a_file_cut_in_a_side_chain_is_refused(read):
    lines = pdb_atoms(peptide("GASG"))
    with pytest.raises(StructureError, match="may be cut"):
        read([*lines[:-1], lines[-1][:40]])


def test_missing_occupancies_count_as_full(read):
    residues = peptide("GASG")
    (chain,) = read([line[:54] for line in pdb_atoms(residues)])
    assert np.array_equal(chain.ca, ca(residues))
