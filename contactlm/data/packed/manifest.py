"""The manifest of a packed set: which files it has, what they must contain, and how they were made.

A packed set is a folder. ``manifest.json`` is written last, so a folder without it is not complete::

    manifest.json            this description
    index.bin                lengths, files, checksums, clusters and ids of all chains (contactlm.data.packed.index)
    problems.json            structure files that could not be read, with the reason
    shard-000000.chains …    the chains, each shard a chain store (contactlm.data.store)
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from contactlm.homology.cluster import CLUSTER_VERSION
from contactlm.homology.relations import ClusterOptions
from contactlm.types import DataError

MANIFEST = "manifest.json"
INDEX = "index.bin"
PROBLEMS = "problems.json"
JOURNAL = "packing.jsonl"  # what an unfinished `contactlm pack` has done so far
FORMAT = "contactlm packed set"
VERSION = 1
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")  # no folders: names come from elsewhere and become paths
_BLOCK = 1 << 20


@dataclass(frozen=True)
class Part:
    """A file of a packed set.

    Attributes:
        name: Its name in the folder.
        size: Bytes.
        sha256: Checksum of the whole file, hexadecimal.
    """

    name: str
    size: int
    sha256: str

    @classmethod
    def of(cls, path: Path) -> Part:
        """Describe a file.

        Raises:
            OSError: It cannot be read.
        """
        return cls(path.name, path.stat().st_size, hash_file(path))


@dataclass(frozen=True)
class ShardPart(Part):
    """A shard.

    Attributes:
        chains: Chains in it.
        residues: Residues in it.
    """

    chains: int
    residues: int


@dataclass(frozen=True)
class ClusterRule:
    """Which chains were clustered, and when two counted as related: clusters of another rule are others.

    Attributes:
        options: When two sequences are related.
        min_length: Shorter entries were left out before.
        assembly: ``"chain"`` or ``"complex"``, what the entries were.
        version: Of the search for relatives.
    """

    options: ClusterOptions = ClusterOptions()  # noqa: RUF009 - frozen
    min_length: int = 30
    assembly: str = "chain"
    version: int = CLUSTER_VERSION

    def text(self) -> str:
        """Its numbers, as a message tells them."""
        rule = self.options
        return (
            f"assembly {self.assembly}, at least {self.min_length} residues, identity {rule.identity:g}, coverage "
            f"{rule.coverage:g}, {rule.bits:g} bits, prefilter {rule.prefilter}, program {rule.program}, version "
            f"{self.version}"
        )

    def allows(self, other: ClusterRule) -> bool:
        """Whether clusters of another rule are what this one asks for."""
        return self.options.allows(other.options) and replace(other, options=self.options) == self


@dataclass(frozen=True)
class Manifest:
    """What a packed set is.

    Attributes:
        sequence: The reader's setting, ``"seqres"`` or ``"observed"``.
        reader_version: Version of the reading rules.
        files: Structure files that were packed, unreadable ones included.
        index: The file of the index.
        problems: The file of what could not be read.
        shards: The shards, in order.
        clusters: The rule of the clusters in the index; None: there are none.
    """

    sequence: str
    reader_version: int
    files: int
    index: Part
    problems: Part
    shards: tuple[ShardPart, ...]
    clusters: ClusterRule | None = None

    def to_bytes(self) -> bytes:
        """Write as JSON, the same bytes for the same set."""
        about = {"format": FORMAT, "version": VERSION, **dataclasses.asdict(self)}
        return (json.dumps(about, indent=1) + "\n").encode()

    @classmethod
    def from_bytes(cls, raw: bytes, where: str) -> Manifest:
        """Read what :meth:`to_bytes` wrote.

        Args:
            raw: The file's content.
            where: Where it lies, for messages.

        Raises:
            DataError: It is something else, of another version, or damaged.
        """
        try:
            about = json.loads(raw)
        except ValueError as error:
            raise DataError(f"{where}: not a packed set's manifest ({error}); pack or upload the set again") from error
        if not isinstance(about, dict) or about.get("format") != FORMAT:
            raise DataError(
                f"{where}: not a packed set's manifest; give the folder or URL of a set written by `contactlm pack`"
            )
        if about.get("version") != VERSION:
            raise DataError(
                f"{where}: written in version {about.get('version')} of the format, and this contactlm reads version "
                f"{VERSION}; pack the structures again with this contactlm, or use the one that wrote it"
            )
        try:
            return _from_json(about)
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"{where}: damaged manifest ({error!r}); pack or upload the set again") from error


def _from_json(about: dict[str, Any]) -> Manifest:
    index, problems = (_checked(Part(**about[name])) for name in ("index", "problems"))
    clusters = about["clusters"]
    if clusters is not None:
        clusters = ClusterRule(**{**clusters, "options": ClusterOptions(**clusters["options"])})
    return Manifest(
        str(about["sequence"]),
        int(about["reader_version"]),
        int(about["files"]),
        index,
        problems,
        tuple(ShardPart(**_fields(_checked(ShardPart(**each)))) for each in about["shards"]),
        clusters,
    )


def _fields(part: Part) -> dict[str, Any]:
    return dataclasses.asdict(part)


def _checked(part: Part) -> Part:
    numbers = [value for name, value in _fields(part).items() if name not in ("name", "sha256")]
    if not (_NAME.fullmatch(part.name) and re.fullmatch("[0-9a-f]{64}", part.sha256)):
        raise ValueError(f"part {part.name!r}")
    if not all(isinstance(value, int) and value >= 0 for value in numbers):
        raise ValueError(f"numbers of part {part.name!r}")
    return part


def hash_file(path: Path) -> str:
    """SHA-256 of a file, hexadecimal.

    Raises:
        OSError: It cannot be read.
    """
    digest = hashlib.sha256()
    with path.open("rb") as handle:
        while block := handle.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()
