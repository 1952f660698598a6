"""Restraints for other programs, read back by the tools' own parsers where these are light, else by their grammar."""

from __future__ import annotations

import csv
import gzip
import json
import re
from pathlib import Path

import numpy as np
import pytest
import yaml
from Bio import SeqIO

from contactlm.cli.main import main
from contactlm.maps.contact_map import ContactMap
from contactlm.maps.restraints import (
    RESTRAINTS,
    TOOLS,
    Restraint,
    RestraintOptions,
    chosen_pairs,
    haddock_numbers,
    write_restraints,
)
from contactlm.structure.numbered import find_residues
from contactlm.structure.parse import read_chains
from contactlm.types import ContactLMError, DataError
from tests.conftest import random_sequence

LENGTHS = [30, 21, 30]
COPY = random_sequence(5, 30)
SEQUENCE = COPY + random_sequence(6, 21) + COPY


def made(seed: int = 0, lengths: list[int] = LENGTHS, sequence: str = SEQUENCE) -> ContactMap:
    p = np.random.default_rng(seed).random((len(sequence),) * 2).astype(np.float32) ** 4
    return ContactMap("a complex", sequence, (p + p.T) / 2, how={"chain_lengths": lengths})


def written(contact_map: ContactMap, ending: str, tmp_path: Path, options: RestraintOptions | None = None) -> str:
    path = tmp_path / f"x{ending}"
    write_restraints(contact_map, path, ending, options)
    return path.read_text()


def place(i: int) -> tuple[str, int]:
    """Chain and number in it of a residue of ``made()``."""
    return ("A", i + 1) if i < 30 else ("B", i - 29) if i < 51 else ("C", i - 50)


def test_pairs_are_the_most_probable_that_may_be_listed() -> None:
    contact_map = made()
    options = RestraintOptions(top=0.5, min_separation=9, min_probability=0.2)
    chosen = chosen_pairs(contact_map, options)
    chain = np.repeat([0, 1, 2], LENGTHS)
    every = sorted(
        (-contact_map.probability[i, j], i, j)
        for i in range(81)
        for j in range(i + 1, 81)
        if contact_map.probability[i, j] >= 0.2 and (chain[i] != chain[j] or j - i >= 9)
    )
    assert [(each.i, each.j) for each in chosen] == [(i, j) for _, i, j in every[:41]]
    assert all(chain[each.i] != chain[each.j] for each in chosen_pairs(contact_map, options, only_inter=True))
    assert {(each.lower, each.upper) for each in chosen} == {(0.0, 8.0)}
    contact_map.distance = np.full((81, 81), 7.5, np.float32)  # type: ignore[attr-defined]
    assert {(each.lower, each.upper) for each in chosen_pairs(contact_map, options)} == {(5.5, 9.5)}
    with pytest.raises(DataError, match=r"lower restraints\.min_probability"):
        chosen_pairs(contact_map, RestraintOptions(min_probability=1.0))
    with pytest.raises(ContactLMError, match=r"restraints.top: 0 given"):
        RestraintOptions(top=0)


def chosen_places(only_inter: bool) -> list[tuple[tuple[str, int], tuple[str, int], Restraint]]:
    return [(place(e.i), place(e.j), e) for e in chosen_pairs(made(), RestraintOptions(), only_inter)]


def test_boltz(tmp_path: Path) -> None:
    content = yaml.safe_load(written(made(), ".boltz.yaml", tmp_path))
    assert content["version"] == 1
    proteins = [entry["protein"] for entry in content["sequences"]]
    assert proteins == [{"id": ["A", "C"], "sequence": COPY}, {"id": ["B"], "sequence": SEQUENCE[30:51]}]
    contacts = [entry["contact"] for entry in content["constraints"]]
    assert [(tuple(c["token1"]), tuple(c["token2"])) for c in contacts] == [(a, b) for a, b, _ in chosen_places(False)]
    assert all(4 <= contact["max_distance"] <= 20 for contact in contacts)


def test_chai(tmp_path: Path) -> None:
    written(made(), ".chai.fasta", tmp_path)
    records = list(SeqIO.parse(tmp_path / "x.chai.fasta", "fasta"))
    assert [str(record.seq) for record in records] == [COPY, SEQUENCE[30:51], COPY]
    assert all(record.id.startswith("protein|") for record in records) and len({r.id for r in records}) == 3
    rows = list(csv.DictReader(written(made(), ".chai.restraints", tmp_path).splitlines()))
    sequences = {letter: str(record.seq) for letter, record in zip("ABC", records, strict=True)}
    assert len({row["restraint_id"] for row in rows}) == len(rows)
    for row, (first, second, each) in zip(rows, chosen_places(True), strict=True):
        for side, (chain, number) in zip("AB", (first, second), strict=True):
            assert row[f"chain{side}"] == chain and row[f"res_idx{side}"] == f"{sequences[chain][number - 1]}{number}"
        assert row["chainA"] != row["chainB"] and row["connection_type"] == "contact"
        assert 0 <= float(row["min_distance_angstrom"]) < float(row["max_distance_angstrom"])
        assert float(row["confidence"]) == pytest.approx(each.probability, abs=1e-4)


def test_protenix(tmp_path: Path) -> None:
    (job,) = json.loads(written(made(), ".protenix.json", tmp_path))
    chains = [entry["proteinChain"] for entry in job["sequences"]]
    assert [(each["sequence"], each["count"]) for each in chains] == [(COPY, 2), (SEQUENCE[30:51], 1)]
    ids = {(e, c): each["id"][c - 1] for e, each in enumerate(chains, 1) for c in range(1, each["count"] + 1)}
    for contact, (first, second, _) in zip(job["constraint"]["contact"], chosen_places(True), strict=True):
        ends = [(ids[contact[f"entity{k}"], contact[f"copy{k}"]], contact[f"position{k}"]) for k in (1, 2)]
        assert ends == [first, second] and ends[0][0] != ends[1][0]
        for k in (1, 2):
            letter = chains[contact[f"entity{k}"] - 1]["sequence"][contact[f"position{k}"] - 1]
            assert contact[f"atom{k}"] == ("CA" if letter == "G" else "CB")
        assert contact["max_distance"] >= contact["min_distance"]


TERM = r"\(resid (\d+) and name (C[AB]) and segid (\w+)\)"


def test_haddock(tmp_path: Path) -> None:
    lines = written(made(), ".unambig.tbl", tmp_path).splitlines()
    for line, (first, second, _) in zip(lines, chosen_places(True), strict=True):
        found = re.fullmatch(rf"assign {TERM} {TERM} ([\d.]+) ([\d.]+) ([\d.]+)", line)
        assert found is not None
        assert ((found[3], int(found[1])), (found[6], int(found[4]))) == (first, second)
        d, minus, plus = map(float, found.groups()[6:])
        assert (d - minus, d + plus) == (0.0, 8.0)
    text = written(made(), ".ambig.tbl", tmp_path)
    assert text.count("(") == text.count(")")
    blocks = re.findall(r"assign \(resid (\d+) and segid (\w)\)\n\s+\(\n(.*?)\n\s+\) 2\.0 2\.0 0\.0", text, re.S)
    expected = set()
    p, chain = made().probability, np.repeat([0, 1, 2], LENGTHS)
    for i, j in np.argwhere((p > 0.3) & (chain[:, None] != chain)):
        expected.add((place(i), place(j)[0]))
    got = set()
    for number, own, partners in blocks:
        found = re.findall(r"\(resid (\d+) and segid (\w)\)", partners)
        assert partners.count(" or") == len(found) - 1 and len({segid for _, segid in found}) == 1
        got.add(((own, int(number)), found[0][1]))
    assert got == expected


def test_rosetta_and_pairs(tmp_path: Path) -> None:
    for line, each in zip(
        written(made(), ".cst", tmp_path).splitlines(), chosen_pairs(made(), RestraintOptions()), strict=True
    ):
        kind, atom_i, i, atom_j, j, function, lower, upper, sd, rswitch, tag = line.split()
        assert (kind, function, rswitch, tag) == ("AtomPair", "BOUNDED", "0.5", "contact") and float(sd) > 0
        assert (int(i) - 1, int(j) - 1, float(lower), float(upper)) == (each.i, each.j, 0.0, 8.0)
        assert [atom_i, atom_j] == ["CA" if SEQUENCE[k] == "G" else "CB" for k in (each.i, each.j)]
    content = json.loads(written(made(), ".pairs.json", tmp_path))
    assert content["sequences"] == {"A": COPY, "B": SEQUENCE[30:51], "C": COPY} and content["one_indexed"] is False
    places = [[a, m - 1, b, n - 1] for (a, m), (b, n), _ in chosen_places(False)]
    assert content["pairs"] == places and len(content["probability"]) == len(places)
    single = json.loads(written(made(1, [81]), ".pairs.json", tmp_path))
    assert all(len(pair) == 2 and pair[1] - pair[0] >= 6 for pair in single["pairs"])
    assert list(single["sequences"]) == ["A"]


def test_what_no_program_knows_becomes_x(tmp_path: Path) -> None:
    odd = made(sequence="UOBZ" + SEQUENCE[4:])
    assert yaml.safe_load(written(odd, ".boltz.yaml", tmp_path))["sequences"][0]["protein"]["sequence"][:5] == (
        "XXXX" + SEQUENCE[4]
    )


def test_a_program_that_takes_contacts_between_chains_wants_some(tmp_path: Path) -> None:
    for ending in (".chai.restraints", ".protenix.json", ".unambig.tbl", ".ambig.tbl"):
        with pytest.raises(DataError, match="no pair between chains"):
            written(made(1, [81]), ending, tmp_path)


ANTIBODIES = Path(__file__).resolve().parents[3] / "shared" / "antibodies"


@pytest.mark.skipif(not ANTIBODIES.is_dir(), reason="needs the antibodies")
def test_insertion_codes_and_missing_residues_are_numbered_as_haddock_does(tmp_path: Path) -> None:
    fixinsert = pytest.importorskip("pdbtools.pdb_fixinsert")  # what HADDOCK3 runs over its input
    inserted = 0
    for path in sorted((ANTIBODIES / "train").glob("*.pdb.gz"))[:60]:
        text = gzip.decompress(path.read_bytes()).decode()
        lines = [line for line in text.splitlines(True) if line.startswith("ATOM") and line[22:26].strip() != "20"]
        cut = tmp_path / path.name.removesuffix(".gz")
        cut.write_text("".join(lines))
        chain = read_chains(cut)[0]
        p = np.zeros((len(chain),) * 2, np.float32)
        residues = find_residues(cut, chain.sequence)
        got = haddock_numbers(ContactMap("x", chain.sequence, p, residues=residues))
        fixed = list(fixinsert.run(lines, []))
        expected = [int(line[22:26]) for line in fixed if line.startswith("ATOM") and line[12:16] == " CA "]
        expected = list(dict.fromkeys(expected))
        assert [number for number in got if number is not None] == expected, path
        inserted += sum(not number.lstrip("-").isdigit() for number in residues.numbers if number)
    assert inserted > 20


def test_formats_on_the_command_line(tmp_path: Path, tiny_esm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in.fasta").write_text(f">two\n{COPY}:{SEQUENCE[30:51]}\n>one\n{COPY}\n")
    command = ["predict", f"--model.pretrained={tiny_esm}", f"--data.predict_paths=[{tmp_path / 'in.fasta'}]"]
    command += ["--out=o", "--trainer.accelerator=cpu", "--restraints.min_probability=0.01", "--restraints.top=0.5"]
    assert main([*command, f"--formats=[npz,{','.join(TOOLS)}]"]) == 0
    there = {path.name for path in (tmp_path / "o").iterdir()}
    assert {f"two{ending}" for ending in RESTRAINTS} <= there
    assert {"one.boltz.yaml", "one.cst", "one.pairs.json"} <= there and "one.unambig.tbl" not in there
    assert len(yaml.safe_load((tmp_path / "o" / "two.boltz.yaml").read_text())["constraints"]) == 26
    rows = {row["id"]: row for row in csv.DictReader((tmp_path / "o" / "summary.csv").open())}
    assert "haddock" in rows["two"]["formats"].split() and "haddock" not in rows["one"]["formats"].split()
    assert "two.unambig.tbl" in (tmp_path / "o" / "index.html").read_text()
    assert ContactMap.load(tmp_path / "o" / "two.npz").save("again/two.cst").is_file()
