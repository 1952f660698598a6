"""Strata of proteins by identity: to the nearest training protein, and to the best hit of known structure."""

from __future__ import annotations

import math

IDENTITY_BOUNDS = (0.3, 0.5)  # a template bias has a weight for each range: checkpoints depend on them
TRAINING_STRATA = ("id<30", "id30-50", "id>=50")
NO_HIT = "nohit"
HIT_STRATA = (NO_HIT, "hit<30", "hit30-50", "hit>=50")
HIT_IDENTITY, HIT_COVERAGE = "hit_identity", "hit_coverage"  # columns of test_scores.csv
COPY = "copy_"  # what scores of copying the hits' contacts begin with


def training_stratum(identity: float) -> str:
    """Name the stratum of an identity to the nearest training relative, 0 … 1; 0 where there is none."""
    return TRAINING_STRATA[sum(identity >= bound for bound in IDENTITY_BOUNDS)]


def hit_stratum(identity: float | None) -> str:
    """Name the stratum of a protein by its best hit."""
    if identity is None or math.isnan(identity):
        return NO_HIT
    return HIT_STRATA[1 + sum(identity >= bound for bound in IDENTITY_BOUNDS)]
