"""What every other part of the package speaks of: chains and errors.

Axis letters used throughout: B batch, L residues, T tokens (L + 2), C attention maps (layers x heads), H heads,
D head width.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, chain, count, islice, pairwise, product
from pathlib import Path
from string import ascii_uppercase
from typing import Literal

import numpy as np
from numpy.typing import NDArray

_ONE = re.compile(r"(?<![\d,.])\b1 ((?:\w+ )?)(chain|protein|file|map|input|shard|structure|residue|run)s\b( are\b)?")


def singular(text: str) -> str:
    """A message with ``1 chain`` in the place of ``1 chains``, whatever is counted."""
    return _ONE.sub(lambda found: f"1 {found[1]}{found[2]}{' is' if found[3] else ''}", text)


class ContactLMError(Exception):
    """A user error: one message with what was given and what to do. The CLI shows no traceback."""


class StructureError(ContactLMError, ValueError):
    """A structure file that cannot be read as protein chains."""

    def __init__(self, path: str | Path, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = str(path)
        self.reason = reason

    def __reduce__(self) -> tuple[type[StructureError], tuple[str, str]]:
        return type(self), (self.path, self.reason)


class DataError(ContactLMError, ValueError):
    """Data that cannot be used as asked: a missing folder, nothing left to train on, a damaged store."""


class ModelError(ContactLMError, ValueError):
    """A backbone, checkpoint or model option that cannot be used as asked."""


class TrainingError(ContactLMError, RuntimeError):
    """Training that cannot continue, such as one whose loss stays not finite."""


class MissingExtraError(ContactLMError, ImportError):
    """A library of an optional part of the package, which is not installed.

    Args:
        library: Its name.
        extra: The part, as ``pip`` knows it.
        reason: Why the library cannot be imported.
    """

    def __init__(self, library: str, extra: str, reason: str) -> None:
        super().__init__(
            f'{library} cannot be imported ({reason}), and is needed here: pip install "contactlm[{extra}]"'
        )
        self.library, self.extra, self.reason = library, extra, reason

    def __reduce__(self) -> tuple[type[MissingExtraError], tuple[str, str, str]]:
        return type(self), (self.library, self.extra, self.reason)


@dataclass(frozen=True, eq=False)
class Chain:
    """One protein chain.

    Attributes:
        id: Entry and author chain identifier, such as ``1abc_A``.
        sequence: L one-letter codes of the ESM alphabet, unresolved residues included.
        ca: C-alpha coordinates, float32 (L, 3), in Å; NaN where unresolved.
        cb: Virtual C-beta coordinates, float32 (L, 3), in Å; NaN where unresolved.
        resolved: bool (L,), whether the residue has coordinates.

    Examples:
        >>> import numpy as np
        >>> from contactlm import Chain
        >>> atoms = np.array([[0, 0, 0], [3.8, 0, 0], [np.nan] * 3], dtype=np.float32)
        >>> chain = Chain("mine_A", "MKV", ca=atoms, cb=atoms, resolved=np.array([True, True, False]))
        >>> len(chain), chain.sequence
        (3, 'MKV')
    """

    id: str
    sequence: str
    ca: NDArray[np.float32]
    cb: NDArray[np.float32]
    resolved: NDArray[np.bool_]

    def __post_init__(self) -> None:
        L = len(self.sequence)
        shapes = (self.ca.shape, self.cb.shape, self.resolved.shape)
        if shapes != ((L, 3), (L, 3), (L,)):
            raise ValueError(
                f"chain {self.id}: ca, cb and resolved have shapes {shapes}, "
                f"but the sequence has {L} residues: expected ({L}, 3), ({L}, 3) and ({L},)"
            )

    def __len__(self) -> int:
        return len(self.sequence)


@dataclass(frozen=True)
class ContactDefinition:
    """When two residues touch.

    Attributes:
        atom: Between which atoms distances are: virtual C-betas (``cb``) or C-alphas (``ca``).
        below: A contact is a distance strictly below this, in Å: 6 to 12.
    """

    atom: Literal["cb", "ca"] = "cb"
    below: float = 8.0

    def __post_init__(self) -> None:
        if self.atom not in ("cb", "ca") or not 6 <= self.below <= 12:
            raise DataError(
                f"contact: atom {self.atom}, below {self.below} given; atom is cb or ca, and below is 6 to 12 (Å)"
            )

    def __str__(self) -> str:
        return f"{self.atom} < {self.below:g} Å"

    @classmethod
    def from_text(cls, text: str) -> ContactDefinition:
        """Read what :meth:`__str__` gives; another text raises :class:`DataError` or ValueError."""
        atom, _, below, _ = text.split()
        return cls(atom, float(below))  # type: ignore[arg-type]  # checked above


# A complex is one sequence of L residues, one chain after another. The model knows chains apart by positions alone.
CHAIN_JUMP = 200
"""Positions left free between two chains, in residues: more than most helices, strands and loops span, and little
next to the 1,022 residues that ESM2 was trained on."""
SEPARATOR = ":"  # between the sequences of a complex


def chain_numbers(chain_lengths: Sequence[int]) -> NDArray[np.int64]:
    """Number of the chain each residue belongs to, int64 (L,), counted from 0."""
    return np.repeat(np.arange(len(chain_lengths)), chain_lengths)


def chain_spans(chain_lengths: Sequence[int]) -> list[slice]:
    """Where each chain's residues are in the sequence of the complex."""
    return [slice(*ends) for ends in pairwise([0, *accumulate(chain_lengths)])]


def residue_positions(chain_lengths: Sequence[int], jump: int = CHAIN_JUMP) -> NDArray[np.int64]:
    """Position of each residue, int64 (L,): i + ``jump`` · (chain of i), so 0 … L − 1 of a single chain."""
    numbers = chain_numbers(chain_lengths)
    return np.arange(len(numbers)) + jump * numbers


def chain_letters(number: int) -> list[str]:
    """Names for chains that have none: A, B, … Z, AA, AB, …."""
    every = (product(ascii_uppercase, repeat=length) for length in count(1))
    return ["".join(letters) for letters in islice(chain.from_iterable(every), number)]


def split_chains(text: str) -> tuple[str, list[int] | None]:
    """The sequences of ``SEQ1:SEQ2`` one after another, and their lengths; None of a single chain.

    Raises:
        ValueError: A chain has no residue.
    """
    parts = text.split(SEPARATOR)
    if len(parts) > 1 and "" in parts:
        raise ValueError(f"chain {parts.index('') + 1} of {len(parts)} is empty; write chains as SEQ1{SEPARATOR}SEQ2")
    return "".join(parts), [len(part) for part in parts] if len(parts) > 1 else None
