"""The search: what is found, how it aligns, and what is kept on disk."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from Bio.Align import PairwiseAligner, substitution_matrices

from contactlm.retrieval import search as search_module
from contactlm.retrieval.exclude import Exclusion
from contactlm.retrieval.hits import Hit, align
from contactlm.retrieval.search import Found, Phmmer, StructureSearch
from contactlm.types import DataError
from tests.conftest import random_sequence
from tests.retrieval.made import QUERY, made_database, mutated

RELATIVES = {f"{i}rel_A": mutated(QUERY, 0.1 * i, seed=i) for i in (1, 3, 5, 6)}
OTHERS = {f"{i}oth_A": random_sequence(100 + i, 120 + i) for i in range(1, 10)}


def made_search(tmp_path: Path, chains: dict[str, str] | None = None, **options: object) -> StructureSearch:
    database = made_database(tmp_path, {**OTHERS, **RELATIVES} if chains is None else chains)
    return StructureSearch(database, **options, cache_dir=tmp_path / "cache", threads=1)  # type: ignore[arg-type]


def same(first: Sequence[Hit], second: Sequence[Hit]) -> bool:
    """Whether hits are equal in all they hold."""
    return len(first) == len(second) and all(
        a.query_positions.dtype == b.query_positions.dtype == a.hit_positions.dtype == np.int32
        and {**vars(a), "query_positions": 0, "hit_positions": 0}
        == {**vars(b), "query_positions": 0, "hit_positions": 0}
        and np.array_equal(a.query_positions, b.query_positions)
        and np.array_equal(a.hit_positions, b.hit_positions)
        for a, b in zip(first, second, strict=True)
    )


def test_relatives_are_found_best_first(tmp_path: Path) -> None:
    (hits,) = made_search(tmp_path).search([QUERY])
    assert [hit.id for hit in hits] == ["1rel_A", "3rel_A", "5rel_A", "6rel_A"]
    for hit, share in zip(hits, (0.1, 0.3, 0.5, 0.6), strict=True):
        assert hit.evalue is not None and hit.evalue < 1e-3 and hit.score > 15
        assert hit.identity <= hit.pair_identity and abs(hit.pair_identity - (1 - share)) < 0.1
        assert 0.7 < hit.coverage <= 1


def test_hits_are_limited_and_strangers_have_none(tmp_path: Path) -> None:
    search = made_search(tmp_path, hits=2)
    hits, none, unknown = search.search([QUERY, random_sequence(5000, 140), "X" * 50])
    assert [hit.id for hit in hits] == ["1rel_A", "3rel_A"] and none == unknown == []
    assert search.search([]) == []


def test_of_copies_the_best_resolved_stands_for_all(tmp_path: Path) -> None:
    chains = {"1aaa_A": RELATIVES["3rel_A"], "2aaa_A": RELATIVES["3rel_A"], **OTHERS}
    (hits,) = made_search(tmp_path, chains).search([QUERY])
    assert [hit.id for hit in hits] == ["1aaa_A"]
    (hits,) = made_search(tmp_path, chains).search([QUERY], ["1AAA_Z"])
    assert [hit.id for hit in hits] == ["2aaa_A"]  # another entry's copy of it


def test_evalues_grow_with_the_database() -> None:
    strangers = [random_sequence(900 + i, 150) for i in range(39)]
    (small,) = Phmmer([RELATIVES["5rel_A"], *strangers[:19]], 1e-3, 1).find([QUERY])
    (large,) = Phmmer([RELATIVES["5rel_A"], *strangers], 1e-3, 1).find([QUERY])
    assert small.target.tolist() == large.target.tolist() == [0]
    assert large.evalue[0] == pytest.approx(2 * small.evalue[0], rel=1e-6) and large.bits[0] == small.bits[0]


@pytest.mark.parametrize("seed", range(6))
def test_alignments_score_what_another_program_scores(seed: int) -> None:
    query = random_sequence(seed, 90)
    target = mutated(query, 0.4, seed)
    target = random_sequence(50 + seed, 15) + target[:40] + target[40 + seed :] + "ACD"
    (alignment,) = align(query, [target])
    assert alignment is not None
    aligner = PairwiseAligner(mode="local", substitution_matrix=substitution_matrices.load("BLOSUM62"))
    aligner.open_gap_score, aligner.extend_gap_score = -11, -1
    score, columns = 0, len(alignment.query)
    for a, b in zip(alignment.query, alignment.hit, strict=True):
        score += aligner.substitution_matrix[query[a]][target[b]]
    for gap in np.concatenate([np.diff(alignment.query), np.diff(alignment.hit)]) - 1:
        assert gap >= 0
        score, columns = score - (gap > 0) * (10 + gap), columns + gap
    assert score == aligner.score(query, target)
    identical = sum(query[a] == target[b] for a, b in zip(alignment.query, alignment.hit, strict=True))
    assert alignment.identity == pytest.approx(identical / columns)
    assert alignment.pair_identity == pytest.approx(identical / len(alignment.query))


def test_unknown_residues_are_never_identical() -> None:
    query = QUERY[:20] + "XXXX" + QUERY[24:60]
    (same_sequence, nothing) = align(query, [query, "X" * 30])
    assert same_sequence is not None and nothing is None
    assert same_sequence.pair_identity == 1 and same_sequence.identity == pytest.approx(56 / 60)


def test_aligned_positions_ascend_within_both_chains(tmp_path: Path) -> None:
    search = made_search(tmp_path)
    for hit in search.search([QUERY])[0]:
        length = len(search.database.sequence_of(hit.index))
        assert hit.query_positions.dtype == hit.hit_positions.dtype == np.int32
        assert (np.diff(hit.query_positions) > 0).all() and (np.diff(hit.hit_positions) > 0).all()
        assert hit.query_positions[-1] < len(QUERY) and hit.hit_positions[-1] < length
        assert hit.coverage == len(hit.query_positions) / len(QUERY)


def test_nothing_is_searched_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    queries = [QUERY, *list(OTHERS.values())[:3], QUERY]
    first = made_search(tmp_path).search(queries)
    second = made_search(tmp_path)
    monkeypatch.setattr(search_module, "Phmmer", None)
    assert all(same(a, b) for a, b in zip(second.search(queries), first, strict=True))
    with pytest.raises(TypeError):  # a new sequence does need the program
        second.search([mutated(QUERY, 0.02, 1)])


@pytest.mark.parametrize("change", ["options", "exclusion", "database", "own entry"])
def test_what_changes_the_answer_is_searched_again(tmp_path: Path, change: str) -> None:
    before = made_search(tmp_path).search([QUERY])
    if change == "options":
        after = made_search(tmp_path, hits=1).search([QUERY])
    elif change == "exclusion":
        after = made_search(tmp_path).search([QUERY], exclusion=Exclusion(max_identity=0.6))
    elif change == "database":
        after = made_search(tmp_path, {**RELATIVES, **OTHERS, "7new_A": mutated(QUERY, 0.2, 9)}).search([QUERY])
    else:
        after = made_search(tmp_path).search([QUERY], ["1rel_B"])
    assert not same(before[0], after[0])
    assert same(made_search(tmp_path).search([QUERY])[0], before[0])


def test_damaged_results_are_searched_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (before,) = made_search(tmp_path).search([QUERY])
    (path,) = (tmp_path / "cache").rglob("*.json")
    good = path.read_bytes()
    for damaged in (b"", good[:40], good[:30] + b"7" + good[31:], good.replace(b'"score"', b'"sc0re"'), b"zz\n[]"):
        path.write_bytes(damaged)
        (after,) = made_search(tmp_path).search([QUERY])
        assert same(before, after) and path.read_bytes() == good
    assert "damaged search result" in caplog.text


def test_threads_and_batches_do_not_change_the_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    queries = [QUERY, *RELATIVES.values(), *list(OTHERS.values())[:2]]
    expected = made_search(tmp_path).search(queries)
    database = made_database(tmp_path, {**OTHERS, **RELATIVES})
    monkeypatch.setattr(search_module, "BATCH", 3)
    again = StructureSearch(database, threads=2).search(queries[::-1])[::-1]
    assert all(same(a, b) for a, b in zip(expected, again, strict=True))
    sent = pickle.loads(pickle.dumps(StructureSearch(database, threads=1)))
    assert same(sent.search([QUERY])[0], expected[0])
    shared_cache = tmp_path / "together"
    searches = [StructureSearch(database, cache_dir=shared_cache, threads=1) for _ in range(3)]
    with ThreadPoolExecutor(3) as executor:
        for found in executor.map(lambda search: search.search(queries), searches):
            assert all(same(a, b) for a, b in zip(expected, found, strict=True))


def test_a_cache_that_cannot_be_written_costs_time_only(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    database = made_database(tmp_path, RELATIVES)
    (tmp_path / "file").write_text("")
    (hits,) = StructureSearch(database, cache_dir=tmp_path / "file", threads=1).search([QUERY])
    assert len(hits) == 4 and "cannot be kept" in caplog.text


def test_wrong_use_is_named(tmp_path: Path) -> None:
    search = made_search(tmp_path)
    with pytest.raises(DataError, match="sequence 2, position 3: '-' cannot be aligned"):
        search.search([QUERY, "AC-D"])
    with pytest.raises(ValueError, match="1 ids for 2 queries"):
        search.search([QUERY, QUERY], ["1abc_A"])
    with pytest.raises(DataError, match="hits is 0"):
        made_search(tmp_path, hits=0)


def test_found_targets_are_ranked() -> None:
    found = Found.ranked([(1, 20.0, 1e-9), (3, 12.0, 1e-6), (2, 12.0, 1e-6)])
    assert found.target.tolist() == [1, 2, 3] and found.bits.tolist() == [20.0, 12.0, 12.0]
    assert found.evalue.tolist() == [1e-9, 1e-6, 1e-6]
