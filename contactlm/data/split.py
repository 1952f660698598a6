"""Which of the chains that were read are used, which are related, and which are held out as the dev set."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from contactlm.data.cache import ReadReport
from contactlm.data.crop import Stream, generator
from contactlm.data.packed.store import MIN_KNOWN, ClusterRule, PackedStore
from contactlm.data.store import ChainStore, chain_sequences
from contactlm.homology.cluster import ClusterOptions, cluster_sequences
from contactlm.types import DataError

log = logging.getLogger(__name__)
NAMED_PROBLEMS = 20  # so many skipped files are named one by one; beyond, the rest is counted


@dataclass
class Selection:
    """Chains of one source that can be used, and how many could not."""

    store: ChainStore
    report: ReadReport
    dropped: Counter[str] = field(default_factory=Counter)

    @property
    def what(self) -> str:
        """What the entries are."""
        return "chains" if self.store.chain_lengths is None else "complexes"

    def summary(self) -> str:
        """What was left out, with counts."""
        parts = [f"{count} {self.what} {why}" for why, count in self.dropped.items()]
        if self.report.problems:
            parts.append(f"{len(self.report.problems)} files that cannot be read")
        return ", ".join(parts) or "no chains"

    def announce(self, option: str, source: str) -> None:
        """Log what was read, and name what was skipped."""
        left_out = f" (left out: {self.summary()})" if self.dropped or self.report.problems else ""
        files = self.report.files
        log.info("%s: %d %s from %d files in %s%s", option, len(self.store), self.what, files, source, left_out)
        name_problems(self.report.problems)
        if self.report.remark:
            log.warning("%s: %s", option, self.report.remark)


def select_chains(store: ChainStore, report: ReadReport, min_length: int, min_known: float = MIN_KNOWN) -> Selection:
    """Leave out what cannot be learned from or scored, and count it.

    That is chains below ``min_length`` residues, without a resolved pair, or of whose resolved residues a smaller share
    than ``min_known`` is known (not X). Chains of identical sequence in one file are taken once: the one with most
    resolved residues, of equals the first.
    """
    lengths, resolved = np.asarray(store.lengths), np.asarray(store.resolved_counts())
    known = np.asarray(store.known_counts())
    files, keys = np.asarray(store.meta["file_of_chain"]).tolist(), store.sequence_keys()
    may_serve = (lengths >= min_length) & (resolved >= 2)
    usable = np.flatnonzero(may_serve & (known >= min_known * resolved)).tolist()
    best = best_copies([(files[i], keys[i]) for i in usable], resolved[usable])
    dropped = Counter(
        {
            f"shorter than {min_length} residues": int((lengths < min_length).sum()),
            "without two resolved residues": int(((lengths >= min_length) & (resolved < 2)).sum()),
            "of mostly unknown residues": int(may_serve.sum()) - len(usable),
            "copies of a chain in the same file": len(usable) - len(best),
        }
    )
    return Selection(store.select([usable[i] for i in best]), report, +dropped)


def best_copies(keys: Sequence[Hashable], resolved: NDArray[np.int64]) -> list[int]:
    """Of entries of equal key the one with most resolved residues, of equals the first; in their order."""
    best: dict[Hashable, int] = {}
    for i, key in enumerate(keys):
        if key not in best or resolved[i] > resolved[best[key]]:
            best[key] = i
    return sorted(best.values())


def name_problems(problems: Mapping[str, str]) -> None:
    """Log what was skipped, with the reason; beyond a number, only count it."""
    for path, reason in list(problems.items())[:NAMED_PROBLEMS]:
        log.warning("skipped %s: %s", path, reason)
    if len(problems) > NAMED_PROBLEMS:
        log.warning("… and %d more that cannot be used", len(problems) - NAMED_PROBLEMS)


def by_length(store: ChainStore) -> ChainStore:
    """Sort chains that are scored whole, so that a batch holds chains of like cost."""
    return store.select(np.argsort(store.lengths, kind="stable"))


def cluster_chains(
    store: ChainStore, rule: ClusterRule, cache_dir: Path | None
) -> tuple[NDArray[np.int64], ClusterOptions]:
    """Sequence cluster of each chain, those of complexes one by one, int64 (n,); and the options with the program used.

    Clusters recorded in a packed set are taken where they are what the rule asks for. What has to be computed is kept
    in the cache folder, where one is given.
    """
    recorded = store.recorded_groups(rule) if isinstance(store, PackedStore) else None
    if recorded is not None:
        return recorded
    sequences = chain_sequences(store)[0]
    clusters = cluster_sequences(sequences, rule.options, cache_dir, progress=True)
    return clusters, rule.options.chosen(len(set(sequences)))


def group_identical(sequences: Sequence[Hashable]) -> NDArray[np.int64]:
    """Number the distinct sequences in order of appearance, int64 (n,): equal sequences share a number."""
    numbers: dict[Hashable, int] = {}
    return np.array([numbers.setdefault(sequence, len(numbers)) for sequence in sequences], dtype=np.int64)


def join_groups(groups: NDArray[np.int64], entries: NDArray[np.int64]) -> NDArray[np.int64]:
    """Group entries by their chains: two that have chains of one group are in one group, and so on from there.

    ``groups`` and ``entries``, int64 (n,), are the group and the entry of each chain; entries ascend, and none lacks
    one.

    Returns:
        Group of each entry, 0 … G − 1 in order of appearance; ``groups`` itself where each entry is of one chain.
    """
    _, first = np.unique(entries, return_index=True)
    if len(first) == len(groups):
        return groups
    labels = np.arange(int(groups.max()) + 1)
    while True:  # the smallest label spreads over entries that share a group, and over groups that share an entry
        of_entry = np.minimum.reduceat(labels[groups], first)
        spread = labels.copy()
        np.minimum.at(spread, groups, of_entry[entries])
        if (spread == labels).all():
            return group_identical(of_entry.tolist())
        labels = spread


def split_groups(groups: NDArray[np.int64], fraction: float, seed: int) -> NDArray[np.bool_]:
    """Choose the dev chains by drawing whole groups, int64 (n,) of 0 … G − 1, until a fraction of them is reached.

    Returns:
        bool (n,), True for dev chains: a pure function of seed and groups. A positive fraction takes at least one
        group.
    """
    if not 0 <= fraction < 1:
        raise DataError(f"dev_fraction is {fraction}; it must be at least 0 and below 1")
    n_groups = int(groups.max(initial=-1)) + 1
    n_dev = max(1, round(fraction * n_groups)) if fraction else 0
    if n_dev >= n_groups:
        raise DataError(
            f"holding out {n_dev} of {n_groups} groups of related chains for dev leaves nothing to train on: give "
            "--data.split random (dev scores will flatter the model), other proteins as well, or --data.dev_fraction 0 "
            "(no dev set, no tuned threshold, no calibration)"
        )
    drawn = generator(seed, Stream.SPLIT).permutation(n_groups)[:n_dev]
    return np.isin(groups, drawn)
