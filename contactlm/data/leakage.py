"""How near dev and test chains are to what was trained on."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from contactlm.atomic import atomic_file, if_it_can_be
from contactlm.data.store import ChainStore, chain_sequences
from contactlm.homology.cluster import best_identity
from contactlm.homology.relations import ClusterOptions
from contactlm.types import DataError

log = logging.getLogger(__name__)
MANY_PAIRS = 50_000_000  # of distinct sequences; about three minutes of one processor core (contactlm.homology.cluster)


class TooManyPairsError(DataError):
    """More pairs of sequences than may be compared without being asked to."""


def training_identity(
    queries: Sequence[str],
    training: Sequence[str] | Callable[[], Sequence[str]],
    options: ClusterOptions,
    cache_dir: Path,
    keys: Sequence[str] | None = None,
    most_pairs: float = math.inf,
) -> NDArray[np.float32]:
    """Best identity of each of n queries to a related training sequence, float32 (n,): 0 where there is none.

    The answer is kept in the cache folder. With ``keys``, which identify the training sequences, ``training``
    may be what gives these when the answer is not there. No more than ``most_pairs`` pairs of distinct sequences are
    compared.
    """
    named: Sequence[str] = keys if keys is not None else training  # type: ignore[assignment]  # without keys sequences
    options = options.chosen(len(set(queries)) + len(set(named)))
    parts = ["identity-1", json.dumps(dataclasses.asdict(options), sort_keys=True), *queries, "/", *sorted(named)]
    key = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:40]
    path = cache_dir / "identity" / f"{key}.npy"
    known = _read(path, len(queries))
    if known is not None:
        return known
    if len(set(queries)) * len(set(named)) > most_pairs:
        raise TooManyPairsError(f"{len(set(queries))} x {len(set(named))} distinct sequences")
    identity = best_identity(queries, training() if callable(training) else training, options)
    with if_it_can_be("identities", cache_dir), atomic_file(path) as handle:
        np.save(handle, identity)
    return identity


def _read(path: Path, n: int) -> NDArray[np.float32] | None:
    try:
        identity = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    fits = identity.shape == (n,) and identity.dtype == np.float32 and bool(((identity >= 0) & (identity <= 1)).all())
    return identity if fits else None


def best_of_chains(values: NDArray[np.float32], entries: NDArray[np.int64]) -> NDArray[np.float32]:
    """Largest value of each entry's chains; ``entries`` names the entry of each chain, int64 (n,), ascending."""
    return np.maximum.reduceat(values, np.unique(entries, return_index=True)[1]) if len(values) else values


@dataclass(frozen=True)
class LeakSearch:
    """Finds, and logs if ``logs``, how near dev and test chains are to what is trained on.

    ``report``: ``"auto"``: unless that takes more than some minutes; ``"always"``; ``"never"``.
    """

    options: ClusterOptions
    cache_dir: Path
    report: Literal["auto", "always", "never"]
    logs: bool

    def identities(
        self,
        sets: Mapping[str, ChainStore],
        training: Callable[[], Sequence[str]],
        keys: Sequence[str],
        apart: Collection[str] = (),
    ) -> dict[str, NDArray[np.float32]]:
        """By role float32 (entries,): the identity of each entry's chains to their nearest training relative.

        ``training`` gives the sequences trained on, when the answer is not in the cache; ``keys`` identify these.
        Relatives of the roles in ``apart`` were held out with them. Roles that are not computed are missing.
        """
        found = {}
        most = math.inf if self.report == "always" else MANY_PAIRS
        for role, queries in sets.items():
            if role in apart:
                found[role] = np.zeros(len(queries), np.float32)
            elif self.report != "never":
                sequences, entries = chain_sequences(queries)
                try:
                    identity = training_identity(sequences, training, self.options, self.cache_dir, keys, most)
                except TooManyPairsError as error:
                    self._tell_skipped(role, error)
                    continue
                found[role] = best_of_chains(identity, entries)
        for role, identity in found.items():
            self._tell(role, identity)
        return found

    def _tell(self, role: str, identity: NDArray[np.float32]) -> None:
        related = int((identity > 0).sum())
        terms = f"{self.options.identity:.0%} identity over {self.options.coverage:.0%} of the shorter chain"
        if self.logs and related:
            log.warning(
                "%d of %d %s chains with a training relative (at least %s; nearest: %.0f%%): also logging scores "
                "by identity",
                related, len(identity), role, terms, 100 * identity.max(),
            )  # fmt: skip
        elif self.logs and len(identity):
            log.info("none of %d %s chains has a training relative (at least %s)", len(identity), role, terms)

    def _tell_skipped(self, role: str, why: TooManyPairsError) -> None:
        if self.logs:
            log.warning(
                "leak report of the %s set skipped, and with it scores by identity: comparing %s takes long; "
                "data.leak_report=always computes it, once (it is kept in the cache folder)",
                role, why,
            )  # fmt: skip
