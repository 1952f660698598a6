"""The way to MMseqs2 and back, with a script in the program's place."""

from __future__ import annotations

import stat
import sys
from pathlib import Path

import numpy as np
import pytest

from contactlm.homology.cluster import ClusterOptions, best_identity, cluster_sequences
from contactlm.types import DataError
from tests.homology.test_cluster import EXACT, families, partition

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
    options, sequences = ClusterOptions(program="mmseqs"), families(9)
    assert partition(cluster_sequences(sequences, options)) == partition(cluster_sequences(sequences, EXACT))
    np.testing.assert_allclose(
        best_identity(sequences[::2], sequences[1::2], options),
        best_identity(sequences[::2], sequences[1::2], EXACT),
        atol=0.05,  # of equally good alignments another one
    )
    assert cluster_sequences([], options).shape == (0,)


def test_mmseqs_that_fails_or_is_missing_is_a_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = ClusterOptions(program="mmseqs")
    with monkeypatch.context() as patch:
        patch.setenv("PATH", str(tmp_path))
        with pytest.raises(DataError, match="no program of that name is on the PATH"):
            cluster_sequences(["ACD", "CDE"], options)
    fake_mmseqs(tmp_path, monkeypatch, fails=True)
    with pytest.raises(DataError, match=r"(?s)mmseqs failed with exit status 1: .*out of luck"):
        cluster_sequences(["ACD", "CDE"], options)
