"""What must never be evidence: the query's own entry, near copies, and every protein a model is scored on."""

from __future__ import annotations

from pathlib import Path

import pytest

from contactlm.data.cache import StructureCache
from contactlm.data.files import find_structures
from contactlm.retrieval.build import build_database
from contactlm.retrieval.database import StructureDatabase
from contactlm.retrieval.exclude import Exclusion, entries_of, entry_of
from contactlm.retrieval.search import StructureSearch
from contactlm.types import DataError
from tests.retrieval.made import QUERY, cache_of, made_database, mutated

NEAR = {"1abc_A": QUERY, "1abc_B": mutated(QUERY, 0.3, 1), "2abc_A": mutated(QUERY, 0.4, 2), "3tst_A": QUERY[:150]}


@pytest.mark.parametrize(
    ("name", "entry"),
    [
        *(("1ABC_A", "1abc"), ("1abc_", "1abc"), ("pdb1abc_A", "1abc"), ("1abc-assembly1_B", "1abc")),
        *(("1FAK_r_u_H", "1fak"), ("pdb_00001abc_A", "1abc"), ("d1abca__A", "1abc"), ("1abcA00_A", "1abc")),
        *(("AF-P12345-F1_A", "af-p12345-f1"), ("my_model_A", "my_model"), ("1000001_A", "1000001"), ("x", "x")),
    ],
)
def test_entries_of_chains(name: str, entry: str) -> None:
    assert entry_of(name) == entry and entry in entries_of(name)


def test_a_complex_is_known_by_its_whole_name() -> None:
    assert entries_of("My_Model") >= {"my_model"} == {entry_of("my_model_A")}
    assert entries_of("1abc") == {"1abc"}


def ids_of(tmp_path: Path, query_id: str | None, exclusion: Exclusion) -> set[str]:
    search = StructureSearch(made_database(tmp_path, NEAR), hits=9, threads=1)
    (hits,) = search.search([QUERY], None if query_id is None else [query_id], exclusion)
    return {hit.id for hit in hits}


def test_nothing_is_left_out_when_nothing_is_excluded(tmp_path: Path) -> None:
    assert ids_of(tmp_path, "1abc_A", Exclusion.nothing()) == set(NEAR)


def test_the_own_entry_is_left_out_whole(tmp_path: Path) -> None:
    assert ids_of(tmp_path, "1ABC_Z", Exclusion(max_identity=1.0)) == {"2abc_A", "3tst_A"}
    assert ids_of(tmp_path, None, Exclusion(max_identity=1.0)) == set(NEAR)


def test_the_ceiling_counts_pairs_not_gaps(tmp_path: Path) -> None:
    assert ids_of(tmp_path, None, Exclusion()) == {"1abc_B", "2abc_A"}
    assert ids_of(tmp_path, None, Exclusion(max_identity=0.65)) == {"2abc_A"}
    inserted = {"1ins_A": QUERY[:80] + "GSAGSAGSAGSAGSA" + QUERY[80:], "9oth_A": mutated(QUERY, 0.5, 4)}
    search = StructureSearch(made_database(tmp_path, inserted), threads=1)
    assert [hit.id for hit in search.search([QUERY])[0]] == ["9oth_A"]
    (hit, _) = search.search([QUERY], exclusion=Exclusion.nothing())[0]
    assert hit.pair_identity == 1 and hit.identity < 0.95


def test_scored_proteins_are_left_out_by_entry_and_by_sequence(tmp_path: Path) -> None:
    by_entry = Exclusion(frozenset(["3tst"]), max_identity=1.0)
    assert ids_of(tmp_path, None, by_entry) == {"1abc_A", "1abc_B", "2abc_A"}
    by_sequence = Exclusion.of_proteins(["9tst_A"], [NEAR["1abc_B"]], max_identity=1.0)
    assert ids_of(tmp_path, None, by_sequence) == {"1abc_A", "2abc_A", "3tst_A"}
    copied = {**NEAR, "4new_A": NEAR["3tst_A"]}  # another entry's copy of a scored protein that the caller did not list
    search = StructureSearch(made_database(tmp_path, copied), threads=1)
    (hits,) = search.search([QUERY], exclusion=by_entry)
    assert {"3tst_A", "4new_A"}.isdisjoint(hit.id for hit in hits)


def test_a_ceiling_out_of_range_is_refused() -> None:
    for value in (0.0, 1.5, float("nan")):
        with pytest.raises(DataError, match="max_identity"):
            Exclusion(max_identity=value)


def test_digests_do_not_depend_on_order() -> None:
    names = [f"{i}abc_A" for i in range(1, 9)]
    assert Exclusion.of_proteins(names, names).digest == Exclusion.of_proteins(names[::-1], names[::-1]).digest
    assert Exclusion.of_proteins(names, names).digest != Exclusion.of_proteins(names[1:], names).digest


@pytest.mark.slow
def test_nothing_excluded_is_found_in_real_structures(shared: Path, tmp_path: Path) -> None:
    """The database holds the test proteins themselves, and the homologs of some."""
    folder = shared / "pdb"
    scored = find_structures(folder / "test")[:16]
    related = {row.split(",")[2]: row.split(",")[0] for row in (folder / "HOMOLOGS.csv").read_text().splitlines()[1:]}
    relatives = [folder / related[name] for path in scored if (name := f"test/{path.name}") in related]
    training = find_structures(folder / "train")[:8]
    assert len(relatives) >= 2
    build_database([*scored, *relatives, *training], tmp_path / "db", cache_of(tmp_path))
    database = StructureDatabase.open(tmp_path / "db")
    plain = StructureCache(tmp_path / "cache", workers=0, progress=False)
    test, train = plain.load(scored)[0], plain.load(training)[0]
    test_sequences = {test.sequence_of(i) for i in range(len(test))}
    exclusion = Exclusion.of_proteins(test.ids, test_sequences)
    search = StructureSearch(database, hits=8, threads=1)
    found = tempted = 0
    for store in (test, train):
        queries = [store.sequence_of(i) for i in range(len(store))]
        chosen = [i for i in range(len(store)) if len(queries[i]) >= 30][:12]
        asked, ids = [queries[i] for i in chosen], [store.ids[i] for i in chosen]
        tempted += sum(
            hit.pair_identity > 0.95 for hits in search.search(asked, ids, Exclusion.nothing()) for hit in hits
        )
        for name, hits in zip(ids, search.search(asked, ids, exclusion), strict=True):
            found += len(hits)
            for hit in hits:
                assert entry_of(hit.id) != entry_of(name)
                assert entry_of(hit.id) not in {entry_of(scored_id) for scored_id in test.ids}
                assert database.sequence_of(hit.index) not in test_sequences
                assert hit.pair_identity <= 0.95
    assert found >= 2 and tempted >= 6  # without the rule each finds itself
