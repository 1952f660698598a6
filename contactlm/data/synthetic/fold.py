"""Small synthetic proteins: beta hairpins and helices joined by linkers, with sequences that say how they fold.

A hairpin's facing residues are a complementary pair of letters and its turn is a motif, so a model that reads the
sequence can learn which residues touch. The structures are made up; only their local geometry is that of proteins.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from contactlm.structure.contacts import CONTACT_THRESHOLD, virtual_cbeta

Floats = NDArray[np.float64]

# Bond lengths (Å) and angles are the means of Engh & Huber (1991, 2001).
N_CA, CA_C, C_N, C_O = 1.458, 1.525, 1.329, 1.231  # Å
ANGLE_N_CA_C, ANGLE_CA_C_N, ANGLE_C_N_CA, ANGLE_CA_C_O = np.deg2rad((111.0, 117.2, 121.7, 120.5))

MIN_LENGTH = 30
PAIR_OF = dict(zip("VITRYFKEWQ", "IVRTFYEKQW", strict=True))  # facing residues of a hairpin
STRAND_LETTERS = "".join(PAIR_OF)
HELIX_LETTERS = "AAALLLEEEKKMDRQ"
LINKER_LETTERS = "PSSGTDNKE"
PAIR_FIDELITY = 0.9  # the other facing residues are any two strand letters

# phi, psi in degrees. The hairpins' were fitted (least squares on hairpins of 22 residues with the bond lengths and
# angles above) to these distances in Å: at hydrogen-bonded pairs N-O 2.9, H-O 1.95, O-O at least 3.4,
# CA-CA 5.5; at the pairs between them CA-CA 4.5.
HELIX = (-64.0, -43.0)
LINKER = np.array([(-68.0, 148.0), (-118.0, 132.0), (-67.0, -38.0)])  # the first is the one proline takes
SPREAD = {"linker": 12.0, "helix": 2.0, "hairpin": 0.5}  # standard deviation about them, degrees

CA_CLEARANCE = 3.8  # Å, between CA of residues that are not neighbours
ATOM_CLEARANCE = 2.5  # Å, between any of their backbone atoms; a hydrogen bond's N-O is 2.9
_CANDIDATES, _DRAWS = 16, 4


@dataclass(frozen=True)
class Turn:
    """A two-residue turn, and phi, psi of it and of the strands before and after.

    Those of a strand go outwards: the residue that touches the turn, then by turns one between hydrogen bonds and one
    hydrogen-bonded.
    """

    motifs: tuple[str, ...]
    residues: tuple[tuple[float, float], tuple[float, float]]
    before: tuple[tuple[float, float], ...]
    after: tuple[tuple[float, float], ...]


TURNS = (
    Turn(  # type I'
        motifs=("NG", "DG", "HG"),
        residues=((63.9, 24.9), (81.6, -0.6)),
        before=((-138.6, 133.8), (-110.7, 119.4), (-111.3, 137.6)),
        after=((-101.3, 147.8), (-107.6, 128.2), (-124.2, 135.8)),
    ),
    Turn(  # type II'
        motifs=("GN", "GS", "GT"),
        residues=((64.1, -111.8), (-109.9, 9.2)),
        before=((-126.2, 113.4), (-121.1, 119.8), (-115.8, 127.5)),
        after=((-107.8, 133.2), (-125.2, 126.5), (-123.9, 132.4)),
    ),
)


@dataclass(frozen=True, eq=False)
class SyntheticProtein:
    """A sequence and its backbone."""

    sequence: str  # L one-letter codes
    coords: Floats  # (L, 4, 3), Å: atoms N, CA, C, O
    # (kind, first, stop) in chain order, which cover the chain; kinds are linker, helix and hairpin
    segments: tuple[tuple[str, int, int], ...]
    facing: NDArray[np.int64]  # (n, 2), pairs i < j of strand residues that were built to face each other


@dataclass(frozen=True, eq=False)
class Segment:
    """A stretch of chain before it is placed: letters (n) and ideal phi, psi (n, 2), degrees."""

    kind: str
    sequence: str
    torsions: Floats


def synthetic_protein(rng: np.random.Generator, length: int) -> SyntheticProtein:
    """Draw one protein of so many residues; no two of its CA are closer than :data:`CA_CLEARANCE`.

    Raises:
        ValueError: ``length`` is below 30.
    """
    if length < MIN_LENGTH:
        raise ValueError(f"a synthetic protein has at least {MIN_LENGTH} residues, not {length}")
    placed = None
    while placed is None:
        placed = _place(rng, _draw_segments(rng, length))
    return placed


def _draw_segments(rng: np.random.Generator, length: int) -> list[Segment]:
    """Linker, element, linker, element, …, linker: exactly ``length`` residues, the first element a hairpin."""
    left = length - 4  # two residues at either end
    elements: list[Segment] = []
    gaps: list[int] = []
    while True:
        element = _hairpin(rng) if not elements or rng.random() < 0.7 else _helix(rng)
        gap = int(rng.integers(3, 7)) if elements else 0
        if len(element.sequence) + gap > left:
            break
        elements.append(element)
        gaps.append(gap)
        left -= len(element.sequence) + gap
    head = int(rng.integers(0, left + 1))
    gaps[0] = 2 + head
    segments = [part for gap, element in zip(gaps, elements, strict=True) for part in (_linker(rng, gap), element)]
    return [*segments, _linker(rng, 2 + left - head)]


def _hairpin(rng: np.random.Generator) -> Segment:
    turn = TURNS[rng.integers(len(TURNS))]
    n = int(rng.integers(5, 10))  # residues of either strand
    one = [str(rng.choice(list(STRAND_LETTERS))) for _ in range(n)]
    faithful = rng.random(n) < PAIR_FIDELITY
    two = [PAIR_OF[a] if f else str(rng.choice(list(STRAND_LETTERS))) for a, f in zip(one, faithful, strict=True)]
    motif = str(rng.choice(turn.motifs))
    return Segment("hairpin", "".join([*one, motif, *reversed(two)]), hairpin_torsions(turn, n))


def hairpin_torsions(turn: Turn, n: int) -> Floats:
    """Ideal phi, psi of a hairpin with n residues in either strand: (2n + 2, 2), degrees."""
    which = [0 if k == 0 else 1 + (k + 1) % 2 for k in range(n)]
    inwards, outwards = [turn.before[k] for k in reversed(which)], [turn.after[k] for k in which]
    return np.array([*inwards, *turn.residues, *outwards])


def _helix(rng: np.random.Generator) -> Segment:
    n = int(rng.integers(8, 17))
    return Segment("helix", "".join(rng.choice(list(HELIX_LETTERS), n)), np.tile(HELIX, (n, 1)))


def _linker(rng: np.random.Generator, n: int) -> Segment:
    """Letters alone: a linker's torsions are drawn when it is placed."""
    return Segment("linker", "".join(rng.choice(list(LINKER_LETTERS), n)), np.empty((n, 2)))


def _place(rng: np.random.Generator, segments: list[Segment]) -> SyntheticProtein | None:
    """Give the chain coordinates, a linker and the element after it at a time; None when it runs into itself."""
    coords, psi_before = np.empty((0, 4, 3)), 180.0
    bounds: list[tuple[str, int, int]] = []
    for linker, element in zip(segments[::2], [*segments[1::2], _linker(rng, 0)], strict=True):
        for _ in range(_DRAWS):
            phi, psi = _candidate_torsions(rng, linker, element)
            start = end_frame(coords) if len(coords) else None
            blocks = backbone(phi, psi, start, psi_before)
            free, contacts = _examine(coords, blocks, len(linker.sequence))
            if free.any():
                break
        else:
            return None
        chosen = int(np.argmin(np.where(free, contacts, np.inf)))
        for segment in (linker, element):
            first = bounds[-1][2] if bounds else 0
            bounds.append((segment.kind, first, first + len(segment.sequence)))
        coords, psi_before = np.concatenate([coords, blocks[chosen]]), float(psi[chosen, -1])
    hairpins = [(first, stop) for kind, first, stop in bounds if kind == "hairpin"]
    facing = [(first + k, stop - 1 - k) for first, stop in hairpins for k in range((stop - first) // 2 - 1)]
    return SyntheticProtein("".join(s.sequence for s in segments), coords, tuple(bounds[:-1]), np.array(facing))


def _candidate_torsions(rng: np.random.Generator, linker: Segment, element: Segment) -> tuple[Floats, Floats]:
    """Draw phi and psi of a linker and the element after it, each (candidates, n), degrees."""
    state = rng.integers(0, len(LINKER), (_CANDIDATES, len(linker.sequence)))
    state[:, [letter == "P" for letter in linker.sequence]] = 0
    ideal = np.broadcast_to(element.torsions, (_CANDIDATES, *element.torsions.shape))
    torsions = np.concatenate(
        [rng.normal(LINKER[state], SPREAD["linker"]), rng.normal(ideal, SPREAD[element.kind])], axis=1
    )
    return torsions[..., 0], torsions[..., 1]


def _examine(placed: Floats, blocks: Floats, n_linker: int) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """Judge candidate blocks, (candidates, n, 4, 3), against the chain so far and against themselves.

    Gives whether each keeps its distance, and how many contacts besides the element's own it makes, (candidates,).
    """
    n = blocks.shape[1]
    chain = np.concatenate([np.broadcast_to(placed, (len(blocks), *placed.shape)), blocks], axis=1)
    apart = np.abs(np.arange(n)[:, None] + len(placed) - np.arange(n + len(placed))[None, :])
    near = (_squared_distances(blocks[:, :, 1], chain[:, :, 1]) < 9.0**2) & (apart >= 2)
    where, i, j = np.nonzero(near)  # atoms are compared where CA are near: 4 x 4 distances for a few pairs
    one, other = blocks[where, i], chain[where, j]
    bad = np.linalg.norm(one[:, :, None] - other[:, None], axis=-1).min(axis=(1, 2)) < ATOM_CLEARANCE
    bad |= np.linalg.norm(one[:, 1] - other[:, 1], axis=-1) < CA_CLEARANCE
    own = (i >= n_linker) & (j >= len(placed) + n_linker)
    touching = np.linalg.norm(c_beta(one) - c_beta(other), axis=-1) < CONTACT_THRESHOLD
    stray = touching & (apart[i, j] >= 6) & ~own
    return np.bincount(where[bad], minlength=len(blocks)) == 0, np.bincount(where[stray], minlength=len(blocks))


def _squared_distances(one: Floats, other: Floats) -> Floats:
    """(B, n, 3) and (B, m, 3) to (B, n, m), Å²."""
    squares = (one**2).sum(-1)[:, :, None] + (other**2).sum(-1)[:, None, :]
    return squares - 2.0 * one @ other.transpose(0, 2, 1)


def backbone(
    phi: Floats, psi: Floats, start: Floats | None = None, psi_before: float = 180.0, omega: float = 180.0
) -> Floats:
    """Build atoms N, CA, C, O of L residues, float64 (..., L, 4, 3) in Å, from torsions (..., L) in degrees.

    Every atom carries a frame whose x axis is the bond that leads to it; two rotations lead to the next frame.
    ``start`` is the frame of the C atom before residue 0 as :func:`end_frame` gives it, ``psi_before`` psi of that
    residue.
    """
    coords = np.empty((*phi.shape, 4, 3))
    batch = phi.shape[:-1]
    axes, at = np.broadcast_to(np.eye(3), (*batch, 3, 3)), np.zeros((*batch, 3))
    if start is not None:
        axes, at = start[..., :3, :], start[..., 3, :]
    step_n = _rotation(np.concatenate([np.full_like(psi[..., :1], psi_before), psi[..., :-1]], -1), ANGLE_CA_C_N)
    step_ca = _rotation(np.full_like(psi, omega), ANGLE_C_N_CA)
    step_c = _rotation(phi, ANGLE_N_CA_C)
    step_o = _rotation(psi + 180.0, ANGLE_CA_C_O)
    for i in range(phi.shape[-1]):
        for atom, (step, length) in enumerate(((step_n, C_N), (step_ca, N_CA), (step_c, CA_C))):
            axes = step[..., i, :, :] @ axes
            at = at + length * axes[..., 0, :]
            coords[..., i, atom, :] = at
        coords[..., i, 3, :] = at + C_O * (step_o[..., i, :, :] @ axes)[..., 0, :]
    return coords


def end_frame(coords: Floats) -> Floats:
    """The frame (..., 4, 3) of the last C atom of a backbone: three unit axes (rows), then the position in Å."""
    n, ca, c = (coords[..., -1, atom, :] for atom in range(3))
    x, z = (v / np.linalg.norm(v, axis=-1, keepdims=True) for v in (c - ca, np.cross(ca - n, c - ca)))
    return np.stack([x, np.cross(z, x), z, c], axis=-2)


def c_beta(coords: Floats) -> Floats:
    """Virtual C-beta of every residue: (..., L, 4, 3) to (..., L, 3), Å."""
    n, ca, c = (coords[..., atom, :].reshape(-1, 3) for atom in range(3))
    return virtual_cbeta(n, ca, c).astype(np.float64).reshape(*coords.shape[:-2], 3)


def with_cb(coords: Floats) -> Floats:
    """Append the virtual C-beta to every residue's atoms: (..., L, 4, 3) to (..., L, 5, 3), Å."""
    return np.concatenate([coords, c_beta(coords)[..., None, :]], axis=-2)


def _rotation(torsion: Floats, angle: float) -> Floats:
    """Rows are the next frame's axes in the coordinates of this one: turn by the torsion, then by pi - angle."""
    chi = np.deg2rad(torsion)
    cos, sin = np.cos(chi), np.sin(chi)
    along, across = -np.cos(angle), np.sin(angle)
    x = np.stack([np.full_like(chi, along), across * cos, across * sin], axis=-1)
    y = np.stack([np.full_like(chi, -across), along * cos, along * sin], axis=-1)
    return np.stack([x, y, np.stack([np.zeros_like(chi), -sin, cos], axis=-1)], axis=-2)
