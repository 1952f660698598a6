"""Sequence clusters, so that relatives are never on both sides of a split, and the leakage between two sets.

The cost grows with the square of the number of distinct chains and falls with that of processor cores: on one core
1,000 chains of 208 residues take 3 s, 4,000 take 28 s, 20,000 about 12 minutes (``tests/benchmarks/bench_cluster.py``).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from contactlm.homology.alignment import check_letters
from contactlm.homology.relations import (
    SEARCHES,
    ClusterOptions,
    Relations,
    find_relations,
    keep_array,
    kept_array,
    make_pool,
)

__all__ = ["ClusterOptions", "best_identity", "cluster_sequences"]

CLUSTER_VERSION = 1  # of the rule; raise it with that: clusters that were recorded in packed sets count no longer then
DEFAULTS = ClusterOptions()


def best_identity(
    queries: Sequence[str],
    targets: Sequence[str],
    options: ClusterOptions = DEFAULTS,
    threads: int | None = None,
    progress: bool = False,
) -> NDArray[np.float32]:
    """Find how near each of n queries is to a set of sequences: for leak reports and scores by identity.

    An ``identity`` of 0 in the options asks for remote relatives as well; ``threads`` None: one a processor.

    Returns:
        float32 (n,): the best identity to a related target, 0 where there is none, 1 where a target is identical.
    """
    check_letters(queries)
    check_letters(targets)
    pool = make_pool([*queries, *targets])
    number = {sequence: i for i, sequence in enumerate(pool)}
    asked = np.array([number[sequence] for sequence in queries], dtype=np.int64)
    is_query, is_target = np.zeros((2, len(pool)), dtype=bool)
    is_query[asked] = True
    is_target[[number[sequence] for sequence in targets]] = True
    found = find_relations(pool, options, (is_query, is_target), threads, progress)
    best = (is_query & is_target).astype(np.float32)
    for one, other in ((found.first, found.second), (found.second, found.first)):
        valid = is_query[one] & is_target[other]
        np.maximum.at(best, one[valid], found.identity[valid].astype(np.float32))
    return best[asked]


def cluster_sequences(
    sequences: Sequence[str],
    options: ClusterOptions = DEFAULTS,
    cache_dir: Path | None = None,
    threads: int | None = None,
    progress: bool = False,
) -> NDArray[np.int64]:
    """Cluster n sequences by single linkage: related ones share a cluster, and so do the relatives of relatives.

    The result is kept in ``clusters/`` below the cache folder, by the sequences and the options, with what an
    interrupted computation found next to it. A damaged file is recomputed. ``threads`` None: one a processor.

    Returns:
        Cluster numbers in order of first appearance, int64 (n,). As a partition independent of the sequences' order.
    """
    check_letters(sequences)
    pool = make_pool(sequences)
    chosen = options.chosen(len(pool))
    path = None if cache_dir is None else Path(cache_dir) / "clusters" / f"{_key(pool, chosen)}.bin"
    of_pool = None if path is None else kept_array(path, np.int64, len(pool))
    if of_pool is None:
        so_far = None if path is None else path.with_suffix("")
        of_pool = _link(len(pool), find_relations(pool, options, None, threads, progress, so_far))
        if path is not None:
            keep_array(of_pool, path)
        if path is not None and path.is_file():
            shutil.rmtree(path.with_suffix(""), ignore_errors=True)
    cluster = dict(zip(pool, of_pool.tolist(), strict=True))
    numbers: dict[int, int] = {}
    return np.array([numbers.setdefault(cluster[s], len(numbers)) for s in sequences], dtype=np.int64)


def _link(n: int, relations: Relations) -> NDArray[np.int64]:
    """Join the related of n items; returns the smallest member of each one's cluster, int64 (n,)."""
    smallest = np.arange(n)
    while True:
        one, other = smallest[relations.first], smallest[relations.second]
        joined = smallest.copy()
        np.minimum.at(joined, one, other)
        np.minimum.at(joined, other, one)
        while (joined != joined[joined]).any():  # whoever's smallest has a smaller one takes that
            joined = joined[joined]
        if (joined == smallest).all():
            return joined
        smallest = joined


def _key(pool: Sequence[str], options: ClusterOptions) -> str:
    rule = json.dumps([SEARCHES[options.program].version, dataclasses.asdict(options)], sort_keys=True)
    return hashlib.sha256("\n".join([rule, *pool]).encode()).hexdigest()[:40]
