"""The synthetic proteins: real backbone geometry, reproducible files, and folders that are never mixed up."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from Bio.PDB import PDBParser
from Bio.PDB.vectors import Vector, calc_angle, calc_dihedral
from Bio.SeqUtils import seq1

from contactlm.data.synthetic import SyntheticOptions, nth_protein, write_synthetic
from contactlm.data.synthetic import write as synthetic
from contactlm.data.synthetic.fold import PAIR_OF, SyntheticProtein, backbone, c_beta, end_frame, synthetic_protein
from contactlm.structure.contacts import contact_map
from contactlm.structure.parse import read_chains
from contactlm.types import DataError


@pytest.fixture(scope="module")
def proteins() -> list[SyntheticProtein]:
    return [nth_protein(SyntheticOptions("unused", seed=3), "train", index) for index in range(25)]


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> SyntheticOptions:
    options = SyntheticOptions(str(tmp_path_factory.mktemp("set")), n_train=6, n_test=3)
    write_synthetic(options)
    return options


def _distance(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    return np.linalg.norm(one - other, axis=-1)


def _all_pairs(points: np.ndarray, separation: int) -> np.ndarray:
    """Distances of all pairs of points (L, 3) whose indices are at least ``separation`` apart."""
    i, j = np.triu_indices(len(points), separation)
    return _distance(points[i], points[j])


# -- the backbone builder --------------------------------------------------------------------------------------------


def test_torsions_and_angles_are_those_biopython_measures() -> None:
    rng = np.random.default_rng(0)
    phi, psi = rng.uniform(-179, 179, (2, 30))
    atoms = [[Vector(*xyz) for xyz in residue] for residue in backbone(phi, psi, omega=-172.0)]
    for i in range(1, 29):
        (n0, ca0, c0, o0), (n, ca, c, _), (n2, *_) = atoms[i - 1], atoms[i], atoms[i + 1]
        measured = [
            calc_dihedral(*four) for four in ((c0, n, ca, c), (n, ca, c, n2), (ca0, c0, n, ca), (n0, ca0, c0, o0))
        ]
        expected = [phi[i], psi[i], -172.0, psi[i - 1] - 180.0]
        turns = np.rad2deg(measured) - expected
        assert np.abs((turns + 180) % 360 - 180).max() < 1e-6
        angles = [calc_angle(*three) for three in ((n, ca, c), (ca0, c0, n), (c0, n, ca), (ca0, c0, o0))]
        np.testing.assert_allclose(np.rad2deg(angles), [111.0, 117.2, 121.7, 120.5], atol=1e-6)


def test_a_chain_built_in_two_blocks_is_the_chain_built_in_one() -> None:
    phi, psi = np.random.default_rng(1).uniform(-180, 180, (2, 5, 20))
    whole = backbone(phi, psi)
    head = backbone(phi[:, :8], psi[:, :8])
    tail = np.stack([backbone(phi[b, 8:], psi[b, 8:], end_frame(head[b]), psi[b, 7]) for b in range(5)])
    np.testing.assert_allclose(np.concatenate([head, tail], axis=1), whole, atol=1e-9)


# -- the proteins ----------------------------------------------------------------------------------------------------


def test_bonds_are_those_of_real_proteins(proteins: list[SyntheticProtein]) -> None:
    for protein in proteins:
        n, ca, c, o = (protein.coords[:, atom] for atom in range(4))
        for bond, ideal in ((_distance(n, ca), 1.458), (_distance(ca, c), 1.525), (_distance(c, o), 1.231)):
            np.testing.assert_allclose(bond, ideal, atol=1e-6)
        np.testing.assert_allclose(_distance(c[:-1], n[1:]), 1.329, atol=1e-6)  # the peptide bond
        np.testing.assert_allclose(_distance(ca[:-1], ca[1:]), 3.80, atol=0.03)  # trans throughout


def test_nothing_runs_into_anything(proteins: list[SyntheticProtein]) -> None:
    for protein in proteins:
        assert _all_pairs(protein.coords[:, 1], 2).min() > 3.8
        atoms = protein.coords.reshape(-1, 3)
        residue = np.repeat(np.arange(len(protein.coords)), 4)
        i, j = np.triu_indices(len(atoms), 1)
        apart = residue[j] - residue[i] >= 2
        assert _distance(atoms[i], atoms[j])[apart].min() > 2.5


def test_hairpins_have_the_distances_of_antiparallel_strands(proteins: list[SyntheticProtein]) -> None:
    bonded, between, hydrogen_bonds = [], [], []
    for protein in proteins:
        for first, stop in _segments(protein, "hairpin"):
            n, ca, _, o = (protein.coords[first:stop, atom] for atom in range(4))
            one = np.arange((stop - first) // 2 - 1)[::-1]  # from the turn outwards
            other = stop - first - 1 - one
            distances = _distance(ca[one], ca[other])
            bonded += distances[::2].tolist()
            between += distances[1::2].tolist()
            hydrogen_bonds += [*_distance(n[one], o[other])[::2], *_distance(o[one], n[other])[::2]]
    assert 5.2 < np.median(bonded) < 5.7
    assert 4.3 < np.median(between) < 4.8
    assert np.percentile(np.abs(np.subtract(bonded, 5.5)), 90) < 0.5
    assert np.percentile(np.abs(np.subtract(between, 4.5)), 90) < 0.5
    assert 2.8 < np.median(hydrogen_bonds) < 3.1


def test_helices_rise_1_5_angstrom_a_residue(proteins: list[SyntheticProtein]) -> None:
    helices = [protein.coords[a:b] for protein in proteins for a, b in _segments(protein, "helix")]
    assert helices
    for helix in helices:
        # the mean of four CA, about one turn, lies near the axis
        axis = np.stack([helix[k : k + 4, 1].mean(axis=0) for k in range(len(helix) - 3)])
        rise = _distance(axis[-1], axis[0]) / (len(axis) - 1)
        assert 1.4 < rise < 1.65
        assert 2.6 < np.median(_distance(helix[:-4, 3], helix[4:, 0])) < 3.4  # hydrogen bonds i, i+4


def test_the_sequence_tells_the_contacts(proteins: list[SyntheticProtein]) -> None:
    facing = [(p.sequence[i], p.sequence[j]) for p in proteins for i, j in p.facing]
    assert np.mean([PAIR_OF[a] == b for a, b in facing]) > 0.85
    own = far = 0
    for protein in proteins:
        i, j = np.nonzero(np.triu(contact_map(c_beta(protein.coords).astype(np.float32)) == 1, 6))
        far += len(i)
        # the strands run on for a pair or two into the linkers
        own += sum(
            int(((i >= a - 2) & (j < b + 2) & (np.abs(i + j - a - b + 1) <= 4)).sum())
            for a, b in _segments(protein, "hairpin")
        )
    assert far / sum(len(p.sequence) for p in proteins) > 0.5
    assert own / far > 0.75


def test_segments_cover_the_chain(proteins: list[SyntheticProtein]) -> None:
    for protein in proteins:
        assert 60 <= len(protein.sequence) <= 120
        assert len(protein.coords) == len(protein.sequence)
        assert protein.segments[0][1] == 0 and protein.segments[-1][2] == len(protein.sequence)
        assert all(a[2] == b[1] for a, b in zip(protein.segments, protein.segments[1:], strict=False))
        assert any(kind == "hairpin" for kind, *_ in protein.segments)


def _segments(protein: SyntheticProtein, kind: str) -> list[tuple[int, int]]:
    return [(first, stop) for found, first, stop in protein.segments if found == kind]


@pytest.mark.parametrize("length", [30, 31, 60, 200])
def test_any_length_from_30_can_be_drawn(length: int) -> None:
    assert len(synthetic_protein(np.random.default_rng(length), length).sequence) == length


def test_too_short_a_protein_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 30 residues, not 29"):
        synthetic_protein(np.random.default_rng(0), 29)


def test_a_protein_depends_on_seed_split_and_index_alone() -> None:
    base = nth_protein(SyntheticOptions("a"), "train", 5)
    np.random.seed(1)  # noqa: NPY002 - the global generator must not matter
    again = nth_protein(SyntheticOptions("b", n_train=7, n_test=1), "train", 5)
    assert again.sequence == base.sequence
    np.testing.assert_array_equal(again.coords, base.coords)
    others = [
        nth_protein(SyntheticOptions("a", seed=1), "train", 5),
        nth_protein(SyntheticOptions("a"), "test", 5),
        nth_protein(SyntheticOptions("a"), "train", 6),
    ]
    assert len({base.sequence, *(other.sequence for other in others)}) == 4


# -- the files -------------------------------------------------------------------------------------------------------


def test_biopython_reads_back_sequence_and_coordinates(options: SyntheticOptions) -> None:
    for split, count in (("train", 6), ("test", 3)):
        files = sorted((Path(options.folder) / split).iterdir())
        assert len(files) == count
        for index, path in enumerate(files):
            expected = nth_protein(options, split, index)
            structure = PDBParser(PERMISSIVE=False, QUIET=False).get_structure("s", path)
            residues = list(structure[0]["A"])
            assert "".join(seq1(residue.resname) for residue in residues) == expected.sequence
            read = np.array([[residue[name].coord for name in ("N", "CA", "C", "O")] for residue in residues])
            shift = read.mean(axis=(0, 1)) - expected.coords.mean(axis=(0, 1))
            np.testing.assert_allclose(read - shift, expected.coords, atol=2e-3)
            assert all(("CB" in residue) == (residue.resname != "GLY") for residue in residues)
            # our virtual C-beta, so 1.52 Å from CA and left-handed
            assert all(abs((r["CB"] - r["CA"]) - 1.522) < 2e-3 for r in residues if "CB" in r)


def test_the_package_reads_them_as_whole_chains_with_distinct_ids(options: SyntheticOptions) -> None:
    chains = {}
    for path in sorted(Path(options.folder).rglob("*.pdb")):
        (chain,) = read_chains(path)
        chains[chain.id] = chain
        expected = nth_protein(options, path.stem[:-5], int(path.stem[-5:]))
        assert chain.sequence == expected.sequence
        assert chain.resolved.all()
        np.testing.assert_allclose(
            _all_pairs(chain.cb.astype(float), 1), _all_pairs(c_beta(expected.coords), 1), atol=5e-3
        )
    assert len(chains) == 9
    assert len({chain.sequence for chain in chains.values()}) == 9


def test_every_file_says_that_it_is_synthetic(options: SyntheticOptions) -> None:
    for path in Path(options.folder).rglob("*.pdb"):
        lines = path.read_text().splitlines()
        assert {len(line) for line in lines} == {80}
        records = [line[:6].strip() for line in lines]
        assert records[0] == "HEADER" and records[-2:] == ["TER", "END"]
        assert any(line.startswith("REMARK") and "THIS STRUCTURE IS SYNTHETIC" in line for line in lines)


def test_a_complete_set_is_kept_and_an_incomplete_one_completed(tmp_path: Path) -> None:
    options = SyntheticOptions(str(tmp_path), n_train=3, n_test=2)
    train, test = write_synthetic(options)
    assert (train, test) == (tmp_path / "train", tmp_path / "test")
    files = sorted(path for path in tmp_path.rglob("*") if path.is_file())
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in files}
    write_synthetic(options)
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in files} == before

    (train / "train00001.pdb").unlink()
    (tmp_path / synthetic.MANIFEST).unlink()
    write_synthetic(options)
    assert sorted(path for path in tmp_path.rglob("*") if path.is_file()) == files
    assert {path: path.read_bytes() for path in files} == {path: content for path, (content, _) in before.items()}
    assert (train / "train00000.pdb").stat().st_mtime_ns == before[train / "train00000.pdb"][1]


def test_a_killed_run_leaves_no_half_file_and_no_manifest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = SyntheticOptions(str(tmp_path), n_train=3, n_test=2)
    drawn = iter((nth_protein(options, "train", 0), KeyboardInterrupt()))

    def interrupted(*_: object) -> SyntheticProtein:
        protein = next(drawn)
        if isinstance(protein, KeyboardInterrupt):
            raise protein
        return protein

    with monkeypatch.context() as patch:
        patch.setattr(synthetic, "nth_protein", interrupted)
        with pytest.raises(KeyboardInterrupt):
            write_synthetic(options)
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["train00000.pdb"]
    write_synthetic(options)
    assert len(list(tmp_path.rglob("*.pdb"))) == 5
    assert json.loads((tmp_path / synthetic.MANIFEST).read_text())["n_train"] == 3


@pytest.mark.parametrize("finished", [True, False])
def test_other_options_in_the_same_folder_are_refused(tmp_path: Path, finished: bool) -> None:
    write_synthetic(SyntheticOptions(str(tmp_path), n_train=2, n_test=1))
    if not finished:
        (tmp_path / synthetic.MANIFEST).unlink()
    with pytest.raises(DataError, match=r"other options.*another folder"):
        write_synthetic(SyntheticOptions(str(tmp_path), n_train=2, n_test=1, seed=1))


def test_a_structure_file_of_somebody_else_is_not_trained_on(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "1abc.cif.gz").write_bytes(b"")
    with pytest.raises(DataError, match=r"1abc\.cif\.gz is not one of the files"):
        write_synthetic(SyntheticOptions(str(tmp_path), n_train=2, n_test=1))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"min_length": 29}, "min_length is 29"),
        ({"kind": "bundle"}, r"kind is 'bundle'; .* tests/benchmarks/bundles\.py"),
        ({"min_length": 90, "max_length": 80}, "max_length 80"),
        ({"n_train": 0}, "n_train is 0; give 1 to 20000"),
        ({"n_test": 20_001}, "n_test is 20001"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_options_out_of_range_are_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        SyntheticOptions("folder", **values)
