"""Maps as a page carries them: one byte a pair, of which counts at any threshold are still exact."""

from __future__ import annotations

import base64
import zlib

import numpy as np
from numpy.typing import NDArray

STEPS = 250
"""Thresholds k / STEPS at which a page counts: the byte of a pair tells how many of them its probability is above."""


def pack_probability(probability: NDArray[np.float32]) -> str:
    """The upper triangle, row by row, as bytes q, compressed (zlib, base64).

    q is the number of thresholds 0, 1/250, … 249/250 that p is above, so that q > k where p > k / 250, compared in
    float32 as scores are. A probability is then known to within 0.004.

    Args:
        probability: float32 (L, L), symmetric.
    """
    thresholds = (np.arange(STEPS) / STEPS).astype(np.float32)
    steps = np.searchsorted(thresholds, _upper(probability), side="left")
    return _packed(steps.astype(np.uint8))


def pack_labels(labels: NDArray[np.int8]) -> str:
    """The upper triangle of labels as bytes, likewise: 0 unknown, 1 no contact, 2 contact."""
    return _packed((_upper(labels) + 1).astype(np.uint8))


def pack_positions(cb: NDArray[np.float32]) -> str:
    """Positions (L, 3) as little-endian float32, likewise."""
    return _packed(np.ascontiguousarray(cb, "<f4").view(np.uint8).ravel())


def _upper(values: NDArray) -> NDArray:
    return values[np.triu(np.ones(values.shape, dtype=np.bool_), 1)]


def _packed(values: NDArray[np.uint8]) -> str:
    return base64.b64encode(zlib.compress(values.tobytes(), 9 if len(values) < 1 << 20 else 6)).decode()
