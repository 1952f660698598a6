"""Loops between fixed ends: torsions that bring a chain from one residue to another, many loops at a time."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from contactlm.data.synthetic.geometry import Floats, backbone

# phi, psi that loops start from, degrees: polyproline, extended, helical
REGIONS = np.array([(-68.0, 148.0), (-118.0, 132.0), (-67.0, -38.0)])

_STEPS = 40
_DAMPING = 0.1  # Å, keeps steps small where the chain is stretched out
_LARGEST_STEP = 20.0  # degrees
_TOLERANCE = 2e-3  # Å, on each anchor atom


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
        start: Frame of the C atom before the loop, (4, 3); see :func:`~contactlm.data.synthetic.geometry.end_frame`.
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
