"""Real structure files: sequences and contact maps that gemmi gives, and the unusual files one by one."""

from __future__ import annotations

import csv
import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from contactlm.alphabet import encode
from contactlm.structure.contacts import contact_labels, contact_map
from contactlm.structure.parse import read_chains
from contactlm.types import Chain, StructureError

REFERENCE = Path(__file__).resolve().parents[3] / "shared" / "pdb" / "reference.json"
FILES = json.loads(REFERENCE.read_text())["files"] if REFERENCE.is_file() else {}
PAIRS = ["1A8O", "1LCD", "1aki", "1igy", "1l2y", "1o1z"]


def by_chain(path: Path, sequence: str = "seqres") -> dict[str, Chain]:
    return {chain.id.removeprefix(path.name.split(".")[0] + "_"): chain for chain in read_chains(path, sequence)}


def packed(labels: np.ndarray) -> str:
    return hashlib.sha256(np.packbits(labels[np.triu_indices(len(labels), 1)] == 1).tobytes()).hexdigest()


@pytest.mark.parametrize("name", FILES)
def test_sequences_and_contacts_are_those_of_gemmi(shared, name):
    """The reference uses residues with N, CA and C only; here those without take the CA as C-beta."""
    path = shared / "pdb" / name
    observed, full = by_chain(path, "observed"), by_chain(path)
    expected = FILES[name]["chains"]
    assert list(observed) == list(full) == list(expected)
    for key, chain in observed.items():
        complete = (chain.cb != chain.ca).any(axis=1)
        assert "".join(np.array(list(chain.sequence))[complete]) == expected[key]["observed_sequence"]
        assert packed(contact_map(chain.cb[complete])) == expected[key]["built_cb"]["sha256"]
        assert full[key].sequence == (expected[key]["seqres"] or full[key].sequence)
        assert np.array_equal(full[key].cb[full[key].resolved], chain.cb)
        assert "".join(np.array(list(full[key].sequence))[full[key].resolved]) == chain.sequence


@pytest.mark.parametrize("name", PAIRS)
def test_both_formats_of_an_entry_give_the_same_chains(shared, name):
    edge = shared / "pdb" / "edge"
    from_pdb, from_cif = (by_chain(edge / f"{name}{suffix}") for suffix in (".pdb", ".cif"))
    assert list(from_pdb) == list(from_cif)
    for key, chain in from_pdb.items():
        assert chain.sequence == from_cif[key].sequence
        assert np.array_equal(chain.resolved, from_cif[key].resolved)
        assert np.allclose(chain.cb, from_cif[key].cb, atol=5e-5, equal_nan=True)
        assert np.array_equal(contact_map(chain.cb), contact_map(from_cif[key].cb))


# Files where this reader knows better than the manifest's counts, or the counts mean something else.
UNRESOLVED = {"made_inf_coords.pdb": 75, "made_nan_coords.pdb": 72, "made_star_coords.pdb": 72}  # of 76
REFUSED = {
    "1SSU_mod.pdb": "no amino acid with a C-alpha",
    "1SSU_mod.cif": "no amino acid with a C-alpha",
    "made_overlong_coords.pdb": "line 321: no coordinates",
    "made_zero_coords.pdb": "no amino acid with a C-alpha",
}
OTHERWISE = {  # chains of one id are one chain in the manifest, and it has none of BinaryCIF
    "made_two_chains_same_id.pdb": {"A-1": 76, "A-2": 76},
    "1gbt.bcif.gz": {"A": 223},
}
LINKED = {"2SNI_r_u.pdb.gz": 275}  # SOC 221, a selenocysteine derivative that gemmi's table does not know


@pytest.mark.slow
def test_every_chain_has_the_residues_of_the_manifest(shared):
    with (shared / "pdb" / "MANIFEST.csv").open() as handle:
        rows = list(csv.DictReader(handle))
    wrong, seen = [], 0
    for row in rows:
        name = Path(row["path"]).name
        counts = dict(part.rsplit(":", 1) for part in row["chains"].split(";") if part)
        expected = {key.replace("_", ""): int(count) for key, count in counts.items()}
        if name in UNRESOLVED | LINKED:
            expected = {"A": (UNRESOLVED | LINKED)[name]}
        expected = OTHERWISE.get(name, expected)
        try:
            chains = by_chain(shared / "pdb" / row["path"], "observed")
            lengths = {key: len(chain) for key, chain in chains.items()}
        except StructureError:
            lengths = {}
        # The manifest also counts residues without CA.
        missing = sum(expected.values()) - sum(lengths.values())
        without_ca = int(row["n_without_backbone"] or 0)
        fits = set(lengths) == set(expected) and 0 <= missing <= without_ca
        if not fits and not (name in REFUSED and not lengths):
            wrong.append((row["path"], lengths, expected))
        seen += len(lengths)
    assert wrong == []
    assert seen > 700


@pytest.mark.parametrize("name", REFUSED)
def test_refused_files(shared, name):
    with pytest.raises(StructureError, match=REFUSED[name]):
        read_chains(shared / "pdb" / "edge" / name)


def test_all_unusual_files_give_chains_or_a_reason(shared, recwarn, capfd):
    outcomes = {"chains": 0, "refused": 0}
    for path in sorted((shared / "pdb" / "edge").iterdir()):
        for sequence in ("seqres", "observed"):
            try:
                chains = read_chains(path, sequence)
            except StructureError as error:
                assert str(error).startswith(f"{path}: ")
                outcomes["refused"] += 1
                continue
            outcomes["chains"] += 1
            for chain in chains:
                assert len(encode(chain.sequence)) == len(chain) > 0
                assert chain.resolved.any()
                assert np.array_equal(chain.resolved, np.isfinite(chain.cb).all(axis=1))
                assert np.array_equal(chain.resolved, np.isfinite(chain.ca).all(axis=1))
    assert outcomes["chains"] > 100
    assert outcomes["refused"] > 30
    assert len(recwarn) == 0
    assert capfd.readouterr() == ("", "")


UBIQUITIN = "MQIFVKTLTGKTITLEVEPSDTIENVKAKIQDKEGIPPDQQRLIFAGKQLEDGRTLSDYNIQKESTLHLVLRLRGG"


@pytest.mark.parametrize(
    ("name", "sequence", "unresolved"),
    [
        ("made_gap.pdb", UBIQUITIN, range(32, 42)),
        ("made_gap_no_seqres.pdb", UBIQUITIN[:32] + "X" * 10 + UBIQUITIN[42:], range(32, 42)),
        ("made_icode.pdb", UBIQUITIN, ()),
        ("made_negative_numbers.pdb", UBIQUITIN, ()),
        ("made_numbers_repeat_backwards.pdb", UBIQUITIN, ()),
        ("made_ter_inside_chain.pdb", UBIQUITIN, ()),
        ("made_free_amino_acid.pdb", UBIQUITIN, ()),
        ("made_altloc_no_blank.pdb", UBIQUITIN, ()),
        ("made_ca_only.pdb", UBIQUITIN, ()),
        ("made_crlf.pdb", UBIQUITIN, ()),
        ("made_latin1.pdb", UBIQUITIN, ()),
        ("made_long_chain_id.cif", UBIQUITIN, ()),
        ("made_missing_backbone.pdb", UBIQUITIN, (19, 39)),
        ("made_nan_coords.pdb", UBIQUITIN, range(25, 29)),
        ("made_inf_coords.pdb", UBIQUITIN, [25]),
        ("made_unknown_residue.pdb", UBIQUITIN[:19] + "XXXXX" + UBIQUITIN[24:], ()),
        ("made_models_differ.pdb", UBIQUITIN[:60], ()),
        ("2n0n_M1.pdb", None, ()),
    ],
)
def test_unusual_files(shared, name, sequence, unresolved):
    (chain,) = read_chains(shared / "pdb" / "edge" / name)
    assert chain.sequence == (sequence or chain.sequence)
    assert np.flatnonzero(~chain.resolved).tolist() == list(unresolved)


def test_residues_out_of_file_order_return_to_their_places(shared):
    """Five MSE stand at the end of the file; in the chain every residue is bonded to the next but at known gaps."""
    (chain,) = read_chains(shared / "pdb" / "edge" / "1FQJ_l_u.pdb")
    assert chain.sequence.count("M") == 5
    assert not chain.sequence.endswith("M")
    steps = np.linalg.norm(np.diff(chain.ca, axis=0), axis=1)
    assert (steps < 4.2).sum() >= len(chain) - 3


def test_labels_of_a_batch_are_the_maps_of_its_chains(shared):
    paths = sorted((shared / "pdb" / "test").iterdir())[:12]
    chains = [chain for path in paths for chain in read_chains(path)]
    cb = torch.full((len(chains), max(map(len, chains)), 3), torch.nan)
    for row, chain in zip(cb, chains, strict=True):
        row[: len(chain)] = torch.from_numpy(chain.cb)
    labels = contact_labels(cb).numpy()
    assert (labels == 1).sum() > 1000
    for row, chain in zip(labels, chains, strict=True):
        L = len(chain)
        assert np.array_equal(row[:L, :L], contact_map(chain.cb))
        assert (row[L:] == -1).all()
        assert (row[:, L:] == -1).all()
