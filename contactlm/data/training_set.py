"""What a run was trained on: compared when it is resumed, and kept with its checkpoints as ``train.fasta.gz``.

A checkpoint that is scored elsewhere, with a test set alone, still knows from that file how near each test chain is to
what it was trained on. Records come in the order of the store. A record has its entry's id, percent-encoded where that
would not be one word; the chains of a complex follow one another as ``>1abc 1/2`` and ``>1abc 2/2``.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from contactlm.atomic import atomic_file
from contactlm.data.fasta import FastaProblem, iter_fasta
from contactlm.data.packed.store import PackedStore
from contactlm.data.store import ChainStore, chain_sequences
from contactlm.types import DataError

NAME = "train.fasta.gz"
_PLAIN = "!#$&'()*+,/:;<=>?@[]^`{|}"  # what an id may hold as it is, with letters and digits
_NO_LIMIT = 1 << 62  # whatever was trained on may be read

log = logging.getLogger(__name__)


def describe_chains(ids: Iterable[str], lengths: Iterable[int]) -> dict[str, Any]:
    """Number of chains and residues, and a checksum of the sorted (id, length) pairs."""
    pairs = [(name, int(length)) for name, length in zip(ids, lengths, strict=True)]
    return {"chains": len(pairs), "residues": sum(length for _, length in pairs), "checksum": fingerprint(pairs)}


def fingerprint(pairs: Iterable[tuple[str, int]]) -> str:
    """A checksum of (id, length) pairs, whatever their order."""
    text = json.dumps(sorted([name, length] for name, length in pairs))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def check_same_run(
    before: Mapping[str, Any], now: Mapping[str, Any], checkpoint: str | Path | None
) -> list[dict[str, Any]]:
    """Refuse to resume a run of another seed or split: its steps would be counted, and reported, as those of this.

    ``before`` and ``now`` are options by name; as ``train`` the training chains (see :func:`describe_chains`), and as
    ``trained_before`` the other sets that the run was trained on. What its checkpoint does not say, or what this
    version does not know, is not checked.

    Returns:
        All other sets of training chains that the run was trained on: structures may come and go, but chains
        of the dev and test sets, or relatives of theirs, may then have been trained on.
    """
    for name in sorted(before.keys() & now.keys() - {"train", "trained_before"}):
        if now[name] != before[name]:
            option = "seed_everything" if name == "seed" else f"data.{name}"
            raise DataError(
                f"{option} is {now[name]}, but {before[name]} in the run to resume ({checkpoint}): give --{option} "
                f"{before[name]}, or leave out --ckpt_path to start a new run"
            )
    others = [*before.get("trained_before", []), before.get("train", now["train"])]
    return [chains for n, chains in enumerate(others) if chains != now["train"] and chains not in others[:n]]


def other_chains(before: Sequence[Mapping[str, Any]], now: Mapping[str, Any]) -> str:
    """Say that a run resumes with other training chains than it had."""
    had = " and ".join(f"{each['chains']} chains ({each['residues']} residues)" for each in before)
    same = "of other ids or lengths, " if any(each["chains"] == now["chains"] for each in before) else ""
    return (
        f"the resumed run was trained on {had}, {same}and now has {now['chains']} ({now['residues']} residues): "
        "dev and test chains, or relatives of theirs, may have been trained on, and their scores flatter the model; "
        "run.json says so, and scores by identity use only the present chains. Leave out --ckpt_path to start a new run"
    )


@dataclass(frozen=True)
class KeptTraining:
    """The training chains of a run."""

    sequences: list[str]
    about: dict[str, Any]


def keep_training(store: ChainStore, folder: Path) -> Path | None:
    """Write the training sequences of a run next to its checkpoints, unless that needs a download."""
    if isinstance(store, PackedStore) and store.packed.folder.is_remote:
        log.info(
            "%s is not written, since it would need a download of all of %s: later tests will have no scores by "
            "identity to training chains", NAME, store.packed.folder.name,
        )  # fmt: skip
        return None
    path = folder / NAME
    sequences, entries = chain_sequences(store)
    lengths = store.chain_lengths
    number, last = 0, -1
    with atomic_file(path) as raw, gzip.GzipFile("", "wb", 6, raw, mtime=0) as handle:
        for sequence, entry in zip(sequences, entries.tolist(), strict=True):
            number, last = (number + 1 if entry == last else 1), entry
            part = "" if lengths is None else f" {number}/{len(lengths[entry])}"
            name = quote(store.ids[entry], safe=_PLAIN, errors="surrogateescape")
            handle.write(f">{name}{part}\n{sequence}\n".encode("ascii"))
    return path


def kept_training(checkpoint: str | Path) -> KeptTraining | None:
    """Read the training sequences next to a checkpoint; None if there are none, or (logged) they cannot be read."""
    path = Path(checkpoint).parent / NAME
    if "://" in str(checkpoint) or not path.is_file():
        return None
    sequences: list[str] = []
    ids: list[str] = []
    lengths: list[int] = []
    try:
        for record in iter_fasta(path, _NO_LIMIT):
            if isinstance(record, FastaProblem):
                raise DataError(f"{path}: {record}")
            name, *part = record.description.split()
            if not part or part[0].startswith("1/"):
                ids.append(unquote(name, errors="surrogateescape"))
                lengths.append(0)
            lengths[-1] += len(record)
            sequences.append(record.sequence)
    except (DataError, IndexError, ValueError) as error:
        log.warning("%s; ignored: no scores by identity to training chains", error)
        return None
    return KeptTraining(sequences, describe_chains(ids, lengths))
