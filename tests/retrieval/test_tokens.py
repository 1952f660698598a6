"""Segments of hits: which count, where they lie on the query, what a frozen backbone makes of them."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from contactlm.data.store import ChainStore
from contactlm.model.evidence import Evidence
from contactlm.model.loading import load_esm
from contactlm.retrieval.database import StructureDatabase
from contactlm.retrieval.embeddings import FrozenEncoder, SegmentStates
from contactlm.retrieval.evidence import SEGMENT_STEP, EvidenceSource, chain_evidence, collate_evidence
from contactlm.retrieval.exclude import Exclusion
from contactlm.retrieval.hits import Hit
from contactlm.retrieval.search import StructureSearch
from tests.conftest import random_sequence
from tests.retrieval.made import QUERY, made_chain, made_database, mutated

ARCHITECTURE = {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64}


class Encoder(FrozenEncoder):
    """Counts how often the backbone is loaded."""

    def __init__(self, seed: int = 0) -> None:
        self.loads = 0
        super().__init__(self._load_one, f"{seed:064d}"[::-1])
        self.seed = seed

    def _load_one(self) -> Any:
        self.loads += 1
        return load_esm(None, ARCHITECTURE, self.seed)


def database_of(folder: Path, states: str, missing: int = 0) -> StructureDatabase:
    """One chain of given secondary structure."""
    store = ChainStore.from_chains([made_chain("hit_A", random_sequence(1, len(states)), 3, missing)])
    numbers = np.array(["-HE".index(letter) for letter in states], np.uint8)
    return StructureDatabase.write(folder / "db", store, numbers, ["somewhere"])


def hit_of(query_positions: list[int], hit_positions: list[int], index: int = 0) -> Hit:
    pairs = np.array(query_positions, np.int32), np.array(hit_positions, np.int32)
    return Hit(index, "hit_A", 50.0, 1e-9, 0.4, 0.5, 0.75, *pairs)


#         0         1         2
STATES = "--HHHHHH--EEE--EEE--HHHHH"


def test_segments_that_overlap_enough_become_tokens(tmp_path: Path) -> None:
    database, encoder = database_of(tmp_path, STATES, missing=3), Encoder()
    # residues 0 … 15 of the query on 5 … 20: three of the first helix, both strands, one of the second helix
    hit = hit_of(list(range(16)), list(range(5, 21)))
    evidence = chain_evidence([hit], 20, database, SegmentStates(database, encoder, None))
    expected = [-1] * 5 + [0] * 3 + [-1] * 2 + [1] * 3 + [-1] * 7
    assert evidence.segment_of.tolist() == [expected]
    assert evidence.kinds.tolist() == [2, 2] and evidence.hit_of.tolist() == [0, 0]
    np.testing.assert_allclose(evidence.similarity, [[0.5, 0.75]])
    states = encoder.states(database.store.tokens_of(0))
    np.testing.assert_allclose(evidence.states, torch.stack([states[10:13].mean(0), states[15:18].mean(0)]), rtol=1e-6)
    np.testing.assert_array_equal(evidence.cb[0, :16], database.cb_of(0)[5:21])
    assert np.isnan(evidence.cb[0, 16:]).all()
    one_more = chain_evidence(
        [hit_of(list(range(16)), list(range(4, 20)))], 20, database, SegmentStates(database, encoder, None)
    )
    assert one_more.kinds.tolist() == [1, 2, 2]  # four residues of a helix are enough


@pytest.mark.parametrize("seed", range(5))
def test_touching_segments_are_those_with_a_contact(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    states = "".join(rng.choice(list("HHHHEEE-"), 1)[0] * int(rng.integers(2, 7)) for _ in range(15))
    database = database_of(tmp_path, states, missing=4)
    everything = list(range(len(states)))
    evidence = chain_evidence(
        [hit_of(everything, everything)] * 2, len(states), database, SegmentStates(database, Encoder(), None)
    )
    cb, segments = database.cb_of(0), database.segments_of(0)
    n = len(segments)
    assert len(evidence.kinds) == 2 * n and n > 3
    for s in range(2 * n):
        for t in range(2 * n):
            a, b = segments[s % n], segments[t % n]
            pairs = [(i, j) for i in range(a.start, a.stop) for j in range(b.start, b.stop)]
            near = any(np.linalg.norm(cb[i].astype(float) - cb[j]) < 8 for i, j in pairs)
            assert evidence.touching[s, t] == (near and s != t and s // n == t // n)


def test_a_batch_pads_and_places_what_is_shown(tmp_path: Path) -> None:
    database = database_of(tmp_path, STATES)
    everything = list(range(len(STATES)))
    states = SegmentStates(database, Encoder(), None)
    whole = chain_evidence([hit_of(everything, everything)], len(STATES), database, states)
    nothing = chain_evidence([], 7, database, states)
    shown = whole.shown(np.arange(4, 17))  # four of the helix, a strand, two of the next
    batch = collate_evidence([shown, nothing], 4, 32, 15)
    assert batch.states.shape == (2, SEGMENT_STEP, 32) and batch.cb.shape == (2, 4, 15, 3)
    centres, counts = batch.centres(torch.arange(1, 16)[None])
    assert counts[0, :5].tolist() == [4, 3, 2, 0, 0] and not counts[1].any()
    assert centres[0, :5].tolist() == [2.5, 8.0, 12.5, 0, 0]
    fewer, _ = collate_evidence([whole.shown(np.arange(5, 17))], 4, 32, 12).centres(torch.arange(12)[None])
    assert fewer[0, 0] == 0 and fewer[0, 1] > 0  # three residues of a helix are not enough
    again = whole.shown(np.arange(2, 20)).shown(np.arange(2, 15))
    for one, other in zip(collate_evidence([shown], 4, 32, 13), collate_evidence([again], 4, 32, 13), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)
    assert isinstance(batch, Evidence) and whole.nbytes > 0


def test_states_are_made_once_and_kept_apart_by_backbone(tmp_path: Path) -> None:
    database, encoder = database_of(tmp_path, STATES), Encoder()
    first = SegmentStates(database, encoder, tmp_path)
    made = first.of(0).states
    assert encoder.loads == 1 and made.shape == (4, 32)
    fresh = Encoder()
    again = SegmentStates(database, fresh, tmp_path).of(0).states
    assert fresh.loads == 0 and np.array_equal(made, again)
    other = SegmentStates(database, Encoder(seed=1), tmp_path)
    assert other._kept.folder != first._kept.folder
    assert not np.allclose(other.of(0).states, made)


@pytest.mark.parametrize("how", ["cut", "changed", "no checksum"])
def test_what_cannot_be_used_is_made_again(tmp_path: Path, how: str, caplog: pytest.LogCaptureFixture) -> None:
    database = database_of(tmp_path, STATES)
    kept = SegmentStates(database, Encoder(), tmp_path)
    made, (path,) = kept.of(0), tmp_path.rglob("0.means")
    raw = path.read_bytes()
    bad = {"cut": raw[:-4], "changed": raw[:-1] + bytes([raw[-1] ^ 1]), "no checksum": raw.partition(b"\n")[2]}[how]
    path.write_bytes(bad)
    fresh = Encoder()
    with caplog.at_level(logging.WARNING):
        again = SegmentStates(database, fresh, tmp_path).of(0)
    assert all(np.array_equal(*pair) for pair in zip(again, made, strict=True))
    assert fresh.loads == 1 and "damaged segment states" in caplog.text
    assert path.read_bytes() != bad


def test_long_chains_go_in_pieces() -> None:
    tokens = np.random.default_rng(0).integers(4, 24, 1500).astype(np.uint8)
    encoder = Encoder()
    states = encoder.states(tokens)
    assert states.shape == (1500, 32)
    torch.testing.assert_close(states[:750], encoder.states(tokens[:750]))


def relatives(tmp_path: Path) -> StructureDatabase:
    chains = {f"{n}abc_A": mutated(QUERY, 0.1 * n, n) for n in range(1, 5)}
    return made_database(tmp_path, chains | {f"{n}xyz_A": random_sequence(50 + n, 150) for n in range(1, 9)})


def source_of(database: StructureDatabase) -> EvidenceSource:
    return EvidenceSource(StructureSearch(database, threads=1), SegmentStates(database, Encoder(), None))


def test_evidence_is_made_once_a_query_and_exclusion(tmp_path: Path) -> None:
    source = source_of(relatives(tmp_path))
    (all_of_them,) = source.of(["q"], [QUERY], Exclusion.nothing())
    assert all_of_them.ids == ("1abc_A", "2abc_A", "3abc_A", "4abc_A") and len(all_of_them.kinds) > 10
    assert source.of(["q"], [QUERY], Exclusion.nothing())[0] is all_of_them
    (fewer,) = source.of(["q"], [QUERY], Exclusion.of_proteins(["1abc_A"], [], 0.85))
    assert fewer.ids == ("2abc_A", "3abc_A", "4abc_A")
    assert source.of(["2abc_A"], [QUERY], Exclusion())[0].ids == ("1abc_A", "3abc_A", "4abc_A")
    both = source.of(["q", "r"], [QUERY, random_sequence(99, 60)], Exclusion.nothing())
    assert both[0] is all_of_them and both[1].ids == () and both[1].segment_of.shape == (0, 60)
