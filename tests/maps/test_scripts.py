"""Scripts for PyMOL and ChimeraX, and contact numbers as B-factors, parsed back; PyMOL runs one where it is."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from Bio.PDB.PDBParser import PDBParser

from contactlm import ContactMap
from contactlm.maps.scripts import COLORS, contact_numbers, drawn_pairs
from contactlm.types import DataError, StructureError
from tests.conftest import random_sequence, write_pdb
from tests.maps.made import map_of
from tests.structure.test_numbered import with_insertions

Drawn = list[tuple[str, tuple[str, str], tuple[str, str]]]  # kind, and (chain, number) of both ends
ATOM = re.compile(r'chain "(.*?)" and resi (\S+) and name CA\)')


@pytest.fixture
def predicted(tmp_path: Path) -> ContactMap:
    """Of a chain with insertion codes and negative numbers."""
    return map_of(with_insertions(tmp_path / 'in\'; x "1".pdb', random_sequence(0, 60)), noise=2.5)


def of_pymol(path: Path) -> tuple[str, Drawn]:
    """What a script loads and draws; each line is one call of Python, as the program runs it."""
    loaded, drawn = "", []
    for line in path.read_text().splitlines():
        if line.startswith("#"):
            continue
        assert line.startswith("/cmd.") and ";" not in line
        call = ast.parse(line[1:]).body[0].value
        arguments = [ast.literal_eval(argument) for argument in call.args]
        if call.func.attr == "load":
            loaded = arguments[0]
        if call.func.attr == "distance":
            ends = [ATOM.search(argument).groups() for argument in arguments[1:]]
            drawn.append((arguments[0], *((chain, number.replace("\\-", "-")) for chain, number in ends)))
    return loaded, drawn


def of_chimerax(path: Path) -> tuple[str, Drawn]:
    text = path.read_text()
    text = re.sub(r'#1:(\S+?)::chain_id=="([^"]+)"@CA', r"#1/\2:\1@CA", text)
    ends = r"#1(?:/([^:]+))?:(-?\d+[A-Z]?)@CA"
    found = re.findall(rf"^pbond {ends} {ends} color (#\w+) radius [\d.]+ dashes \d+ name (\w+)$", text, re.MULTILINE)
    assert all(COLORS[kind].lower() == color for *_, color, kind in found)
    assert len(found) == text.count("\npbond")
    file = re.search(r"^open (['\"])(.*)\1$", text, re.MULTILINE)[2]
    return file, [(kind, (a, b), (c, d)) for a, b, c, d, _, kind in found]


def expected(predicted: ContactMap) -> Drawn:
    """The top L pairs, by the labels."""
    residues, kinds = predicted.residues, {1: "right", 0: "wrong", -1: "predicted_only"}
    name = lambda k: (residues.chains[k], residues.numbers[k])  # noqa: E731
    drawn = [(i, j) for i, j, _ in predicted.top() if residues.numbers[i] and residues.numbers[j]]
    pairs = [(kinds[int(predicted.labels[pair])], *map(name, pair)) for pair in drawn]
    return sorted(pairs)


@pytest.mark.parametrize("suffix", [".pml", ".cxc"])
def test_scripts_draw_the_pairs_by_chain_number_and_insertion_code(
    tmp_path: Path, predicted: ContactMap, suffix: str
) -> None:
    if suffix == ".cxc":  # its commands cannot name a file with both kinds of quotes
        plain = shutil.copy(predicted.residues.file, tmp_path / "it's.pdb")
        predicted = predicted.on_structure(plain)
    read = of_pymol if suffix == ".pml" else of_chimerax
    loaded, drawn = read(predicted.save(tmp_path / f"a{suffix}"))
    assert loaded == predicted.residues.file and Path(loaded).is_file()
    assert sorted(drawn) == expected(predicted)
    assert {kind for kind, *_ in drawn} == {"right", "wrong"}
    assert {number for _, *ends in drawn for _, number in ends} & {"-2", "-1", "1A", "1B"}


def test_chains_of_a_complex_keep_their_names(tmp_path: Path) -> None:
    path = write_pdb(tmp_path / "two.pdb", {"B": random_sequence(0, 40), "z": random_sequence(1, 30)})
    predicted = map_of(path, joined=True)
    for suffix, read in ((".pml", of_pymol), (".cxc", of_chimerax)):
        _, drawn = read(predicted.save(tmp_path / f"a{suffix}"))
        assert sorted(drawn) == expected(predicted)
        assert {chain for _, *ends in drawn for chain, _ in ends} == {"B", "z"}


# ChimeraX's grammar of one atom (_atomspec.peg): a range or odd letters after a slash mean something else.
SPECIFIER = re.compile(r'#1(/[a-zA-Z0-9]+)?:-?[a-zA-Z0-9_]+(::chain_id=="[^"]+")?@CA')


@pytest.mark.parametrize("names", [("A-2", "A"), (".", "_"), ("B 2", "b2"), ("*", "A,B")])
def test_chimerax_is_given_any_chain_name(tmp_path: Path, names: tuple[str, str]) -> None:
    path = write_pdb(tmp_path / "two.pdb", {"B": random_sequence(0, 40), "z": random_sequence(1, 30)})
    predicted, renamed = map_of(path, joined=True), dict(zip("Bz", names, strict=True))
    residues = replace(predicted.residues, chains=[renamed[chain] for chain in predicted.residues.chains])
    predicted = replace(predicted, residues=residues)
    script = predicted.save(tmp_path / "a.cxc")
    _, drawn = of_chimerax(script)
    assert sorted(drawn) == expected(predicted) and {chain for _, *ends in drawn for chain, _ in ends} == set(names)
    pairs = re.findall(r"^pbond (#1.*@CA) (#1.*@CA) color", script.read_text(), re.MULTILINE)
    assert pairs and all(SPECIFIER.fullmatch(end) for pair in pairs for end in pair)


def test_a_relative_tells_of_contacts_and_never_of_mistakes(tmp_path: Path) -> None:
    sequence = random_sequence(0, 60)
    path = write_pdb(tmp_path / "x.pdb", {"A": sequence})
    own = map_of(path, noise=2.5)
    changed = "".join("A" if k % 2 and letter != "A" else letter for k, letter in enumerate(sequence))
    relative = replace(own, sequence=changed, labels=None, residues=None).on_structure(path)
    _, drawn = drawn_pairs(relative)
    _, of_own = drawn_pairs(own)
    assert not relative.residues.is_own and drawn["wrong"] == []
    there = {pair for pairs in drawn.values() for pair in pairs}
    assert set(drawn["right"]) == there & set(of_own["right"]) and drawn["predicted_only"]


def test_residues_without_coordinates_are_drawn_nowhere(tmp_path: Path, predicted: ContactMap) -> None:
    i = predicted.top(1)[0].i
    numbers = [number if k != i else "" for k, number in enumerate(predicted.residues.numbers)]
    partial = replace(predicted, residues=replace(predicted.residues, numbers=numbers))
    _, drawn = drawn_pairs(partial)
    assert sum(map(len, drawn.values())) == sum(i not in pair[:2] for pair in predicted.top())


def test_contact_numbers_become_b_factors(tmp_path: Path, predicted: ContactMap) -> None:
    far = np.abs(np.subtract.outer(np.arange(60), np.arange(60))) >= 6
    numbers = [predicted.probability[k][far[k]].sum() for k in range(60)]
    np.testing.assert_allclose(contact_numbers(predicted), numbers, rtol=1e-5)
    structure = PDBParser(QUIET=True).get_structure("", predicted.save(tmp_path / "b.pdb"))
    read = {f"{r.id[1]}{r.id[2].strip()}": {atom.bfactor for atom in r} for r in structure[0]["A"]}
    assert read.keys() == set(predicted.residues.numbers)
    for number, value in zip(predicted.residues.numbers, numbers, strict=True):
        assert read[number] == {round(float(value), 2)}


def test_every_residue_of_a_real_complex_gets_its_number(tmp_path: Path, shared: Path) -> None:
    path = min((shared / "pdb" / "train").glob("*.cif.gz"), key=lambda file: file.stat().st_size)
    predicted = map_of(path, joined=True)
    model = PDBParser(QUIET=True).get_structure("", predicted.save(tmp_path / "b.pdb"))[0]
    read = {(c.id.strip(), f"{r.id[1]}{r.id[2].strip()}"): r["CA"].bfactor for c in model for r in c if "CA" in r}
    residues, numbers = predicted.residues, contact_numbers(predicted)
    there = [at for at, number in enumerate(residues.numbers) if number and np.isfinite(residues.cb[at, 0])]
    assert len(there) > 50
    for at in there:
        assert read[residues.chains[at], residues.numbers[at]] == pytest.approx(float(numbers[at]), abs=0.006)


def test_between_chains_near_residues_count(tmp_path: Path) -> None:
    p = np.ones((4, 4))
    joined = ContactMap("x", "MKVL", p, how={"chain_lengths": [2, 2]})
    assert contact_numbers(joined).tolist() == [2, 2, 2, 2]


def test_what_cannot_be_written_is_said(tmp_path: Path, predicted: ContactMap) -> None:
    bare = replace(predicted, residues=None)
    for suffix in (".pml", ".cxc", ".pdb"):
        with pytest.raises(DataError, match="no structure is known to show the map on"):
            bare.save(tmp_path / f"x{suffix}")
    with pytest.raises(DataError, match="cannot name the file"):
        predicted.save(tmp_path / "x.cxc")  # both kinds of quotes
    gone = replace(predicted, residues=replace(predicted.residues, file=str(tmp_path / "gone.pdb")))
    with pytest.raises(StructureError, match="cannot be opened"):
        gone.save(tmp_path / "x.pdb")
    odd = replace(predicted, residues=replace(predicted.residues, file="/x.pdb", chains=['A"'] * 60))
    with pytest.raises(DataError, match="chain 'A\"'"):
        odd.save(tmp_path / "x.cxc")
    assert not list(tmp_path.glob("x.*"))


def test_pymol_runs_the_script(tmp_path: Path, predicted: ContactMap) -> None:
    program = shutil.which("pymol")
    if program is None:
        pytest.skip("PyMOL is not installed (Debian: pymol)")
    script = predicted.save(tmp_path / "a.pml")
    of_one = "len(cmd.get_session(name, partial=1)['names'][0][5][2][0][1]) // 6"  # two ends of three coordinates each
    count = f"print('objects', cmd.get_names(), 'dashes', [{of_one} for name in ('right', 'wrong')])"
    count = f"from pymol import cmd; {count}"
    (tmp_path / "count.py").write_text(count)
    # the system's Python runs it, not that of the tests
    quiet = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")} | {"PATH": "/usr/bin:/bin"}
    command = [program, "-cq", str(script), str(tmp_path / "count.py")]
    done = subprocess.run(command, capture_output=True, text=True, env=quiet, timeout=120, check=False)
    told = re.search(r"objects (\[.*?\]) dashes (\[.*?\])", done.stdout)
    assert told is not None, done.stdout + done.stderr
    _, drawn = drawn_pairs(predicted)
    assert {"right", "wrong"} < set(ast.literal_eval(told[1]))
    assert ast.literal_eval(told[2]) == [len(drawn["right"]), len(drawn["wrong"])]
    assert "Error" not in done.stdout
