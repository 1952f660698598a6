"""Scores that are kept: what a model reached on a chain is not predicted again."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from pathlib import Path

from contactlm.benchmark.check import CheckedChain
from contactlm.benchmark.reader import FOLDER

VERSION = 1  # raise it whenever a score changes its meaning: all are then computed again
log = logging.getLogger(__name__)
Scores = dict[str, float]


class KeptScores:
    """Scores of one model, a line a chain, in a file of the cache folder.

    Each line is written when its chain is done: a command that was killed goes on from there. A torn line counts as
    none.

    Args:
        cache_dir: The cache folder; one that cannot be written costs time only, which is told.
        model: What tells the model's weights and options from others.
    """

    def __init__(self, cache_dir: Path, model: str) -> None:
        key = hashlib.sha256(f"{VERSION} {model}".encode()).hexdigest()[:40]
        self._path = cache_dir / FOLDER / f"{key}.jsonl"
        self._known = self._read()
        self._told = False

    def of(self, chain: str) -> Scores | None:
        """The scores of a chain by its checksum; None where it is to be scored."""
        return self._known.get(chain)

    def add(self, chain: str, scores: Mapping[str, float]) -> None:
        """Keep the scores of a chain; NaN is kept as null."""
        self._known[chain] = dict(scores)
        values = {name: value if value == value else None for name, value in scores.items()}
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("a", encoding="utf-8") as handle:
                handle.write(json.dumps({"chain": chain, "scores": values}) + "\n")
        except OSError as error:
            if not self._told:
                log.warning("scores are not kept in %s (%s)", self._path.parent, error.strerror or error)
            self._told = True

    def _read(self) -> dict[str, Scores]:
        known: dict[str, Scores] = {}
        try:
            lines = self._path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError):
            return known
        for line in lines:
            try:
                row = json.loads(line)
                values = {name: float("nan") if v is None else float(v) for name, v in row["scores"].items()}
                known[row["chain"]] = values
            except (ValueError, LookupError, TypeError, AttributeError):
                continue
        return known


def chain_checksum(chain: CheckedChain) -> str:
    """A checksum of what a chain's scores follow from beside the model: its sequence and coordinates."""
    digest = hashlib.sha256(chain.sequence.encode())
    for atom in ("virtual-cb", "ca"):
        digest.update(chain.coordinates(atom).astype("<f4").tobytes())
    return digest.hexdigest()[:32]
