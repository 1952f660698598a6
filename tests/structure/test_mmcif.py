"""mmCIF: the same chains as the PDB format gives, and what only mmCIF has."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from contactlm.structure.parse import read_chains
from contactlm.types import Chain, StructureError
from tests.structure.made import Res, cif, modres, pdb_atoms, peptide, seqres, three

LETTERS = "MKTAYIAKQRQISFVKSHFS"
MODIFIED = ("id", "auth_asym_id", "auth_seq_id", "PDB_ins_code", "label_comp_id", "parent_comp_id", "details")


@pytest.fixture
def read(tmp_path: Path):
    def read_text(text: str, sequence: str = "seqres", name: str = "1abc.cif") -> list[Chain]:
        path = tmp_path / name
        path.write_text(text, encoding="latin-1")
        return read_chains(path, sequence)

    return read_text


def same(a: Chain, b: Chain) -> bool:
    arrays = ((a.ca, b.ca, 1e-5), (a.cb, b.cb, 1e-4))
    close = all(np.allclose(x, y, atol=tolerance, equal_nan=True) for x, y, tolerance in arrays)
    return (a.id, a.sequence) == (b.id, b.sequence) and close and np.array_equal(a.resolved, b.resolved)


def hard_chain() -> list[Res]:
    """Author numbers from -3 on, an insertion code, a gap, alternates, a modified residue and an incomplete one."""
    residues = peptide(LETTERS, start=-3)
    residues[4].number, residues[4].icode = 0, "A"
    residues[6].name, residues[6].hetero = "XQ7", True
    residues[9] = residues[9].without("N")
    other = replace(residues[11], name="SER", altloc="B", occupancy=0.7, xyz=residues[11].moved(0.4))
    residues[11] = replace(residues[11], altloc="A", occupancy=0.3, alternates=[other])
    return residues[2:13] + residues[16:]


@pytest.mark.parametrize("sequence", ["seqres", "observed"])
def test_both_formats_give_the_same_chains(read, tmp_path, sequence):
    residues = [*hard_chain(), *peptide("GASG", chain="b", origin=70.0)]
    residues[-4].name = "MSE"
    names = three(LETTERS)
    names[6] = "XQ7"
    full = {"A": ["ACE", *names], "b": ["MSE", "ALA", "SER", "GLY", "NH2"]}
    (tmp_path / "1abc.pdb").write_text(
        "\n".join(
            [modres("XQ7", "A", 3, " ", "TRP")]
            + [line for chain, names in full.items() for line in seqres(names, chain)]
            + pdb_atoms(residues)
        )
    )
    for r in residues:
        if r.chain == "A":
            for each in (r, *r.alternates):
                each.label += 1  # the cap is the first of the entity
    table = ["loop_", *(f"_pdbx_struct_mod_residue.{c}" for c in MODIFIED), "1 A 3 ? XQ7 TRP 'a modified residue'", "#"]
    from_cif = read(cif(residues, full, more=table, label_chains={"A": "C", "b": "D"}), sequence)
    from_pdb = read_chains(tmp_path / "1abc.pdb", sequence)
    assert [chain.id for chain in from_cif] == ["1abc_A", "1abc_b"]
    assert all(same(a, b) for a, b in zip(from_cif, from_pdb, strict=True))
    if sequence == "seqres":
        assert from_cif[0].sequence == "MKTAYIWKQRQSSFVKSHFS"
        assert (~from_cif[0].resolved).sum() == 5


@pytest.mark.parametrize("number", ["?", ".", "12.5"])
def test_a_modified_residue_without_number_is_no_reason_to_refuse_the_file(read, number):
    """As the PDB reader takes a MODRES record whose number cannot be read: the others count."""
    residues = peptide("GAAG")
    residues[1].name, residues[1].hetero = "XQ7", True
    rows = [f"1 A {number} ? XQ8 TRP .", "2 A 2 ? XQ7 TRP .", "#"]
    (chain,) = read(cif(residues, more=["loop_", *(f"_pdbx_struct_mod_residue.{c}" for c in MODIFIED), *rows]))
    assert chain.sequence == "GWAG"


def test_label_numbers_decide_where_residues_stand(read):
    """Author numbers, and likewise bonds, would place this otherwise."""
    residues = peptide("GG", start=100)
    residues[0].label, residues[1].label = 2, 5
    (chain,) = read(cif(residues, {"A": three("GGGGGG")}))
    assert np.flatnonzero(chain.resolved).tolist() == [1, 4]


@pytest.mark.parametrize("sequence", ["seqres", "observed"])
def test_rows_out_of_order_take_their_places(read, sequence):
    residues = peptide(LETTERS)
    moved = [*residues[5:], *residues[:5]]
    (chain,) = read(cif(moved, {"A": three(LETTERS)}), sequence)
    assert chain.sequence == LETTERS
    assert np.allclose(chain.ca, [r.xyz["CA"] for r in residues], atol=1e-4)


def test_author_chain_ids_of_several_letters(read):
    (chain,) = read(cif(peptide("GASG", chain="AAA"), label_chains={"AAA": "X"}))
    assert chain.id == "1abc_AAA"


def test_ligands_waters_and_free_amino_acids_have_no_label_number(read):
    residues = peptide("GASG")
    others = [replace(r, hetero=True, label=None) for r in peptide("AW", start=301, seed=4, origin=40.0)]
    water = Res("HOH", 401, {"O": np.zeros(3)}, hetero=True)
    (chain,) = read(cif([*residues, *others, water]))
    assert chain.sequence == "GASG"


def test_unknown_residues_of_the_polymer_are_x(read):
    residues = peptide("GASG")
    residues[1].name, residues[1].hetero = "XQ7", True
    (chain,) = read(cif(residues, {"A": ["GLY", "XQ7", "SER", "GLY", "XQ9"]}))
    assert chain.sequence == "GXSGX"


def test_without_label_numbers_the_rules_of_the_pdb_format_hold(read):
    residues = [replace(r, label=None) for r in peptide(LETTERS)]
    residues[3].name, residues[3].hetero = "MSE", True
    residues[5].name, residues[5].hetero = "XQ7", True
    free = [replace(r, hetero=True, label=None) for r in peptide("W", start=301, origin=40.0)]
    (chain,) = read(cif([*residues, *free]))
    assert chain.sequence == LETTERS[:3] + "M" + LETTERS[4] + "X" + LETTERS[6:]


def test_the_first_model_only(read):
    first, second = cif(peptide("GASG")), cif(peptide("GASGKK", seed=1), model=2)
    rows = [line for line in second.splitlines() if line.startswith("ATOM")]
    (chain,) = read(first.rstrip("#\n") + "\n" + "\n".join(rows) + "\n#\n")
    assert chain.sequence == "GASG"
    assert np.allclose(chain.ca[3], peptide("GASG")[3].xyz["CA"], atol=1e-4)


def test_the_first_data_block_only(read):
    (chain,) = read(cif(peptide("GASG")) + cif(peptide("WWWWW", chain="B")))
    assert (chain.id, chain.sequence) == ("1abc_A", "GASG")


def test_the_full_sequence_may_follow_the_atoms(read):
    text = cif(peptide("GASG"), {"A": three("GASGK")})
    head, table, atoms = text.split("loop_")
    (chain,) = read(head + "loop_" + atoms + "loop_" + table)
    assert chain.sequence == "GASGK"


def test_quotes_text_fields_and_look_alikes_elsewhere(read):
    more = [
        "_struct.title 'a loop_ of _atom_site.id # and O5''",
        "_struct.text",
        ";first",
        "loop_",
        "_atom_site.id",
        "data_other",
        ";",
        "loop_",
        "_audit.item",
        "_audit.text",
        "_atom_site '_atom_site.id'",
        '"it\'s" _entity_poly_seq',
    ]
    residues = peptide("GASG")
    text = cif(residues, {"A": three("GASGK")}, more=more).replace(" CA . SER", ' "CA" . SER').replace("ALA", "'ALA'")
    (chain,) = read(text.replace("loop_", "LOOP_"))
    assert chain.sequence == "GASGK"
    assert chain.resolved.sum() == 4


def test_rows_wrapped_over_lines(read):
    text = cif(peptide("GASG"), {"A": three("GASGK")})
    rows = text.split("_atom_site.pdbx_PDB_model_num\n")
    (wrapped,) = read("_atom_site.pdbx_PDB_model_num\n".join([rows[0], rows[1].replace(" 1.00 ", "\n1.00 ")]))
    (plain,) = read(text)
    assert same(wrapped, plain)


def test_two_polymers_under_one_author_chain_follow_each_other(read):
    first, second = peptide("GASG", chain="A"), peptide("WKW", chain="B", start=201, origin=50.0)
    for r in second:
        r.label += 1
    text = cif([*first, *second], {"A": three("GASGK"), "B": three("PWKW")}).replace(" B 1\n", " A 1\n")
    (chain,) = read(text)
    assert (chain.id, chain.sequence) == ("1abc_A", "GASGKPWKW")
    assert np.flatnonzero(~chain.resolved).tolist() == [4, 5]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("# nothing\n", "Empty file"),
        ("Free text.\n", "does not begin with data_"),
        ("data_x\n_cell.length_a 1\n", "no _atom_site table"),
        (cif(peptide("GASG"))[:-40], "ends within a row"),
        (cif(peptide("GASG")).replace("_atom_site.Cartn_y\n", "_atom_site.y\n"), "lacks Cartn_y"),
        (cif(peptide("GASG")).replace(" 20.00 3 A", " 20.00 3.5 A"), "'3.5'"),
        (cif(peptide("GASG"), {"A": three("GASG")}).replace("1 4 GLY n", "1 4"), "_entity_poly_seq table ends"),
    ],
)
def test_broken_files_are_refused_with_the_reason(read, text, message):
    with pytest.raises(StructureError, match=rf"1abc\.cif: .*{message}"):
        read(text)
