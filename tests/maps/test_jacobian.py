"""The categorical Jacobian: against the published double loop, at any length."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from contactlm.alphabet import MASK, PAD, encode
from contactlm.maps import categorical_jacobian
from contactlm.maps.jacobian import AMINO_ACIDS, jacobian_maps
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


def published(model, tokens: Tensor) -> np.ndarray:
    """One position and substitution after another, everything stored, as the papers' scripts do it."""
    L = len(tokens)

    def logits(residues: Tensor) -> np.ndarray:
        ends = torch.tensor([0]), torch.tensor([2])
        row = torch.cat([ends[0], residues, ends[1]])[None]
        return model(row, row != PAD, None)[0, 1:-1].double().numpy()[:, list(AMINO_ACIDS)]

    wild_type = logits(tokens)
    jacobian = np.zeros((L, 20, L, 20))
    for i in range(L):
        for a, letter in enumerate(AMINO_ACIDS):
            changed = tokens.clone()
            changed[i] = letter
            jacobian[i, a] = logits(changed) - wild_type
    for axis in range(4):
        jacobian -= jacobian.mean(axis, keepdims=True)
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


@pytest.mark.parametrize("length", [1, 2, 3, 11, 16])
def test_equal_to_the_published_loop(length: int) -> None:
    for seed in range(2):
        model, tokens = MadeModel(seed), residues(length, seed)
        scores = categorical_jacobian(model, tokens)
        assert scores.dtype == torch.float64
        np.testing.assert_allclose(scores.numpy(), published(model, tokens), rtol=0, atol=1e-10)


def test_letters_that_are_no_amino_acids() -> None:
    model, tokens = MadeModel(), torch.from_numpy(encode("MXKUBZOAXXV")).long()
    tokens[4] = MASK
    np.testing.assert_allclose(
        categorical_jacobian(model, tokens).numpy(), published(model, tokens), rtol=0, atol=1e-10
    )


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


def test_batches_keep_to_the_cost_and_chains_to_their_order() -> None:
    model, lengths = MadeModel(), (5, 9, 9, 8)
    chains = [residues(length, seed) for seed, length in enumerate(lengths)]
    made = list(jacobian_maps(model, chains, windows=WindowOptions(max_cost=700)))
    needed = [length * 19 + 1 for length in lengths]
    assert sum(B for B, _ in model.shapes) == sum(needed)
    assert all(B * T**2 <= 700 for B, T in model.shapes)
    full = sum(-(-n // (700 // (length + 2) ** 2)) for n, length in zip(needed, lengths, strict=True))
    assert len(model.shapes) == full  # but for each chain's last one, batches are full
    for tokens, (scores, _) in zip(chains, made, strict=True):
        torch.testing.assert_close(scores, categorical_jacobian(MadeModel(), tokens), rtol=0, atol=1e-12)


def test_chains_of_one_sequence_are_run_once(tmp_path: Path) -> None:
    model, tokens = MadeModel(), residues(12)
    (one, _), (two, _), (other, _) = jacobian_maps(model, [tokens, tokens.clone(), residues(12, 1)], folder=tmp_path)
    assert torch.equal(one, two) and not torch.equal(one, other)
    assert sum(B for B, _ in model.shapes) == 2 * (12 * 19 + 1)


def test_chains_are_drawn_as_they_are_needed() -> None:
    drawn = []

    def chains():
        for seed in range(4):
            drawn.append(seed)
            yield residues(10, seed)

    next(jacobian_maps(MadeModel(), chains()))
    assert drawn == [0]


def test_tiles_of_any_size_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokens = MadeModel(), residues(23)
    at_once = categorical_jacobian(model, tokens)
    for tile in (1, 9_000, 3 * 8_000):
        monkeypatch.setattr("contactlm.maps.jacobian._TILE", tile)
        torch.testing.assert_close(categorical_jacobian(model, tokens), at_once, rtol=0, atol=1e-12)


def test_finished_norms_are_kept_in_a_folder(tmp_path: Path) -> None:
    tokens, full = residues(14), 14 * 19 + 1
    expected = categorical_jacobian(MadeModel(), tokens)
    stopped = MadeModel()
    stopped.limit = full // 2
    windows = WindowOptions(max_cost=20 * 16**2)
    with pytest.raises(KeyboardInterrupt):
        categorical_jacobian(stopped, tokens, windows, folder=tmp_path)
    assert not list(tmp_path.iterdir())
    rest = MadeModel()
    torch.testing.assert_close(categorical_jacobian(rest, tokens, folder=tmp_path), expected, rtol=0, atol=1e-12)
    assert sum(B for B, _ in rest.shapes) == full
    (kept,) = tmp_path.iterdir()
    again = MadeModel()
    torch.testing.assert_close(categorical_jacobian(again, tokens, folder=tmp_path), expected, rtol=0, atol=1e-12)
    assert again.shapes == []
    kept.write_bytes(kept.read_bytes()[:70])
    torch.testing.assert_close(categorical_jacobian(again, tokens, folder=tmp_path), expected, rtol=0, atol=1e-12)
    assert sum(B for B, _ in again.shapes) == full


def test_a_folder_without_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("contactlm.maps.jacobian.tempfile.TemporaryFile", lambda **_: Path("/dev/full").open("wb"))  # noqa: SIM115
    with pytest.raises(
        DataError, match=r"cannot be written \(No space left on device\).*takes 0\.0 GB there.*cache_dir"
    ):
        categorical_jacobian(MadeModel(), residues(4), folder=tmp_path)


class Couplings:
    """A model whose logits at j are those of a Potts model's conditionals: J is its couplings, at any position."""

    def __init__(self, length: int, pairs: list[tuple[int, int]]) -> None:
        generator = torch.Generator().manual_seed(0)
        self.couplings = torch.zeros(length, length, 20, 20, dtype=torch.float64)
        for i, j in pairs:
            self.couplings[i, j] = torch.randn(20, 20, generator=generator, dtype=torch.float64)
            self.couplings[j, i] = self.couplings[i, j].T

    def __call__(self, tokens: Tensor, attention_mask: Tensor, positions: Tensor | None) -> Tensor:
        B, T = tokens.shape
        where = torch.arange(T).expand(B, T) if positions is None else positions
        logits = torch.zeros(B, T, 33, dtype=torch.float64)
        for row, n in enumerate((attention_mask.sum(1) - 2).tolist()):
            own, residue = where[row, 1 : n + 1] - 1, tokens[row, 1 : n + 1] - 4
            logits[row, 1 : n + 1, 4:24] = self.couplings[own[:, None], own, residue[:, None]].sum(0)
        return logits


def test_couplings_of_a_potts_model_come_out() -> None:
    """J of its conditionals is the couplings, so that the map is theirs, centred and corrected (Zhang et al.)."""
    pairs = [(0, 9), (3, 17), (5, 6), (2, 13)]
    model, tokens = Couplings(20, pairs), residues(20)
    coupling = model.couplings.permute(0, 2, 1, 3).clone()
    for axis in range(4):
        coupling -= coupling.mean(axis, keepdim=True)
    norms = coupling.square().sum((1, 3)).sqrt().fill_diagonal_(0)
    norms = (norms - torch.outer(norms.sum(1), norms.sum(0)) / norms.sum()).fill_diagonal_(0)
    scores = categorical_jacobian(model, tokens)
    torch.testing.assert_close(scores, norms, rtol=0, atol=1e-10)
    top = scores.triu().flatten().topk(4).indices.tolist()
    assert sorted(divmod(k, 20) for k in top) == sorted(pairs)


# --- longer than the window ---


def shifted(length: int):
    """Couplings of pairs at fixed distances, which every pass sees alike, wherever it begins."""
    generator = torch.Generator().manual_seed(3)
    blocks = {d: torch.randn(20, 20, generator=generator, dtype=torch.float64) for d in (3, 8, 21, length // 2)}
    model = Couplings(length, [])
    for d, block in blocks.items():
        for i in range(length - d):
            model.couplings[i, i + d], model.couplings[i + d, i] = block, block.T
    return model


def test_every_pair_of_a_long_chain_is_found_at_its_true_distance() -> None:
    L = 44
    model, tokens = shifted(L), residues(L)
    whole = categorical_jacobian(model, tokens, WindowOptions(window=None))
    torch.testing.assert_close(categorical_jacobian(model, tokens, WindowOptions(window=L)), whole, rtol=0, atol=0)
    for window in (16, 26):
        options = WindowOptions(window=window)
        ((scores, how),) = jacobian_maps(model, [tokens], options)
        assert how["passes"]["two_segments"] > 0 and how["symmetrise"] == "before"
        assert torch.equal(scores, scores.T) and torch.isfinite(scores).all()
        upper = tuple(torch.triu_indices(L, L, 1))
        near = torch.corrcoef(torch.stack([scores[upper], whole[upper]]))
        assert near[0, 1] > 0.95


def test_windows_are_blended_as_written_down() -> None:
    """Norms of each pass, weights that fall linearly towards cuts, the average product of the whole map."""
    from contactlm.maps.windows import context_weights, plan_passes, residues_of

    L, options = 30, WindowOptions(window=12)
    model, tokens = MadeModel(), residues(30)
    total, weights = np.zeros((L, L)), np.zeros((L, L))
    for piece in plan_passes(L, options):
        shown = residues_of(piece)
        jacobian = stored(model, tokens[shown], shown)
        jacobian = (jacobian + jacobian.transpose(2, 3, 0, 1)) / 2
        for rows, columns in {piece.block, piece.block[::-1]}:
            for i in range(*rows):
                for j in range(*columns):
                    w = float(
                        context_weights(rows, piece, L)[i - rows[0]]
                        * context_weights(columns, piece, L)[j - columns[0]]
                    )
                    a, b = shown.tolist().index(i), shown.tolist().index(j)
                    total[i, j] += w * np.sqrt((jacobian[a, :, b] ** 2).sum()) * (i != j)
                    weights[i, j] += w
    norms = total / weights
    norms = norms - norms.sum(0, keepdims=True) * norms.sum(1, keepdims=True) / norms.sum()
    np.fill_diagonal(norms, 0)
    scores = categorical_jacobian(model, tokens, options)
    np.testing.assert_allclose(scores.numpy(), (norms + norms.T) / 2, rtol=0, atol=1e-6)  # weights are float32


def stored(model, tokens: Tensor, where: Tensor) -> np.ndarray:
    """The whole Jacobian of some residues at their positions."""
    rows = torch.cat([torch.tensor([0]), tokens, torch.tensor([2])]).expand(20 * len(tokens) + 1, -1).clone()
    for i in range(len(tokens)):
        rows[1 + 20 * i : 21 + 20 * i, i + 1] = torch.tensor(AMINO_ACIDS)
    own = where - where[0] + 1
    positions = torch.cat([torch.tensor([0]), own, own[-1:] + 1]).expand_as(rows)
    logits = model(rows, rows != PAD, positions)[:, 1:-1, list(AMINO_ACIDS)].numpy()
    jacobian = (logits[1:] - logits[0]).reshape(len(tokens), 20, len(tokens), 20)
    for axis in range(4):
        jacobian -= jacobian.mean(axis, keepdims=True)
    return jacobian


def test_positions_of_a_complex_count() -> None:
    model, tokens = MadeModel(), residues(12)
    apart = torch.arange(12) + 25 * (torch.arange(12) >= 5)
    scores = categorical_jacobian(model, tokens, positions=apart)
    jacobian = stored(model, tokens, apart)
    jacobian = (jacobian + jacobian.transpose(2, 3, 0, 1)) / 2
    norms = np.sqrt((jacobian**2).sum((1, 3)))
    np.fill_diagonal(norms, 0)
    norms = norms - norms.sum(0, keepdims=True) * norms.sum(1, keepdims=True) / norms.sum()
    np.fill_diagonal(norms, 0)
    np.testing.assert_allclose(scores.numpy(), norms, rtol=0, atol=1e-10)
    assert not np.allclose(categorical_jacobian(model, tokens).numpy(), norms, atol=1e-3)


# --- what is refused ---


def test_options_and_models_that_cannot_be() -> None:
    tokens = residues(5)
    with pytest.raises(ModelError, match=r"logits_of: tokens \[4\], of amino acids, are missing"):
        categorical_jacobian(MadeModel(), tokens, logits_of=range(5, 24))
    with pytest.raises(ModelError, match=r"logits of shape .* 20\).*, \(B, T, 33\)"):
        categorical_jacobian(lambda *batch: MadeModel()(*batch)[..., :20], tokens)
    with pytest.raises(ModelError, match=r"logits of shape \(\d+, 5, 33\) for tokens of shape \(\d+, 7\)"):
        categorical_jacobian(lambda *batch: MadeModel()(*batch)[:, 1:-1], tokens)
    with pytest.raises(DataError, match="give a sequence of at least one residue"):
        categorical_jacobian(MadeModel(), tokens[:0])


@pytest.mark.parametrize("at", [0, 40])
def test_logits_that_are_not_finite(at: int) -> None:
    class Broken(MadeModel):
        def __call__(self, *batch):
            logits = super().__call__(*batch)
            return logits * torch.nan if len(self.shapes) > at else logits

    with pytest.raises(ModelError, match="5 residues: the model's logits are not finite"):
        categorical_jacobian(Broken(), residues(5), windows=WindowOptions(max_cost=49))


MEMORY = """
import re
from pathlib import Path
import torch
from contactlm.maps import categorical_jacobian
table = torch.randn(33, 33, generator=torch.Generator().manual_seed(0))
def model(tokens, attention_mask, positions):
    x = table[tokens]
    return x * x.mean(1, keepdim=True) + x.roll(7, 1)
def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1e3
categorical_jacobian(model, torch.randint(4, 24, (8,)))
Path("/proc/self/clear_refs").write_text("5")
start = peak()
categorical_jacobian(model, torch.randint(4, 24, (500,)))
print(peak() - start)
"""


@pytest.mark.slow
@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="peaks of memory are read as on Linux")
def test_memory_of_500_residues() -> None:
    """J takes 400 MB there, its centring as much again; in megabytes of resident memory, a model aside."""
    done = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 300
