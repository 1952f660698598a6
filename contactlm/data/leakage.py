"""How near dev and test chains are to what was trained on."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from contactlm.atomic import atomic_file
from contactlm.data.complexes import best_of_chains, chain_sequences
from contactlm.data.groups import LazySequences, chain_keys
from contactlm.data.store import ChainStore
from contactlm.homology.cluster import best_identity
from contactlm.homology.relations import ClusterOptions
from contactlm.types import DataError

log = logging.getLogger(__name__)
MANY_PAIRS = 50_000_000  # of distinct sequences; about three minutes of one processor core (contactlm.homology.cluster)


def training_identity(
    queries: Sequence[str],
    training: Sequence[str],
    options: ClusterOptions,
    cache_dir: Path,
    keys: Sequence[str] | None = None,
    most_pairs: float = math.inf,
) -> NDArray[np.float32]:
    """Best identity of each query to a related training sequence, kept in the cache folder.

    Args:
        queries: n dev or test sequences.
        training: The sequences trained on; not looked at when the answer is in the cache and ``keys`` are given.
        options: When two sequences are related.
        cache_dir: The cache folder; one that cannot be written only costs time.
        keys: What tells the training sequences from others, one each; None: the sequences themselves.
        most_pairs: Do not compare more pairs of distinct sequences than this.

    Returns:
        float32 (n,): 0 where no training sequence is related, 1 where one is identical.

    Raises:
        TooManyPairsError: It is not in the cache, and there are more pairs.
    """
    named = training if keys is None else keys
    options = options.chosen(len(set(queries)) + len(set(named)))
    parts = ["identity-1", json.dumps(dataclasses.asdict(options), sort_keys=True), *queries, "/", *sorted(named)]
    key = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:40]
    path = cache_dir / "identity" / f"{key}.npy"
    known = _read(path, len(queries))
    if known is not None:
        return known
    pairs = len(set(queries)) * len(set(named))
    if pairs > most_pairs:
        raise TooManyPairsError(f"{len(set(queries))} x {len(set(named))} distinct sequences")
    identity = best_identity(queries, training, options)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(path) as handle:
            np.save(handle, identity)
    except OSError as error:
        log.info("identities are not kept in %s (%s)", cache_dir, error.strerror or error)
    return identity


class TooManyPairsError(DataError):
    """More pairs of sequences than may be compared without being asked to."""


def store_identity(
    queries: ChainStore, training: ChainStore, options: ClusterOptions, cache_dir: Path, most_pairs: float = math.inf
) -> NDArray[np.float32]:
    """Best identity of each entry's chains to a related training chain: :func:`training_identity` of two stores.

    Of a packed training set no sequence is read when the answer is in the cache.

    Returns:
        float32 (entries of ``queries``,).

    Raises:
        TooManyPairsError: It is not in the cache, and there are more pairs of chains than ``most_pairs``.
    """
    keys = chain_keys(training)[0]
    return entry_identity(queries, LazySequences(training), keys, options, cache_dir, most_pairs)


def entry_identity(
    queries: ChainStore,
    training: Sequence[str],
    keys: Sequence[str],
    options: ClusterOptions,
    cache_dir: Path,
    most_pairs: float = math.inf,
) -> NDArray[np.float32]:
    """Best identity of each entry's chains to a related training sequence.

    The arguments are those of :func:`training_identity`, the result and errors those of :func:`store_identity`.
    """
    sequences, entries = chain_sequences(queries)
    identity = training_identity(sequences, training, options, cache_dir, keys, most_pairs)
    return best_of_chains(identity, entries)


@dataclass(frozen=True)
class LeakSearch:
    """Finds, and tells, how near dev and test chains are to what is trained on.

    Attributes:
        options: When two sequences are related.
        cache_dir: The cache folder.
        report: ``"auto"``: unless that takes more than some minutes; ``"always"``; ``"never"``.
        tells: Whether to say what was found.
    """

    options: ClusterOptions
    cache_dir: Path
    report: Literal["auto", "always", "never"]
    tells: bool

    def identities(
        self, sets: Mapping[str, ChainStore], training: Sequence[str], keys: Sequence[str], apart: Collection[str] = ()
    ) -> dict[str, NDArray[np.float32]]:
        """Find the identity of each entry's chains to their nearest training relative.

        Args:
            sets: Chains by role, ``dev`` and ``test``.
            training: The sequences trained on; not looked at when the answer is in the cache.
            keys: What tells them from others, one each.
            apart: Roles whose relatives were held out with them.

        Returns:
            By role float32 (entries,); without those that are not computed.
        """
        found = {}
        for role, queries in sets.items():
            identity = (
                np.zeros(len(queries), np.float32) if role in apart else self._identity(role, queries, training, keys)
            )
            if identity is not None:
                found[role] = identity
                if self.tells and len(identity):
                    tell_leaks(role, identity, self.options)
        return found

    def _identity(
        self, role: str, queries: ChainStore, training: Sequence[str], keys: Sequence[str]
    ) -> NDArray[np.float32] | None:
        if self.report == "never":
            return None
        most = math.inf if self.report == "always" else MANY_PAIRS
        try:
            return entry_identity(queries, training, keys, self.options, self.cache_dir, most)
        except TooManyPairsError as error:
            if self.tells:
                tell_skipped(role, error)
            return None


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


def tell_skipped(role: str, why: TooManyPairsError) -> None:
    """Say that it is not known how near a set is to the training set, and how to get to know."""
    log.warning(
        "leak report of the %s set skipped, and with it scores by identity: comparing %s takes long; "
        "data.leak_report=always computes it, once (it is kept in the cache folder)",
        role, why,
    )  # fmt: skip
