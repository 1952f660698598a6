"""All related pairs of a set, which tests and benchmarks ask for."""

from __future__ import annotations

from collections.abc import Sequence

from contactlm.homology.relations import ClusterOptions, find_relations, make_pool

DEFAULTS = ClusterOptions()


def related_pairs(
    sequences: Sequence[str],
    options: ClusterOptions = DEFAULTS,
    threads: int | None = None,
) -> list[tuple[int, int, float]]:
    """(i, j, identity) with i < j, ascending; identical sequences have identity 1."""
    pool = make_pool(sequences)
    number = {sequence: i for i, sequence in enumerate(pool)}
    members: list[list[int]] = [[] for _ in pool]
    for i, sequence in enumerate(sequences):
        members[number[sequence]].append(i)
    found = find_relations(pool, options, None, threads)
    pairs = [(i, j, 1.0) for same in members for a, i in enumerate(same) for j in same[a + 1 :]]
    for a, b, identity in zip(*(column.tolist() for column in found), strict=True):
        pairs += [(min(i, j), max(i, j), identity) for i in members[a] for j in members[b]]
    return sorted(pairs)
