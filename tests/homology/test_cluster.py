"""Clustering against a brute-force search with Biopython's aligner, and against the clusters of the real files."""

from __future__ import annotations

import csv
import logging
import math
import time
from dataclasses import replace
from itertools import combinations, islice
from pathlib import Path

import numpy as np
import pytest
from Bio.Align import PairwiseAligner, substitution_matrices

import contactlm.homology.cluster as cluster_module
from contactlm.homology.alignment import Aligner, WordIndex, raw_score
from contactlm.homology.cluster import ClusterOptions, best_identity, cluster_sequences
from contactlm.homology.relations import make_pool
from contactlm.structure.parse import read_chains
from contactlm.types import DataError
from tests.homology.pairs import related_pairs

AMINO_ACIDS = list("ARNDCQEGHILKMFPSTWYV")
EXACT = ClusterOptions(prefilter=False)
ORACLE = PairwiseAligner(
    mode="local",
    substitution_matrix=substitution_matrices.load("BLOSUM62"),
    open_gap_score=-11,
    extend_gap_score=-1,
)


def random_sequence(length: int, rng: np.random.Generator) -> str:
    return "".join(rng.choice(AMINO_ACIDS, length))


def mutate(sequence: str, identity: float, rng: np.random.Generator) -> str:
    """Exchange exactly so many residues that the share of ``identity`` is left; every new one differs from the old."""
    letters = list(sequence)
    for i in rng.permutation(len(letters))[: round((1 - identity) * len(letters))]:
        letters[i] = rng.choice([a for a in AMINO_ACIDS if a != letters[i]])
    return "".join(letters)


def families(seed: int) -> list[str]:
    rng = np.random.default_rng(seed)
    found = []
    for length in (45, 90, 140):
        ancestor = random_sequence(length, rng)
        relatives = [mutate(ancestor, identity, rng) for identity in (0.2, 0.25, 0.35, 0.5, 0.9)]
        at = length // 3
        spliced = relatives[3][:at] + random_sequence(4, rng) + relatives[3][at + 3 :]
        found += [ancestor, *relatives, spliced, ancestor[: length // 2], random_sequence(length, rng) + ancestor]
    return found


def oracle(a: str, b: str) -> list[tuple[float, float]]:
    """Identity and coverage of the best alignments (at most 200) of two sequences."""
    measured = []
    shorter = min(len(a), len(b))
    for alignment in islice(ORACLE.align(a, b), 200):
        rows = alignment[0], alignment[1]
        same = sum(x == y != "X" for x, y in zip(*rows, strict=True))
        spans = [len(row.replace("-", "")) for row, whole in zip(rows, (a, b), strict=True) if len(whole) == shorter]
        measured.append((same / len(rows[0]), max(spans) / shorter))
    return measured


def partition(clusters: np.ndarray) -> set[frozenset[int]]:
    return {frozenset(np.flatnonzero(clusters == c).tolist()) for c in set(clusters.tolist())}


@pytest.mark.parametrize("seed", range(3))
def test_related_pairs_are_those_of_a_brute_force_search(seed: int) -> None:
    sequences = families(seed)
    found = {(i, j): identity for i, j, identity in related_pairs(sequences, EXACT, threads=1)}
    decided = related = 0
    for i, j in combinations(range(len(sequences)), 2):
        best = oracle(sequences[i], sequences[j]) if ORACLE.score(sequences[i], sequences[j]) >= 66 else []
        verdicts = {identity >= 0.3 and coverage >= 0.8 for identity, coverage in best} or {False}
        if len(verdicts) == 1:  # otherwise equally good alignments disagree
            decided += 1
            related += ((i, j) in found) and verdicts == {True}
            assert ((i, j) in found) == verdicts.pop(), (sequences[i], sequences[j])
        if (i, j) in found and len(best) < 200:
            assert any(found[i, j] == pytest.approx(identity) for identity, _ in best)
    assert related >= 20
    assert decided > 0.98 * math.comb(len(sequences), 2)


def test_scores_are_those_of_biopython() -> None:
    sequences = families(7)
    scores = Aligner(sequences).scores(sequences[5], np.arange(len(sequences)))
    assert scores.tolist() == [ORACLE.score(sequences[5], sequence) for sequence in sequences]


def test_thirty_bits_are_a_score_of_66() -> None:
    # NCBI BLAST's table for BLOSUM62, 11, 1: lambda 0.267, K 0.041
    assert raw_score(30) == 66
    assert (0.267 * 66 - math.log(0.041)) / math.log(2) >= 30 > (0.267 * 65 - math.log(0.041)) / math.log(2)


@pytest.mark.parametrize(("identity", "same"), [(0.2, False), (0.25, False), (0.35, True), (0.5, True), (0.9, True)])
def test_known_identities(identity: float, same: bool) -> None:
    rng = np.random.default_rng(int(100 * identity))
    ancestors = [random_sequence(400, rng) for _ in range(8)]
    relatives = [mutate(ancestor, identity, rng) for ancestor in ancestors]
    clusters = cluster_sequences([*ancestors, *relatives], threads=1)
    joined = clusters[:8] == clusters[8:]
    assert joined.all() if same else not joined.any()
    if identity >= 0.5:  # of lower ones the aligner finds a part, or better alignments with gaps
        np.testing.assert_allclose(best_identity(relatives, ancestors, threads=1), identity, atol=0.02)


@pytest.mark.parametrize("prefilter", [True, False])
def test_the_order_of_the_sequences_does_not_matter(prefilter: bool) -> None:
    sequences = families(11)
    options = ClusterOptions(prefilter=prefilter)
    order = np.random.default_rng(0).permutation(len(sequences))
    clusters = cluster_sequences(sequences, options, threads=1)
    shuffled = cluster_sequences([sequences[i] for i in order], options, threads=2)
    assert {frozenset(order[list(c)].tolist()) for c in partition(shuffled)} == partition(clusters)
    pairs = set(related_pairs(sequences, options))
    turned = related_pairs([sequences[i] for i in order], options)
    assert {(*sorted((order[i], order[j])), identity) for i, j, identity in turned} == pairs
    assert list(dict.fromkeys(clusters.tolist())) == list(range(clusters.max() + 1))  # order of first appearance


@pytest.mark.parametrize("prefilter", [True, False])
def test_best_identity_is_symmetric_and_agrees_with_the_pairs(prefilter: bool) -> None:
    options = ClusterOptions(prefilter=prefilter)
    sequences = families(5)
    queries, targets = sequences[::2], sequences[1::2]
    there = [best_identity([a], [b], options, 1)[0] for a in queries[:6] for b in targets]
    back = [best_identity([b], [a], options, 1)[0] for a in queries[:6] for b in targets]
    assert there == back
    assert max(there) > 0.3
    pairs = {pair[:2]: pair[2] for pair in related_pairs([*queries, *targets], options)}
    expected = [
        max((pairs.get((i, len(queries) + j), 0.0) for j in range(len(targets))), default=0.0)
        for i in range(len(queries))
    ]
    np.testing.assert_allclose(best_identity(queries, targets, options), expected, rtol=1e-6)
    np.testing.assert_array_equal(
        best_identity(queries, queries + targets[:2], options), np.ones(len(queries), np.float32)
    )


@pytest.mark.parametrize("seed", range(3))
def test_single_linkage_joins_relatives_of_relatives(seed: int) -> None:
    rng = np.random.default_rng(seed)
    chain = [random_sequence(200, rng)]
    while len(chain) < 6:  # neighbours share 60 %, the ends next to nothing
        chain.append(mutate(chain[-1], 0.6, rng))
    others = [random_sequence(200, rng) for _ in range(5)]
    assert len({*cluster_sequences(chain, threads=1).tolist()}) == 1
    assert cluster_sequences([chain[0], chain[-1]], threads=1).tolist() == [0, 1]
    assert cluster_sequences([*others, *chain], threads=1).tolist() == [0, 1, 2, 3, 4] + [5] * 6


def test_clusters_are_the_components_of_the_pairs() -> None:
    sequences = families(2) + families(3)
    clusters = cluster_sequences(sequences, threads=1)
    reached = {i: {i} for i in range(len(sequences))}
    for i, j, _ in related_pairs(sequences):
        union = reached[i] | reached[j]
        reached.update(dict.fromkeys(union, union))
    assert partition(clusters) == {frozenset(members) for members in reached.values()}


def test_identical_sequences_share_a_cluster_without_an_alignment(monkeypatch: pytest.MonkeyPatch) -> None:
    score, aligned = Aligner.scores, []
    monkeypatch.setattr(Aligner, "scores", lambda *args: aligned.extend(args[2].tolist()) or score(*args))
    assert cluster_sequences(["AC", "AC", "AC"], EXACT).tolist() == [0, 0, 0]  # too short for 30 bits, but identical
    assert aligned == []
    assert cluster_sequences(["AC", "AC", "AD"], EXACT).tolist() == [0, 0, 1]
    assert len(aligned) == 1


def test_odd_inputs() -> None:
    assert cluster_sequences([]).shape == (0,)
    assert cluster_sequences([]).dtype == np.int64
    assert related_pairs([]) == []
    assert best_identity([], ["ACD"]).shape == (0,)
    assert best_identity(["ACD"], []).tolist() == [0]
    assert cluster_sequences(["MKV"]).tolist() == [0]
    unknown = ["X" * 100, "X" * 100, "X" * 90, "", "A", random_sequence(100, np.random.default_rng(0))]
    for options in (EXACT, ClusterOptions()):
        assert cluster_sequences(unknown, options, threads=1).tolist() == [0, 0, 1, 2, 3, 4]
    with pytest.raises(DataError, match=r"sequence 2, position 3: '1' cannot be aligned"):
        cluster_sequences(["ACD", "AC1"])


def test_unknown_residues_count_as_mismatches() -> None:
    whole = random_sequence(100, np.random.default_rng(3))
    hidden = whole[:40] + "X" * 20 + whole[60:]
    assert best_identity([hidden], [whole], EXACT)[0] == pytest.approx(0.8)
    other = hidden[:-1] + ("A" if hidden[-1] != "A" else "C")
    assert best_identity([hidden], [other], EXACT)[0] == pytest.approx(0.8, abs=0.011)
    inserted = hidden[:20] + "WWW" + hidden[20:]  # positions after a gap are counted right on either side
    assert best_identity([hidden], [inserted], EXACT)[0] == pytest.approx(80 / 103, abs=0.011)
    assert best_identity([inserted], [hidden], EXACT)[0] == pytest.approx(80 / 103, abs=0.011)


def test_selenocysteine_is_aligned() -> None:
    sequence = random_sequence(120, np.random.default_rng(4)).replace("C", "U") + "UOBZ"
    assert best_identity([sequence], [sequence[:-1] + "E"], EXACT)[0] > 0.98


def test_coverage_is_that_of_the_shorter() -> None:
    rng = np.random.default_rng(8)
    domain = random_sequence(120, rng)
    long, tail = random_sequence(200, rng) + domain, domain + random_sequence(60, rng)
    assert best_identity([domain], [long], EXACT)[0] == 1.0
    assert best_identity([tail], [long], EXACT)[0] == 0.0  # 120 of 180 residues
    assert best_identity([tail], [long], replace(EXACT, coverage=0.6))[0] > 0.9
    assert best_identity([domain], [mutate(domain, 0.5, rng)], replace(EXACT, identity=0.7))[0] == 0.0


@pytest.mark.parametrize("values", [{"identity": 30.0}, {"coverage": -0.1}, {"bits": float("nan")}, {"program": "x"}])
def test_options_out_of_range_are_errors(values: dict[str, float]) -> None:
    with pytest.raises(DataError, match=f"{next(iter(values))} is .*must be"):
        ClusterOptions(**values)


def test_the_prefilter_loses_little_and_saves_work() -> None:
    rng = np.random.default_rng(12)
    lengths = rng.integers(60, 400, 150)
    ancestors = [random_sequence(length, rng) for length in lengths]
    relatives = [mutate(ancestor, 0.35, rng) for ancestor in ancestors]
    index = WordIndex([*ancestors, *relatives])
    found = [index.candidates(i) for i in range(len(ancestors))]
    assert np.mean([len(ancestors) + i in partners for i, partners in enumerate(found)]) >= 0.97
    long = [len(partners) for partners, length in zip(found, lengths, strict=True) if length >= 150]
    assert np.mean(long) < 0.3 * 2 * len(ancestors)


def test_the_prefilter_is_symmetric() -> None:
    pool = make_pool(families(21) + families(22))
    index = WordIndex(pool)
    passed = np.zeros((len(pool), len(pool)), dtype=bool)
    for i in range(len(pool)):
        passed[i, index.candidates(i)] = True
        np.testing.assert_array_equal(index.candidates(i, i + 1), np.flatnonzero(passed[i])[passed[i].cumsum()[i] :])
    np.testing.assert_array_equal(passed, passed.T)
    assert 0.1 < passed.mean() < 0.999


def test_the_cache_is_keyed_by_content_and_survives_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    sequences = families(1)
    first = cluster_sequences(sequences, EXACT, tmp_path, threads=1)
    (entry,) = (tmp_path / "clusters").iterdir()
    search, calls = cluster_module.find_relations, []
    monkeypatch.setattr(cluster_module, "find_relations", lambda *args: calls.append(1) or search(*args))

    def again(what: list[str], options: ClusterOptions = EXACT) -> tuple[np.ndarray, int]:
        calls.clear()
        return cluster_sequences(what, options, tmp_path, threads=1), len(calls)

    clusters, searched = again(sequences)
    np.testing.assert_array_equal(clusters, first)
    assert searched == 0
    turned, searched = again([*sequences[::-1], sequences[0]])  # the same distinct sequences
    assert partition(turned[::-1][1:]) == partition(first) and searched == 0
    assert again(sequences[1:])[1] == 1
    assert again(sequences, replace(EXACT, identity=0.4))[1] == 1
    good = entry.read_bytes()
    damaged = bytearray(good)
    damaged[20] ^= 1
    for bad in (bytes(damaged), good[:-3], b""):
        entry.write_bytes(bad)
        with caplog.at_level(logging.WARNING):
            clusters, searched = again(sequences)
        np.testing.assert_array_equal(clusters, first)
        assert searched == 1 and "damaged" in caplog.text
        assert entry.read_bytes() == good
        caplog.clear()


def test_a_cache_that_cannot_be_written_is_no_error(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").touch()
    with caplog.at_level(logging.WARNING):
        assert cluster_sequences(["AC", "AC"], cache_dir=tmp_path / "file").tolist() == [0, 0]
    assert "cannot be kept" in caplog.text


def real_chains(shared: Path, split: str, *rules: str) -> dict[tuple[str, str], set[str]]:
    """Sequences of the chains of a folder, by path in the manifest and author chain id."""
    chains: dict[tuple[str, str], set[str]] = {}
    for path in sorted((shared / "pdb" / split).iterdir()):
        for rule in rules:
            for chain in read_chains(path, sequence=rule):
                name = chain.id.rsplit("_", 1)[1] or "_"
                chains.setdefault((f"{split}/{path.name}", name), set()).add(chain.sequence)
    return chains


@pytest.mark.slow
def test_real_clusters_agree_and_the_test_set_is_clean(shared: Path) -> None:
    rules = ("seqres", "observed")
    train, test = (real_chains(shared, split, *rules) for split in ("train", "test"))
    bridges = real_chains(shared, "homologs", *rules)  # the manifest's clusters hold chains beyond the training set
    with (shared / "pdb" / "MANIFEST.csv").open(newline="") as handle:
        rows = {row["path"]: row["clusters"].split(";") for row in csv.DictReader(handle) if row["split"] == "train"}
    theirs = {
        (path, chain): set(names.split("+"))
        for path, clusters in rows.items()
        for chain, names in (cluster.rsplit(":", 1) for cluster in clusters if cluster)
    }
    members = [(key, sequence) for group in (train, bridges) for key, found in group.items() for sequence in found]
    ours: dict[tuple[str, str], set[int]] = {}
    for (key, _), number in zip(members, cluster_sequences([s for _, s in members]).tolist(), strict=True):
        ours.setdefault(key, set()).add(number)
    both = [key for key in train if key in theirs]
    table = np.zeros((2, 2), dtype=int)
    for a, b in combinations(both, 2):
        table[int(bool(theirs[a] & theirs[b])), int(bool(ours[a] & ours[b]))] += 1
    # they differ where another program picks another of equally good alignments, or where a missing chain links two
    assert table[1, 1] >= 355 and table[1, 0] <= 5 and table[0, 1] <= 3, table.tolist()
    query, target = (sorted({s for found in group.values() for s in found if len(s) >= 40}) for group in (test, train))
    assert not best_identity(query, target, EXACT).any()
    assert best_identity(query[:1], [*target, query[0]], EXACT).tolist() == [1]  # a leak would be seen


@pytest.mark.slow
def test_a_thousand_chains_take_seconds() -> None:
    rng = np.random.default_rng(0)
    sequences = [random_sequence(length, rng) for length in rng.integers(50, 250, 1000)]
    start = time.process_time()
    clusters = cluster_sequences(sequences, threads=1)
    assert len(set(clusters.tolist())) == 1000
    assert time.process_time() - start < 30  # takes 2 s
