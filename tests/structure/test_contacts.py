"""Virtual C-beta and contact maps against their definitions, written out pair by pair."""

import math

import numpy as np
import pytest
import torch

from contactlm.structure.contacts import contact_labels, contact_map, virtual_cbeta
from tests.structure.made import follow, peptide


def backbone(seed: int, length: int = 40) -> list[np.ndarray]:
    residues = peptide("".join(np.random.default_rng(seed).choice(list("ACDEFGHIKLMNPQRSTVWY"), length)), seed=seed)
    return [np.array([r.xyz[atom] for r in residues]) for atom in ("N", "CA", "C")]


@pytest.mark.parametrize("seed", range(5))
def test_cbeta_has_the_published_internal_coordinates(seed):
    n, ca, c = backbone(seed)
    cb = virtual_cbeta(n, ca, c).astype(np.float64)
    u, v = n - ca, cb - ca
    assert np.allclose(np.linalg.norm(v, axis=1), 1.522, atol=1e-5)
    cosine = (u * v).sum(1) / np.linalg.norm(u, axis=1) / np.linalg.norm(v, axis=1)
    assert np.allclose(np.arccos(cosine), 1.927, atol=1e-5)
    assert np.allclose([dihedral(*four) for four in zip(c, n, ca, cb, strict=True)], -2.143, atol=1e-5)


def dihedral(a, b, c, d):
    axis = (c - b) / np.linalg.norm(c - b)
    first = (a - b) - (a - b) @ axis * axis
    last = (d - c) - (d - c) @ axis * axis
    return math.atan2(np.cross(axis, first) @ last, first @ last)


@pytest.mark.parametrize("seed", range(5))
def test_cbeta_is_the_atom_that_follows_c_n_ca(seed):
    n, ca, c = backbone(seed)
    expected = [follow(*three, 1.522, 1.927, -2.143) for three in zip(c, n, ca, strict=True)]
    assert np.allclose(virtual_cbeta(n, ca, c), expected, atol=1e-5)


def test_cbeta_moves_with_the_backbone():
    n, ca, c = backbone(0)
    rotation, _ = np.linalg.qr(np.random.default_rng(1).normal(size=(3, 3)))
    rotation *= np.linalg.det(rotation)
    moved = virtual_cbeta(*(atom @ rotation.T + [10.0, -20.0, 30.0] for atom in (n, ca, c)))
    assert np.allclose(moved, virtual_cbeta(n, ca, c) @ rotation.T + [10.0, -20.0, 30.0], atol=1e-4)


def test_cbeta_of_an_incomplete_residue_is_its_ca():
    n, ca, c = backbone(0, 6)
    n[1], c[2], ca[3] = np.nan, np.nan, np.nan
    n[4] = ca[4] = c[4]  # no plane, no direction
    n[5], c[5] = ca[5] - [1, 0, 0], ca[5] + [1, 0, 0]
    cb = virtual_cbeta(n, ca, c)
    assert cb.dtype == np.float32
    for i in (1, 2, 4, 5):
        assert np.array_equal(cb[i], ca[i].astype(np.float32))
    assert np.isnan(cb[3]).all()
    assert np.isfinite(cb[[0, 1, 2, 4, 5]]).all()


def slow_map(cb: np.ndarray, threshold: float) -> np.ndarray:
    L = len(cb)
    labels = np.full((L, L), -1)
    for i in range(L):
        for j in range(L):
            if i != j and not np.isnan(cb[i]).any() and not np.isnan(cb[j]).any():
                labels[i, j] = math.dist(cb[i].tolist(), cb[j].tolist()) < threshold
    return labels


@pytest.mark.parametrize(("seed", "threshold"), [(0, 8.0), (1, 6.0), (2, 12.5)])
def test_maps_and_labels_are_as_written_out(seed, threshold):
    rng = np.random.default_rng(seed)
    cb = (rng.normal(size=(3, 30, 3)) * 8 + 500).astype(np.float32)
    cb[0, 4], cb[1, [0, 29]], cb[2, 7, 1] = np.nan, np.nan, np.nan
    expected = np.stack([slow_map(each, threshold) for each in cb])
    assert set(np.unique(expected)) == {-1, 0, 1}
    maps = [contact_map(each, threshold) for each in cb]
    assert all(each.dtype == np.int8 for each in maps)
    assert np.array_equal(maps, expected)
    labels = contact_labels(torch.from_numpy(cb), threshold)
    assert labels.dtype == torch.int8
    assert np.array_equal(labels.numpy(), expected)
    assert np.array_equal(contact_labels(torch.from_numpy(cb[1]), threshold).numpy(), expected[1])


def test_the_threshold_is_strict_and_exact_far_from_the_origin():
    # Offsets of whole numbers are exact in float32; a Gram matrix in float32 would be off by about 0.5 Å here.
    cb = np.array([[0, 0, 0], [8, 0, 0], [0, 7.9990234375, 0], [0, 0, 8.0009765625]], dtype=np.float32) + 4096
    expected = np.array([[-1, 0, 1, 0], [0, -1, 0, 0], [1, 0, -1, 0], [0, 0, 0, -1]])
    assert np.array_equal(contact_map(cb), expected)
    assert np.array_equal(contact_labels(torch.from_numpy(cb)).numpy(), expected)


def test_maps_longer_than_one_block_of_rows():
    cb = np.random.default_rng(0).normal(size=(1100, 3)).astype(np.float32) * 25
    labels = contact_map(cb)
    assert np.array_equal(labels, labels.T)
    assert np.array_equal(labels, contact_labels(torch.from_numpy(cb)).numpy())


def test_labels_leave_the_input_and_need_no_gradient():
    cb = torch.randn(2, 9, 3, requires_grad=True)
    before = cb.detach().clone()
    assert not contact_labels(cb).requires_grad
    assert torch.equal(cb, before)


@pytest.mark.parametrize("shape", [(5,), (5, 4), (2, 2, 5, 3)])
def test_wrong_shapes_are_refused(shape):
    with pytest.raises(ValueError, match="expected"):
        contact_map(np.zeros(shape))
    with pytest.raises(ValueError, match="expected"):
        contact_labels(torch.zeros(shape))


def test_empty_maps():
    assert contact_map(np.zeros((0, 3))).shape == (0, 0)
    assert contact_labels(torch.zeros(4, 0, 3)).shape == (4, 0, 0)
