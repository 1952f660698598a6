"""Maps of real or made structures, for tests of what shows them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from contactlm import ContactMap, contact_map, read_chains
from contactlm.maps.full_map import FullMap, full_maps


def map_of(path: Path, seed: int = 0, joined: bool = False, noise: float = 1.5) -> ContactMap:
    """A map that is as good as a fair model's: the structure's distances, with noise."""
    chains = read_chains(path) if joined else read_chains(path)[:1]
    cb = np.concatenate([chain.cb for chain in chains]).astype(np.float64)
    sequence = "".join(chain.sequence for chain in chains)
    distance = np.nan_to_num(np.linalg.norm(cb[:, None] - cb, axis=-1), nan=40.0)
    logits = np.triu((8.0 - distance) * 0.7 + np.random.default_rng(seed).normal(0, noise, distance.shape), 1)
    probability = 1 / (1 + np.exp(-np.clip(logits + logits.T, -30, 30)))
    np.fill_diagonal(probability, 0)
    how = {"model": f"made of distances, seed {seed}", "chain_lengths": [len(chain) for chain in chains]}
    name = chains[0].id.rpartition("_")[0] if joined else chains[0].id
    return ContactMap(name, sequence, probability, contact_map(cb), how=how).on_structure(path)


def full_map(logits_fn, tokens, options=None, device=None, positions=None) -> FullMap:
    """The map of one chain."""
    return next(full_maps(logits_fn, [tokens], options, device, [positions]))
