"""Which of the chains that were read are used, and a word on those that are not."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from contactlm.data.cache import ReadReport
from contactlm.data.store import ChainStore

log = logging.getLogger(__name__)
NAMED_PROBLEMS = 20  # so many skipped files are named one by one; beyond, the rest is counted


@dataclass
class Selection:
    """Chains of one source that can be used, and how many could not."""

    store: ChainStore
    report: ReadReport
    dropped: Counter[str] = field(default_factory=Counter)

    def summary(self) -> str:
        """What was left out, with counts."""
        parts = [f"{count} {self.what} {why}" for why, count in self.dropped.items()]
        if self.report.problems:
            parts.append(f"{len(self.report.problems)} files that cannot be read")
        return ", ".join(parts) or "no chains"

    @property
    def what(self) -> str:
        """What the entries are."""
        return "chains" if self.store.chain_lengths is None else "complexes"

    def tell(self, option: str, source: str) -> None:
        """Say what was read, and name what was skipped."""
        left_out = f" (left out: {self.summary()})" if self.dropped or self.report.problems else ""
        files = self.report.files
        log.info("%s: %d %s from %d files in %s%s", option, len(self.store), self.what, files, source, left_out)
        name_problems(list(self.report.problems.items()))
        if self.report.remark:
            log.warning("%s: %s", option, self.report.remark)

    def first_problem(self) -> str:
        """The first file that cannot be read, as the end of a message; nothing when all could."""
        for path, reason in self.report.problems.items():
            return f"; the first unreadable file: {path}: {reason}"
        return ""


def select_chains(store: ChainStore, report: ReadReport, min_length: int) -> Selection:
    """Leave out what cannot be learned from or scored, and count it.

    Chains of identical sequence in one file are taken once: the one with most resolved residues, of equals the first.

    Args:
        store: All chains read, with ``file_of_chain`` in its meta data.
        report: What happened to the files.
        min_length: Shorter chains are left out.
    """
    lengths, resolved, keys = store.lengths, store.resolved_counts(), store.sequence_keys()
    dropped: Counter[str] = Counter()
    best: dict[tuple[int, bytes], int] = {}
    for i, file in enumerate(np.asarray(store.meta["file_of_chain"]).tolist()):
        if lengths[i] < min_length:
            dropped[f"shorter than {min_length} residues"] += 1
        elif resolved[i] < 2:
            dropped["without two resolved residues"] += 1
        else:
            key = (file, keys[i])
            dropped["copies of a chain in the same file"] += key in best
            if key not in best or resolved[i] > resolved[best[key]]:
                best[key] = i
    return Selection(store.select(sorted(best.values())), report, +dropped)


def by_length(store: ChainStore) -> ChainStore:
    """Sort chains that are scored whole, so that a batch holds chains of like cost."""
    return store.select(np.argsort(store.lengths, kind="stable"))


def name_problems(problems: Sequence[tuple[str, str]]) -> None:
    """Name what was skipped, with the reason; beyond a number, count it."""
    for path, reason in problems[:NAMED_PROBLEMS]:
        log.warning("skipped %s: %s", path, reason)
    if len(problems) > NAMED_PROBLEMS:
        log.warning("… and %d more that cannot be used", len(problems) - NAMED_PROBLEMS)
