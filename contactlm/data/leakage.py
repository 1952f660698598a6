"""How near dev and test chains are to what was trained on."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from contactlm.data.cluster import best_identity
from contactlm.data.relations import ClusterOptions
from contactlm.data.store import atomic_file

log = logging.getLogger(__name__)


def training_identity(
    queries: Sequence[str], training: Sequence[str], options: ClusterOptions, cache_dir: Path
) -> NDArray[np.float32]:
    """Best identity of each query to a related training sequence, kept in the cache folder.

    Args:
        queries: n dev or test sequences.
        training: The sequences trained on.
        options: When two sequences are related.
        cache_dir: The cache folder; one that cannot be written only costs time.

    Returns:
        float32 (n,): 0 where no training sequence is related, 1 where one is identical.
    """
    parts = ["identity-1", json.dumps(dataclasses.asdict(options), sort_keys=True), *queries, "/", *sorted(training)]
    key = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:40]
    path = cache_dir / "identity" / f"{key}.npy"
    known = _read(path, len(queries))
    if known is not None:
        return known
    identity = best_identity(queries, training, options)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(path) as handle:
            np.save(handle, identity)
    except OSError as error:
        log.info("identities are not kept in %s (%s)", cache_dir, error.strerror or error)
    return identity


def _read(path: Path, n: int) -> NDArray[np.float32] | None:
    try:
        identity = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    fits = identity.shape == (n,) and identity.dtype == np.float32 and bool(((identity >= 0) & (identity <= 1)).all())
    return identity if fits else None


def tell_leaks(role: str, identity: NDArray[np.float32], options: ClusterOptions) -> None:
    """Say how many chains have a relative among the training chains."""
    related = int((identity > 0).sum())
    terms = f"{options.identity:.0%} identity over {options.coverage:.0%} of the shorter chain"
    if related:
        log.warning(
            "%d of %d %s chains have a training relative (at least %s; nearest: %.0f%%): scores by identity are logged "
            "beside the overall ones",
            related, len(identity), role, terms, 100 * identity.max(),
        )  # fmt: skip
    else:
        log.info("none of %d %s chains has a training relative (at least %s)", len(identity), role, terms)
