"""The categorical Jacobian: against the published double loop, at any length, whole again after a killed process."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from contactlm.alphabet import MASK, PAD, encode
from contactlm.maps import categorical_jacobian
from contactlm.maps.jacobian import AMINO_ACIDS, JacobianOptions, jacobian_maps
from contactlm.maps.windows import WindowOptions
from contactlm.types import DataError, ModelError
from tests.conftest import random_sequence


class MadeModel:
    """Mixes all tokens, attends to positions, and knows neither order of a batch nor padding; float64, 33 letters."""

    def __init__(self, seed: int = 0, dtype: torch.dtype = torch.float64) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.embed, self.out, self.mix = (
            torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in ((33, 12), (12, 33), (12, 12))
        )
        self.dtype, self.shapes, self.limit = dtype, list[tuple[int, int]](), None

    def __call__(self, tokens: Tensor, attention_mask: Tensor, positions: Tensor | None) -> Tensor:
        self.shapes.append(tuple(tokens.shape))
        if self.limit is not None and sum(B for B, _ in self.shapes) > self.limit:
            raise KeyboardInterrupt
        assert torch.equal(attention_mask, tokens != PAD)
        where = torch.arange(tokens.shape[1]).expand(tokens.shape) if positions is None else positions
        x = self.embed[tokens]
        far = (where[:, :, None] - where[:, None, :]).abs().double()
        scores = (x @ self.mix @ x.mT) / 6 - 0.05 * far
        scores = scores.masked_fill(~attention_mask[:, None], -torch.inf)
        x = torch.tanh(x + scores.softmax(-1) @ x @ self.mix)
        return (x @ self.out).to(self.dtype)


def published(model, tokens: Tensor, symmetrise: str, masked: bool = False) -> np.ndarray:
    """One position and substitution after another, everything stored, as the papers' scripts do it."""
    L = len(tokens)

    def logits(residues: Tensor) -> np.ndarray:
        ends = torch.tensor([0]), torch.tensor([2])
        row = torch.cat([ends[0], residues, ends[1]])[None]
        return model(row, row != PAD, None)[0, 1:-1].double().numpy()[:, list(AMINO_ACIDS)]

    wild_type = logits(tokens)
    letters = [MASK] if masked else AMINO_ACIDS
    jacobian = np.zeros((L, len(letters), L, 20))
    for i in range(L):
        for a, letter in enumerate(letters):
            changed = tokens.clone()
            changed[i] = letter
            jacobian[i, a] = logits(changed) - wild_type
    for axis in range(4):
        if jacobian.shape[axis] > 1:
            jacobian -= jacobian.mean(axis, keepdims=True)
    if symmetrise == "before":
        jacobian = (jacobian + jacobian.transpose(2, 3, 0, 1)) / 2
    norms = np.zeros((L, L))
    for i in range(L):
        for j in range(L):
            norms[i, j] = 0 if i == j else np.sqrt((jacobian[i, :, j] ** 2).sum())
    if norms.sum() > 0:
        norms = norms - norms.sum(0, keepdims=True) * norms.sum(1, keepdims=True) / norms.sum()
    np.fill_diagonal(norms, 0)
    return (norms + norms.T) / 2


def residues(length: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(encode(random_sequence(seed, length))).long()


@pytest.mark.parametrize("symmetrise", ["before", "after"])
@pytest.mark.parametrize("length", [1, 2, 3, 11, 16])
def test_equal_to_the_published_loop(length: int, symmetrise: str) -> None:
    for seed in range(2):
        model, tokens = MadeModel(seed), residues(length, seed)
        scores = categorical_jacobian(model, tokens, symmetrise)
        assert scores.dtype == torch.float64
        np.testing.assert_allclose(scores.numpy(), published(model, tokens, symmetrise), rtol=0, atol=1e-10)


def test_masked_is_the_loop_over_masks() -> None:
    model, tokens = MadeModel(), residues(13)
    scores = categorical_jacobian(model, tokens, masked=True)
    np.testing.assert_allclose(scores.numpy(), published(model, tokens, "after", masked=True), rtol=0, atol=1e-10)
    assert sum(B for B, _ in model.shapes) - 14 == 14  # a forward a position and the wild type, in both


def test_letters_that_are_no_amino_acids() -> None:
    model, tokens = MadeModel(), torch.from_numpy(encode("MXKUBZOAXXV")).long()
    np.testing.assert_allclose(
        categorical_jacobian(model, tokens).numpy(), published(model, tokens, "before"), rtol=0, atol=1e-10
    )
    masks = tokens.clone()
    masks[4] = MASK
    scores = categorical_jacobian(model, masks, masked=True)
    np.testing.assert_allclose(scores.numpy(), published(model, masks, "after", masked=True), rtol=0, atol=1e-10)


def test_logits_of_the_amino_acids_alone() -> None:
    model, tokens = MadeModel(), residues(9)
    order = tuple(reversed(AMINO_ACIDS))
    few = categorical_jacobian(lambda *batch: model(*batch)[..., list(order)], tokens, logits_of=order)
    torch.testing.assert_close(few, categorical_jacobian(model, tokens), rtol=0, atol=1e-12)


def test_float32_is_near_float64() -> None:
    tokens = residues(40)
    exact, rounded = (categorical_jacobian(MadeModel(0, dtype), tokens) for dtype in (torch.float64, torch.float32))
    assert rounded.dtype == torch.float32
    torch.testing.assert_close(rounded.double(), exact, rtol=0, atol=1e-5 * float(exact.abs().max()))
