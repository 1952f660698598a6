"""What tells one set of chains from another."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from typing import Any


def describe_chains(ids: Iterable[str], lengths: Iterable[int]) -> dict[str, Any]:
    """Number of chains and residues, and a checksum of the sorted (id, length) pairs.

    Args:
        ids: Of n chains.
        lengths: Residues of each.
    """
    pairs = [(name, int(length)) for name, length in zip(ids, lengths, strict=True)]
    return {"chains": len(pairs), "residues": sum(length for _, length in pairs), "checksum": fingerprint(pairs)}


def fingerprint(pairs: Iterable[tuple[str, int]]) -> str:
    """A checksum of (id, length) pairs, whatever their order."""
    text = json.dumps(sorted([name, length] for name, length in pairs))
    return hashlib.sha256(text.encode()).hexdigest()[:16]
