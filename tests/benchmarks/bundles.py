"""Long synthetic proteins with contacts at every range: a bundle of two-stranded ladders, visited out of order.

    python tests/benchmarks/bundles.py FOLDER [--kind bundle] [--n_train 160] [--n_test 24]
        [--min_length 300] [--max_length 1200] [--seed 0]

The ladders stand on a lattice of two rows. The chain goes up one ladder's first strand and down the second strand of
the same or of a nearby ladder, along one row and back along the other, so that the two strands of a ladder may be 2 or
1,000 residues apart in the sequence. What tells which strands belong together is their address: letters that recur
within a strand and whose partners recur in the other. Letters, the order they recur in, and loops are a style:
`loose_bundle` has another alphabet, another order of letters and longer loops, to see whether a result holds.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parents[2]))
from contactlm.atomic import atomic_file
from contactlm.data.synthetic.fold import (
    ATOM_CLEARANCE,
    CA_CLEARANCE,
    TURNS,
    Floats,
    SyntheticProtein,
    backbone,
    end_frame,
    hairpin_torsions,
    with_cb,
)
from contactlm.data.synthetic.write import MANIFEST, SPLITS, pdb_text, rng_of
from contactlm.structure.contacts import BOND_LENGTH as CA_CB
from contactlm.structure.contacts import CONTACT_THRESHOLD

STRAND = 9  # residues of every strand
SPACING = 20.0  # Å between neighbouring ladders
FIDELITY = 0.95  # the other strand residues carry any letter of a strand
MIN_LENGTH = 150

_VARIANTS, _VARIANTS_TRIED, _TRIES = 48, 16, 128
_NEAR = 4  # sites: loops that start farther apart do not meet

# phi, psi that loops start from, degrees: polyproline, extended, helical
REGIONS = np.array([(-68.0, 148.0), (-118.0, 132.0), (-67.0, -38.0)])

_STEPS = 40
_DAMPING = 0.1  # Å, keeps steps small where the chain is stretched out
_LARGEST_STEP = 20.0  # degrees
_TOLERANCE = 2e-3  # Å, on each anchor atom


@dataclass(frozen=True, eq=False)
class Style:
    """What the proteins of one world have in common.

    Attributes:
        name: What ``kind`` calls it.
        hydrophobic: Letters of strands, and the partner of each.
        polar: Likewise; the two kinds take turns along a strand.
        address: Which of the four letters of an address stands where in a strand.
        loop: Letters of loops; proline first.
        turns: The two letters of a turn.
        slack: Residues of the shortest loops over what their distance asks for.
        residues_per_ladder: On average, loops included.
    """

    name: str
    hydrophobic: Mapping[str, str]
    polar: Mapping[str, str]
    address: tuple[int, ...]
    loop: str
    turns: tuple[str, ...]
    slack: int
    residues_per_ladder: float

    @property
    def pairs(self) -> dict[str, str]:
        """All letters of strands, and the partner of each."""
        return {**self.hydrophobic, **self.polar}


BUNDLE = Style(
    "bundle",
    dict(zip("VIFYML", "IVYFLM", strict=True)),
    dict(zip("TRKEQH", "RTEKHQ", strict=True)),
    (0, 1, 0, 1, 2, 3, 2, 3, 2),
    "PSGDNA",
    TURNS[0].motifs,
    0,
    39.0,
)
LOOSE_BUNDLE = Style(
    "loose_bundle",
    dict(zip("ALWCMF", "LACWFM", strict=True)),
    dict(zip("NSDRQT", "SNRDTQ", strict=True)),
    (0, 1, 2, 3, 0, 1, 2, 3, 0),
    "PGEHKY",
    ("KG", "EG", "HG"),
    4,
    45.0,
)
STYLES = {style.name: style for style in (BUNDLE, LOOSE_BUNDLE)}


class Site(NamedTuple):
    """A site of the lattice: column along the rows, and row 0 or 1."""

    column: int
    row: int


def bundle_protein(rng: np.random.Generator, length: int, style: Style = BUNDLE) -> SyntheticProtein:
    """Draw one long protein.

    Args:
        rng: Where all chance comes from.
        length: Residues to aim at, at least 150; met within about a tenth, as ladders come in pairs.
        style: Its letters and loops.

    Returns:
        The protein; its segments are ``strand`` and ``loop``.

    Raises:
        ValueError: ``length`` is below 150.
    """
    if length < MIN_LENGTH:
        raise ValueError(f"a bundle has at least {MIN_LENGTH} residues, not {length}")
    columns = max(2, round(length / (2 * style.residues_per_ladder)))
    while True:
        up, down = _visits(rng, columns)
        loops = _choose_loops(rng, up, down, style.slack)
        if loops is not None:
            return _assemble(rng, up, down, loops, style)


# -- the way of the chain --------------------------------------------------------------------------------------------


def _visits(rng: np.random.Generator, columns: int) -> tuple[list[Site], list[Site]]:
    """In which order the chain goes up the sites, and in which order it comes down them.

    Up: along one row and back along the other. Down: the same, except that the two sites of a column, or two
    neighbours of a row, may be exchanged; the nearer to the start of the chain, the farther apart a column's two are.
    """
    up = [Site(column, 0) for column in range(columns)] + [Site(column, 1) for column in reversed(range(columns))]
    order = list(range(2 * columns))
    column = 0
    while column < columns:
        back = 2 * columns - 1 - column
        kind = rng.random()
        if kind < 0.6:
            order[column], order[back] = back, column
        elif kind < 0.85 and column + 1 < columns:
            order[column], order[column + 1] = column + 1, column
            order[back], order[back - 1] = back - 1, back
            column += 1
        column += 1
    return up, [up[k] for k in order]


# -- loops between fixed ends: torsions that bring a chain from one residue to another, many loops at a time ---------


@dataclass(frozen=True, eq=False)
class Loop:
    """One closed loop of n residues.

    Attributes:
        coords: float64 (n, 4, 3), Å: atoms N, CA, C, O.
        phi: float64 (n,), degrees: what a letter must allow.
    """

    coords: Floats
    phi: Floats

    def moved(self, by: Floats) -> Loop:
        """The same loop elsewhere; ``by`` is a vector (3,), Å."""
        return Loop(self.coords + by, self.phi)


def close_loops(
    rng: np.random.Generator, start: Floats, psi_before: float, anchor: Floats, n: int, tries: int
) -> list[Loop]:
    """Find loops of n residues from one fixed residue to the next.

    From random torsions of the usual regions, damped least squares moves all of them at once until N, CA and C of the
    residue after the loop lie where they must. An atom x turned about a bond of axis u through o moves by u × (x − o).

    Args:
        rng: Draws the torsions to start from.
        start: Frame of the C atom before the loop, (4, 3); see :func:`~contactlm.data.synthetic.fold.end_frame`.
        psi_before: psi of the residue before the loop, degrees.
        anchor: N, CA, C of the residue after the loop, (3, 3), Å.
        n: Residues of the loop.
        tries: Loops to start.

    Returns:
        Those that closed within 0.002 Å and whose phi are such as real proteins have: −170 to −40 degrees, except two
        residues at most.
    """
    torsions = REGIONS[rng.integers(0, len(REGIONS), (tries, n + 1))] + rng.normal(0.0, 15.0, (tries, n + 1, 2))
    for _ in range(_STEPS):
        coords = backbone(torsions[..., 0], torsions[..., 1], start, psi_before)
        miss = (anchor - coords[:, -1, :3]).reshape(tries, 9)
        step = np.rad2deg(_damped_step(_jacobian(coords), miss))
        step *= _LARGEST_STEP / np.maximum(_LARGEST_STEP, np.abs(step).max(axis=1, keepdims=True))
        torsions += np.concatenate([step, np.zeros((tries, 1))], axis=1).reshape(tries, n + 1, 2)
    torsions = (torsions + 180.0) % 360.0 - 180.0
    coords = backbone(torsions[..., 0], torsions[..., 1], start, psi_before)
    closed = np.linalg.norm(coords[:, -1, :3] - anchor, axis=-1).max(axis=1) < _TOLERANCE
    odd = (torsions[..., 0] > -40.0) | (torsions[..., 0] < -170.0)
    usable = closed & ~odd[:, -1] & (odd.sum(axis=1) <= 2)
    return [Loop(coords[k, :-1], torsions[k, :-1, 0]) for k in np.flatnonzero(usable)]


def _jacobian(coords: Floats) -> Floats:
    """How N, CA, C of the last residue move with each torsion but its psi: (tries, 9, 2n + 1), Å per rad."""
    n, ca, c = (coords[:, :, atom] for atom in range(3))
    origins = np.stack([n, ca], axis=2).reshape(len(coords), -1, 3)[:, :-1]  # phi, psi, phi, psi, …, phi
    axes = np.stack([ca - n, c - ca], axis=2).reshape(len(coords), -1, 3)[:, :-1]
    axes = axes / np.linalg.norm(axes, axis=-1, keepdims=True)
    anchors = coords[:, -1, None, :3]
    moves = np.cross(axes[:, :, None], anchors - origins[:, :, None])  # (tries, 2n + 1, 3 atoms, 3)
    return moves.reshape(*moves.shape[:2], 9).transpose(0, 2, 1)


def _damped_step(jacobian: Floats, miss: Floats) -> Floats:
    """The smallest change of torsions that mends the miss, damped: Jᵀ (J Jᵀ + λ²)⁻¹ miss, rad."""
    normal: NDArray[np.float64] = jacobian @ jacobian.transpose(0, 2, 1) + _DAMPING**2 * np.eye(9)
    return (jacobian.transpose(0, 2, 1) @ np.linalg.solve(normal, miss[..., None]))[..., 0]


# -- geometry --------------------------------------------------------------------------------------------------------


@cache
def _ladder() -> tuple[Floats, Floats, float, float]:
    """Both strands of a ladder about the y axis, (2, STRAND, 4, 3) in chain direction, and the turn that joins them.

    Returns:
        The strands; the turn's two residues (2, 4, 3); psi of the last residue of either strand.
    """
    turn = TURNS[0]
    torsions = hairpin_torsions(turn, STRAND)
    coords = backbone(torsions[:, 0], torsions[:, 1])
    ca = coords[:, 1]
    middle = (ca[:STRAND] + ca[::-1][:STRAND]) / 2
    y = middle[-1] - middle[0]
    across = ca[STRAND // 2] - ca[::-1][STRAND // 2]
    z = np.cross(across, y)
    x = np.cross(y, z)
    axes = np.stack([axis / np.linalg.norm(axis) for axis in (x, y, z)])
    coords = (coords - middle.mean(axis=0)) @ axes.T
    strands = np.stack([coords[:STRAND], coords[STRAND + 2 :]])
    return strands, coords[STRAND : STRAND + 2], float(torsions[STRAND - 1, 1]), float(torsions[-1, 1])


def _at(site: Site) -> Floats:
    return SPACING * np.array([site.column, 0.0, site.row])


@cache
def _loop_library(strand: int, columns: int, rows: int, slack: int) -> tuple[Loop, ...]:
    """Loops from the end of a strand at one site to the start of the other strand, some sites away.

    They keep clear of the ladders of every site around, so that only loops can be in each other's way.
    """
    strands, turn, *psi = _ladder()
    if (strand, columns, rows) == (0, 0, 0):
        return (Loop(turn, np.array([phi for phi, _ in TURNS[0].residues])),)
    decided_by = (strand, columns + 8, rows + 8) if slack == 0 else (strand, columns + 8, rows + 8, slack)
    rng = np.random.Generator(np.random.Philox(np.random.SeedSequence(decided_by)))
    anchor = strands[1 - strand, 0, :3] + _at(Site(columns, rows))
    distance = float(np.linalg.norm(anchor[0] - strands[strand, -1, 2]))
    shortest = 3 + int(np.ceil(distance / 3.3)) + slack
    sites = [Site(c, r) for c in range(-3, 4) for r in range(-1, 2)]
    ladders = np.concatenate([strands.reshape(-1, 4, 3) + _at(site) for site in sites])
    before, after = strands[strand, -1:], strands[1 - strand, :1] + _at(Site(columns, rows))
    bonded = np.concatenate([before, after])[:, 1]
    ladders = ladders[np.linalg.norm(ladders[:, None, 1] - bonded, axis=-1).min(axis=1) > 0.1]
    ladders = with_cb(ladders)
    found: list[tuple[int, Loop]] = []
    for n in range(shortest, shortest + 4):
        loops = close_loops(rng, end_frame(strands[strand]), psi[strand], anchor, n, _TRIES)
        for loop in loops:
            stray, overlap = _stray_contacts(with_cb(loop.coords), ladders)
            if len(overlap) == 0 and _is_unknotted(np.concatenate([before, loop.coords, after])):
                found.append((len(stray), loop))
    found.sort(key=lambda pair: pair[0])
    return tuple(loop for _, loop in found[:_VARIANTS])


def _is_unknotted(coords: Floats) -> bool:
    """Whether no two residues that are not neighbours overlap; (n, 4, 3), Å."""
    atoms = coords.reshape(-1, 3)
    residue = np.repeat(np.arange(len(coords)), 4)
    apart = np.abs(residue[:, None] - residue) >= 2
    distances = np.linalg.norm(atoms[:, None] - atoms, axis=-1)
    between_ca = distances[1::4, 1::4][apart[1::4, 1::4]]
    return bool(distances[apart].min() >= ATOM_CLEARANCE and between_ca.min() >= CA_CLEARANCE)


def _stray_contacts(one: Floats, other: Floats) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Where two sets of residues, (n, 5, 3) and (m, 5, 3) with C-beta last, Å, meet.

    Returns:
        For every contact between them the index of the second residue; and for every overlap.
    """
    i, j = np.nonzero(((one[:, None, 1] - other[None, :, 1]) ** 2).sum(-1) < (CONTACT_THRESHOLD + 2 * CA_CB) ** 2)
    first, second = one[i], other[j]
    overlap = ((first[:, :4, None] - second[:, None, :4]) ** 2).sum(-1).min(axis=(1, 2)) < ATOM_CLEARANCE**2
    overlap |= ((first[:, 1] - second[:, 1]) ** 2).sum(-1) < CA_CLEARANCE**2
    touching = ((first[:, 4] - second[:, 4]) ** 2).sum(-1) < CONTACT_THRESHOLD**2
    return j[touching], j[overlap]


def _choose_loops(rng: np.random.Generator, up: list[Site], down: list[Site], slack: int) -> list[Loop] | None:
    """One loop, placed, for every step of the way, none of which runs into another.

    Loops are placed in random order, each the variant that touches the others least. One that finds no room takes it:
    the loops in its way are placed again. None when that does not end.
    """
    way = [site for pair in zip(up, down, strict=True) for site in pair]
    waiting = [int(k) for k in rng.permutation(len(way) - 1)]
    placed: dict[int, Loop] = {}
    for _ in range(20 * len(way)):
        if not waiting:
            return [placed[k] for k in range(len(way) - 1)]
        k = waiting.pop(0)
        near = [m for m in placed if m % 2 == k % 2 and np.abs(_at(way[m]) - _at(way[k])).max() <= _NEAR * SPACING]
        library = _loop_library(k % 2, way[k + 1].column - way[k].column, way[k + 1].row - way[k].row, slack)
        if not library:
            return None
        variants = [library[v] for v in rng.permutation(len(library))[:_VARIANTS_TRIED]]
        loop, in_the_way = _best_variant([v.moved(_at(way[k])) for v in variants], {m: placed[m] for m in near})
        for m in in_the_way:
            del placed[m]
            waiting.append(m)
        placed[k] = loop
    return None


def _best_variant(variants: list[Loop], placed: dict[int, Loop]) -> tuple[Loop, list[int]]:
    """The variant that overlaps the fewest placed loops, then touches them least; and which ones it overlaps."""
    owner = np.repeat(list(placed), [len(loop.phi) for loop in placed.values()]).astype(int)
    obstacles = np.concatenate([np.empty((0, 5, 3)), *(with_cb(loop.coords) for loop in placed.values())])
    met = [_stray_contacts(with_cb(loop.coords), obstacles) for loop in variants]
    in_the_way = [np.unique(owner[overlap]).tolist() for _, overlap in met]
    costs = [(len(owners), len(stray)) for owners, (stray, _) in zip(in_the_way, met, strict=True)]
    best = min(range(len(variants)), key=costs.__getitem__)
    return variants[best], in_the_way[best]


# -- sequence --------------------------------------------------------------------------------------------------------


def _addresses(rng: np.random.Generator, count: int, style: Style) -> list[str]:
    """Different addresses of four letters: hydrophobic and polar by turns."""
    hydrophobic, polar = list(style.hydrophobic), list(style.polar)
    found: dict[str, None] = {}
    while len(found) < count:
        found["".join(str(rng.choice(letters)) for letters in (hydrophobic, polar) * 2)] = None
    return list(found)


def _strand_sequences(rng: np.random.Generator, address: str, style: Style) -> tuple[str, str]:
    """The two strands of a ladder: residue k of the first faces residue STRAND − 1 − k of the second."""
    one = [address[k] for k in style.address]
    two = [style.pairs[letter] for letter in reversed(one)]
    strands = []
    for strand in (one, two):
        kept = rng.random(STRAND) < FIDELITY
        strands.append(
            "".join(a if keep else str(rng.choice(list(style.pairs))) for a, keep in zip(strand, kept, strict=True))
        )
    return strands[0], strands[1]


def _loop_sequence(rng: np.random.Generator, loop: Loop, is_turn: bool, style: Style) -> str:
    """Letters that allow the loop's phi: glycine alone where it is unusual, proline only near −65 degrees."""
    if is_turn:
        return str(rng.choice(style.turns))
    letters = []
    for phi in loop.phi:
        allowed = "G" if not -170.0 <= phi <= -40.0 else style.loop if -90.0 < phi < -50.0 else style.loop[1:]
        letters.append(str(rng.choice(list(allowed))))
    return "".join(letters)


def _assemble(
    rng: np.random.Generator, up: list[Site], down: list[Site], loops: list[Loop], style: Style
) -> SyntheticProtein:
    strands, *_ = _ladder()
    addresses = _addresses(rng, len(up), style)
    sequences = {site: _strand_sequences(rng, address, style) for site, address in zip(up, addresses, strict=True)}
    way = [(kind, site) for pair in zip(up, down, strict=True) for kind, site in enumerate(pair)]
    sequence, parts = "", []
    segments: list[tuple[str, int, int]] = []
    first: dict[tuple[int, Site], int] = {}
    for k, (kind, site) in enumerate(way):
        first[kind, site] = len(sequence)
        pieces = [("strand", sequences[site][kind], strands[kind] + _at(site))]
        if k < len(loops):
            is_turn = kind == 0 and way[k + 1][1] == site
            pieces.append(("loop", _loop_sequence(rng, loops[k], is_turn, style), loops[k].coords))
        for name, letters, coords in pieces:
            segments.append((name, len(sequence), len(sequence) + len(letters)))
            sequence += letters
            parts.append(coords)
    pairs = [(first[0, site] + k, first[1, site] + STRAND - 1 - k) for site in up for k in range(STRAND)]
    return SyntheticProtein(sequence, np.concatenate(parts), tuple(segments), np.sort(pairs, axis=1))


# -- files -----------------------------------------------------------------------------------------------------------


def nth_bundle(
    kind: str, split: str, index: int, min_length: int = 300, max_length: int = 1200, seed: int = 0
) -> SyntheticProtein:
    """Draw one protein of a set: a pure function of its arguments."""
    rng = rng_of(seed, split, index)
    return bundle_protein(rng, int(rng.integers(min_length, max_length + 1)), STYLES[kind])


def write_bundles(
    folder: Path,
    kind: str = "bundle",
    n_train: int = 160,
    n_test: int = 24,
    min_length: int = 300,
    max_length: int = 1200,
    seed: int = 0,
) -> tuple[Path, Path]:
    """Write the proteins that are not there yet, a second or two each; the folders of training and test files."""
    for split, count in zip(SPLITS, (n_train, n_test), strict=True):
        (folder / split).mkdir(parents=True, exist_ok=True)
        for index in range(count):
            path = folder / split / f"{split}{index:05d}.pdb"
            if not path.exists():
                protein = nth_bundle(kind, split, index, min_length, max_length, seed)
                made_by = f"KIND {kind.upper()}, {min_length} TO {max_length} RESIDUES"
                with atomic_file(path) as handle:
                    handle.write(pdb_text(protein, split, index, seed, made_by).encode("ascii"))
    recipe = {"kind": kind, "n_train": n_train, "n_test": n_test, "min_length": min_length, "max_length": max_length}
    (folder / MANIFEST).write_text(json.dumps({**recipe, "seed": seed}, indent=1))  # says that they are synthetic
    return folder / "train", folder / "test"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kind", default="bundle", choices=STYLES)
    for name, default in (("n_train", 160), ("n_test", 24), ("min_length", 300), ("max_length", 1200), ("seed", 0)):
        parser.add_argument(f"--{name}", type=int, default=default)
    write_bundles(**vars(parser.parse_args()))


if __name__ == "__main__":
    main()
