"""Small databases, with chains that are relatives of each other to a known degree."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from contactlm.data.store import ChainStore
from contactlm.retrieval.build import BackboneCache
from contactlm.retrieval.database import StructureDatabase
from contactlm.types import Chain
from tests.conftest import random_sequence


def cache_of(folder: Path) -> BackboneCache:
    return BackboneCache(folder / "cache", workers=0, progress=False)


def mutated(sequence: str, share: float, seed: int) -> str:
    """Replace exactly this share of the residues by others."""
    rng = np.random.default_rng(seed)
    letters = list(sequence)
    for i in rng.choice(len(letters), round(share * len(letters)), replace=False):
        letters[i] = rng.choice([letter for letter in "ACDEFGHIKLMNPQRSTVWY" if letter != letters[i]])
    return "".join(letters)


def made_chain(name: str, sequence: str, seed: int = 0, missing: int = 0) -> Chain:
    """A chain whose residues lie on a random walk; the first ``missing`` are unresolved."""
    steps = np.random.default_rng(seed).normal(size=(len(sequence), 3))
    cb = np.cumsum(3.8 * steps / np.linalg.norm(steps, axis=1, keepdims=True), axis=0).astype(np.float32)
    cb[:missing] = np.nan
    return Chain(name, sequence, cb, cb, np.isfinite(cb[:, 0]))


def made_database(folder: Path, chains: dict[str, str]) -> StructureDatabase:
    """Write a database of chains given by id and sequence."""
    made = [made_chain(name, sequence, seed) for seed, (name, sequence) in enumerate(chains.items())]
    store = ChainStore.from_chains(made)
    states = np.random.default_rng(0).integers(0, 3, len(store.tokens)).astype(np.uint8)
    return StructureDatabase.write(folder / "db", store, states, ["somewhere"])


QUERY = random_sequence(7, 160)
