"""Copying the nearest of some chains: what a model must beat where its test chains have relatives in training."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from contactlm.data.store import ChainStore, chain_sequences
from contactlm.homology.alignment import Aligner
from contactlm.retrieval.copy_homolog import copy_contacts
from contactlm.retrieval.hits import align


class NearestChain:
    """Copies the contacts of the chain that aligns best with a query, of all chains of a store."""

    def __init__(self, known: ChainStore) -> None:
        self._known, self._sequences = known, chain_sequences(known)[0]
        self._aligner = Aligner(self._sequences)

    def copy(self, query: str) -> tuple[NDArray[np.float32], tuple[float, float]]:
        """Predict the contacts of L residues by those aligned with them.

        Returns:
            float32 (L, L), as of :func:`~contactlm.retrieval.copy_homolog.copy_contacts`; and the pair identity and
            the share of the query that is aligned, both NaN where nothing aligns: then it is the trivial predictor.
        """
        cb = np.full((1, len(query), 3), np.nan, np.float32)
        best = int(self._aligner.scores(query, np.arange(len(self._sequences))).argmax())
        (found,) = align(query, [self._sequences[best]])
        if found is None:
            return copy_contacts(cb, [0.0]), (np.nan, np.nan)
        cb[0, found.query] = self._known.cb_of(best)[found.hit]
        return copy_contacts(cb, [found.pair_identity]), (found.pair_identity, len(found.query) / len(query))
