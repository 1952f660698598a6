"""The copy-the-homolog predictor: the contacts of known structures of relatives, carried over by the alignment.

It learns nothing, and is the score that a model which reads such structures must beat.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from contactlm.retrieval.database import StructureDatabase
from contactlm.retrieval.hits import Hit, hits_cb
from contactlm.structure.contacts import CONTACT_THRESHOLD, LEAST_WEIGHT, SOFTNESS, TRIVIAL_REACH


def copy_homolog(
    hits: Sequence[Hit], database: StructureDatabase, length: int, threshold: float = CONTACT_THRESHOLD
) -> NDArray[np.float32]:
    """Predict the contacts of a query of L residues from those of its hits: float32 (L, L), symmetric, 0 … 1.

    A hit gives a pair of aligned, resolved residues the probability 1 / (1 + exp((d − threshold) / 1 Å)), d being the
    distance of their C-betas in the hit: above 1/2 exactly where the hit has a contact. Several hits are averaged,
    each with its pair identity as weight. Of pairs that no hit knows, those at most 2 residues apart are contacts (the
    trivial predictor), others not.
    """
    return copy_contacts(hits_cb(hits, length, database), [hit.pair_identity for hit in hits], threshold)


def copy_contacts(
    cb: NDArray[np.floating],
    pair_identity: Sequence[float],
    threshold: float = CONTACT_THRESHOLD,
    chain_of: NDArray[np.integer] | None = None,
) -> NDArray[np.float32]:
    """Predict as :func:`copy_homolog` does, from coordinates (K, L, 3) in Å that lie on the query's residues already.

    Of a complex, residues of two chains, by ``chain_of`` (L,), are no neighbours.
    """
    length = cb.shape[1]
    total = np.zeros((length, length), dtype=np.float32)
    weights = np.zeros((length, length), dtype=np.float32)
    for own, identity in zip(cb, pair_identity, strict=True):
        known = np.flatnonzero(np.isfinite(own[:, 0]))
        pairs = np.ix_(known, known)
        weight = np.float32(max(identity, LEAST_WEIGHT))
        at = own[known].astype(np.float64)
        distance = np.sqrt(sum((at[:, None, axis] - at[None, :, axis]) ** 2 for axis in range(3)))
        total[pairs] += weight * (0.5 * (1 + np.tanh((threshold - distance) / (2 * SOFTNESS)))).astype(np.float32)
        weights[pairs] += weight
    offsets = np.arange(length)
    trivial = np.abs(offsets[:, None] - offsets[None, :]) <= TRIVIAL_REACH
    if chain_of is not None:
        trivial &= chain_of[:, None] == chain_of[None, :]
    return np.where(weights > 0, total / np.maximum(weights, np.finfo(np.float32).tiny), trivial).astype(np.float32)
