"""Contacts carried over from a hit: a closed formula where the hit is the query itself, and trivial without hits."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from contactlm.data.store import ChainStore
from contactlm.retrieval.copy_homolog import copy_contacts, copy_homolog
from contactlm.retrieval.database import StructureDatabase
from contactlm.retrieval.exclude import Exclusion
from contactlm.retrieval.search import StructureSearch
from contactlm.structure.contacts import contact_map
from tests.retrieval.made import QUERY, made_chain, made_database, mutated


def trivial(length: int) -> np.ndarray:
    residues = np.arange(length)
    return (np.abs(residues[:, None] - residues) <= 2).astype(np.float32)


def test_its_own_structure_gives_its_own_contacts(tmp_path: Path) -> None:
    chain = made_chain("1abc_A", QUERY, missing=12)
    store = ChainStore.from_chains([chain])
    database = StructureDatabase.write(tmp_path / "db", store, np.zeros(len(QUERY), np.uint8), [])
    (hits,) = StructureSearch(database, threads=1).search([QUERY], exclusion=Exclusion.nothing())
    probability = copy_homolog(hits, database, len(QUERY))
    assert probability.dtype == np.float32 and probability.shape == (160, 160)
    np.testing.assert_array_equal(probability, probability.T)
    labels = contact_map(chain.cb)
    known = labels >= 0
    np.testing.assert_array_equal(probability[known] > 0.5, labels[known] == 1)
    distance = np.linalg.norm(chain.cb[20] - chain.cb[90])
    assert probability[20, 90] == pytest.approx(1 / (1 + np.exp(distance - 8)), abs=1e-6)
    np.testing.assert_array_equal(probability[:12], trivial(160)[:12])  # unresolved in the hit


def test_no_hit_is_the_trivial_predictor(tmp_path: Path) -> None:
    database = made_database(tmp_path, {"1abc_A": QUERY})
    np.testing.assert_array_equal(copy_homolog([], database, 40), trivial(40))


def test_several_hits_are_averaged_by_identity(tmp_path: Path) -> None:
    database = made_database(tmp_path, {"1abc_A": mutated(QUERY, 0.2, 1), "2abc_A": mutated(QUERY, 0.5, 2)})
    (hits,) = StructureSearch(database, threads=1).search([QUERY])
    one, two = (copy_homolog([hit], database, len(QUERY)) for hit in hits)
    both = copy_homolog(hits, database, len(QUERY))
    a, b = hits[0].pair_identity, hits[1].pair_identity
    shared = np.intersect1d(hits[0].query_positions, hits[1].query_positions)
    pairs = np.ix_(shared, shared)
    assert a > b and len(shared) > 80
    np.testing.assert_allclose(both[pairs], (a * one[pairs] + b * two[pairs]) / (a + b), atol=1e-6)
    np.testing.assert_allclose(copy_homolog(hits[::-1], database, len(QUERY)), both, atol=1e-6)


def test_an_insertion_shifts_the_contacts(tmp_path: Path) -> None:
    database = made_database(tmp_path, {"1abc_A": QUERY})
    longer = QUERY[:70] + "GGSGGS" + QUERY[70:]
    (hits,) = StructureSearch(database, threads=1).search([longer], exclusion=Exclusion.nothing())
    probability, straight = (
        copy_homolog(hits, database, len(longer)),
        copy_homolog([replace(hits[0], query_positions=hits[0].hit_positions)], database, len(QUERY)),
    )
    np.testing.assert_array_equal(probability[:60, 90:], straight[:60, 84:])


def test_residues_of_two_chains_are_no_neighbours() -> None:
    chain_of = np.repeat([0, 1], [7, 5])
    probability = copy_contacts(np.full((0, 12, 3), np.nan), [], chain_of=chain_of)
    np.testing.assert_array_equal(probability, trivial(12) * (chain_of[:, None] == chain_of))
