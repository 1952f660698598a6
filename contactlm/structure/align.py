"""Align observed residues with the full sequence of their chain."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from contactlm.alphabet import UNKNOWN_LETTER

MAX_CELLS = 1 << 24
"""Largest alignment tried, in observed times full residues (about 200 MB); ordinary chains of any size need none."""

_FIRST = 16  # residues that decide where comparing the whole chain is worth it

_MATCH, _UNKNOWN, _MISMATCH = 5.0, 1.0, -4.0
_INSERTED = -10.0  # an observed residue that the full sequence lacks
_SKIP_AT_BREAK, _SKIP_AT_BOND = -2.0, -12.0  # residues of the full sequence left out between two observed ones
_NUMBERED = 2.0  # a step that is that of the residue numbers


@dataclass(frozen=True)
class Observed:
    """The observed residues of a chain.

    Attributes:
        letters: M one-letter codes.
        numbers: Author residue numbers, int64 (M,).
        linked: Whether a peptide bond links a residue to the next, bool (M - 1,).
    """

    letters: str
    numbers: NDArray[np.intp]
    linked: NDArray[np.bool_]


def align_observed(observed: Observed, full: str) -> NDArray[np.intp]:
    """Find where in the full sequence every observed residue stands.

    Bonded residues are neighbours, others as far apart as their numbers say; mostly one shift of that fits all
    letters. Otherwise (the full sequence disagrees with the coordinates, or the numbers jump) an alignment decides,
    in which gaps cost little where the chain is broken.

    Returns:
        0-based positions (M,), increasing; or -1 - k for a residue that the full sequence lacks before its k-th.
    """
    positions = _by_numbers(observed, full)
    return _by_alignment(observed, full) if positions is None else positions


def agreement(letters: str, full: str, positions: NDArray[np.intp]) -> float:
    """Return the fraction of the observed residues of known type that have the same letter in the full sequence."""
    known = [(a, int(at)) for a, at in zip(letters, positions, strict=True) if a != UNKNOWN_LETTER]
    return sum(at >= 0 and full[at] == a for a, at in known) / len(known) if known else 1.0


def merge(letters: str, full: str, positions: NDArray[np.intp]) -> tuple[str, NDArray[np.intp]]:
    """Bring observed residues into the full sequence: they replace what differs, and are inserted where it lacks them.

    Args:
        letters: M observed letters; X replaces nothing.
        full: The full sequence.
        positions: (M,), as :func:`align_observed` returns them.

    Returns:
        The resulting sequence and the 0-based positions of the observed residues in it, (M,).
    """
    merged = list(full)
    inserted: dict[int, list[int]] = {}  # by position in full: observed residues that go before it
    for i, at in enumerate(positions.tolist()):
        if at < 0:
            inserted.setdefault(-1 - at, []).append(i)
        elif letters[i] != UNKNOWN_LETTER:
            merged[at] = letters[i]
    if not inserted:
        return "".join(merged), positions
    shift = np.zeros(len(full) + 1, dtype=np.intp)
    moved = positions.copy()
    for at in sorted(inserted, reverse=True):
        merged[at:at] = [letters[i] for i in inserted[at]]
        shift[at] = len(inserted[at])
    before = np.cumsum(shift)
    moved[positions >= 0] += before[positions[positions >= 0]]
    for at, residues in inserted.items():
        moved[residues] = at + before[at] - len(residues) + np.arange(len(residues))
    return "".join(merged), moved


def _codes(letters: str) -> NDArray[np.uint8]:
    return np.frombuffer(letters.encode("ascii"), dtype=np.uint8)


def _by_numbers(observed: Observed, full: str) -> NDArray[np.intp] | None:
    offsets = np.concatenate([[0], np.cumsum(np.where(observed.linked, 1, np.diff(observed.numbers)))])
    last_start = len(full) - 1 - int(offsets[-1])
    if last_start < 0 or (np.diff(offsets) < 1).any():
        return None
    target, letters = _codes(full), _codes(observed.letters)
    starts = np.arange(last_start + 1)
    for offset, letter in zip(offsets[:_FIRST].tolist(), letters[:_FIRST].tolist(), strict=True):
        starts = starts[target[starts + offset] == letter]
    usual = int(observed.numbers[0]) - 1  # of several that fit, the one of a numbering from 1
    for start in sorted(starts.tolist(), key=lambda start: start != usual):
        if np.array_equal(target[start + offsets], letters):
            return start + offsets
    return None


def _by_alignment(observed: Observed, full: str) -> NDArray[np.intp]:
    """Align globally with free ends; -1 - k for an observed residue that the full sequence lacks before its k-th."""
    M, L = len(observed.letters), len(full)
    if M * L > MAX_CELLS:
        raise ValueError(
            f"{M} observed residues disagree with the {L} of the full sequence (SEQRES), too many to align"
        )
    steps = np.diff(observed.numbers)
    # matched[i, k]: best score with residue i at full[k - 1]; inserted[i, k]: between full[k - 1] and full[k].
    matched = np.full((M, L + 1), -np.inf, dtype=np.float32)
    inserted = np.empty((M, L + 1), dtype=np.float32)
    similarity = {letter: _similarity(letter, full) for letter in set(observed.letters)}
    matched[0, 1:] = similarity[observed.letters[0]]
    inserted[0] = _INSERTED
    for i in range(1, M):
        best = np.maximum(matched[i - 1], inserted[i - 1])
        arrival = _arrival(best, bool(observed.linked[i - 1]), int(steps[i - 1]))
        matched[i, 1:] = similarity[observed.letters[i]] + arrival.max(axis=0)
        inserted[i] = best + _INSERTED
    return _trace(observed, matched, inserted, steps)


def _similarity(letter: str, full: str) -> NDArray[np.float32]:
    target = _codes(full)
    score = np.where(target == ord(letter), _MATCH, _MISMATCH)
    unknown = (target == ord(UNKNOWN_LETTER)) | (letter == UNKNOWN_LETTER)
    return np.where(unknown, _UNKNOWN, score).astype(np.float32)


def _arrival(best: NDArray[np.float32], linked: bool, step: int) -> NDArray[np.float32]:
    """Score the three ways to each position of full: from the one before, over a gap, over the gap of the numbers.

    Args:
        best: Scores of the previous residue by how much of full it leaves behind, (L + 1,).
        linked: Whether a peptide bond links the previous residue to this one.
        step: By how much the residue number grows.

    Returns:
        float32 (3, L).
    """
    L = len(best) - 1
    skip = _SKIP_AT_BOND if linked else _SKIP_AT_BREAK
    ways = np.full((3, L), -np.inf, dtype=np.float32)
    ways[0] = best[:-1] + (_NUMBERED if step == 1 else 0.0)
    ways[1, 1:] = np.maximum.accumulate(best[:-2]) + skip
    if 1 < step <= L:
        ways[2, step - 1 :] = best[: L + 1 - step] + skip + _NUMBERED
    return ways


def _trace(
    observed: Observed, matched: NDArray[np.float32], inserted: NDArray[np.float32], steps: NDArray[np.intp]
) -> NDArray[np.intp]:
    M = len(matched)
    positions = np.empty(M, dtype=np.intp)
    best = np.maximum(matched, inserted)
    k = int(best[-1].argmax())
    for i in range(M - 1, -1, -1):
        if inserted[i, k] > matched[i, k]:
            positions[i] = -1 - k
            continue
        positions[i] = k - 1
        if i > 0:
            way = int(_arrival(best[i - 1], bool(observed.linked[i - 1]), int(steps[i - 1]))[:, k - 1].argmax())
            if way == 0:
                k -= 1
            elif way == 2:
                k -= int(steps[i - 1])
            else:
                k = int(best[i - 1, : k - 1].argmax())
    return positions
