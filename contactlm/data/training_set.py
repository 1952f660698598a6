"""``train.fasta.gz``: the training sequences of a run, beside its checkpoints.

A checkpoint that is scored elsewhere, with a test set alone, can then still tell how near each test chain is to what it
was trained on. Records come in the order of the store. A record is called by its entry's id, percent-encoded where that
would not be one word; the chains of a complex follow one another as ``>1abc 1/2`` and ``>1abc 2/2``.
"""

from __future__ import annotations

import gzip
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from contactlm.atomic import atomic_file
from contactlm.data.chain_sets import describe_chains
from contactlm.data.complexes import chain_sequences
from contactlm.data.fasta import FastaProblem, iter_fasta
from contactlm.data.packed.store import PackedStore
from contactlm.data.store import ChainStore
from contactlm.types import DataError

NAME = "train.fasta.gz"
_PLAIN = "!#$&'()*+,/:;<=>?@[]^`{|}"  # what an id may hold beside letters and digits as it is
_NO_LIMIT = 1 << 62  # whatever was trained on may be read

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class KeptTraining:
    """The training chains of a run.

    Attributes:
        sequences: Of all chains, those of complexes one by one.
        about: What :func:`~contactlm.data.chain_sets.describe_chains` says of the entries.
    """

    sequences: list[str]
    about: dict[str, Any]


def keep_training(store: ChainStore, folder: Path) -> Path | None:
    """Write the training sequences of a run into the folder of its checkpoints, whole or not at all.

    Args:
        store: The training chains.
        folder: The folder; made when missing.

    Returns:
        The file; None where the sequences would have to be fetched first, which is told.

    Raises:
        OSError: It cannot be written.
        DataError: A shard of a packed set is missing or damaged.
    """
    if isinstance(store, PackedStore) and store.packed.folder.is_remote:
        log.info(
            "%s is not written, since all of %s would have to be fetched for it: a test elsewhere will know no "
            "identities to training chains", NAME, store.packed.folder,
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
            handle.write(f">{_encoded(store.ids[entry])}{part}\n{sequence}\n".encode("ascii"))
    return path


def kept_training(checkpoint: str | Path) -> KeptTraining | None:
    """Read the training sequences that lie beside a checkpoint.

    Args:
        checkpoint: The checkpoint's file.

    Returns:
        None where there are none, or where they cannot be read, which is told.
    """
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
        log.warning("%s; it is not used: no scores by identity to training chains", error)
        return None
    return KeptTraining(sequences, describe_chains(ids, lengths))


def _encoded(name: str) -> str:
    return quote(name, safe=_PLAIN, errors="surrogateescape")
