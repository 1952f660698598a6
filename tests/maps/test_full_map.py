"""Full-length maps: one pass untouched, windows and distant pairs put where they belong, padding without effect."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

import contactlm
from contactlm import ContactModule
from contactlm.alphabet import CLS, EOS, PAD, encode
from contactlm.maps.full_map import full_maps
from contactlm.maps.windows import WindowOptions, plan_passes
from contactlm.types import ModelError
from tests.maps.made import full_map

WINDOWS = [2, 3, 8, 11, 20]


def residue_logits(left: Tensor, right: Tensor) -> Tensor:
    """A symmetric logit that tells every pair of tokens apart."""
    return 3 * torch.cos(0.37 * (left + right)) + 2 * torch.sin(0.011 * left * right)


class TokenPairs:
    """Logits that depend on the two tokens only: whatever the window, the map must be that of one pass."""

    def __init__(self) -> None:
        self.shapes: list[tuple[int, int]] = []

    def __call__(self, tokens: Tensor, attention_mask: Tensor, positions: Tensor | None) -> Tensor:
        self.shapes.append(tuple(tokens.shape))
        assert torch.equal(attention_mask, tokens != PAD)
        assert (tokens[:, 0] == CLS).all()
        ends = attention_mask.sum(1) - 1
        assert (tokens.gather(1, ends[:, None]) == EOS).all()
        assert ((tokens == CLS) | (tokens == EOS)).sum() == 2 * len(tokens)
        inner = tokens[:, 1:-1].double()
        return residue_logits(inner[:, :, None], inner[:, None, :]).float()


def separations(tokens: Tensor, attention_mask: Tensor, positions: Tensor | None) -> Tensor:
    """Logits that depend on the distance between two positions only."""
    del attention_mask
    if positions is None:
        positions = torch.arange(tokens.shape[1]).expand(tokens.shape)
    inner = positions[:, 1:-1].double()
    return residue_logits((inner[:, :, None] - inner[:, None, :]).abs(), torch.tensor(3.0)).float()


def numbered(length: int) -> Tensor:
    """Every residue a token of its own, so that nothing can be misplaced unnoticed."""
    return torch.arange(length) + 4


@pytest.mark.parametrize("window", WINDOWS)
def test_every_pair_gets_the_value_of_its_own_residues(window: int) -> None:
    for overlap in {None, 0, window // 3, window - 1}:
        for length in range(window + 1, 5 * window, max(1, window // 2)):
            tokens = numbered(length)
            got = full_map(TokenPairs(), tokens, WindowOptions(window=window, overlap=overlap)).probability
            expected = residue_logits(tokens.double()[:, None], tokens.double()[None, :]).sigmoid().float()
            torch.testing.assert_close(got, expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("window", WINDOWS)
def test_every_pair_is_seen_at_its_true_distance(window: int) -> None:
    for length in (window + 1, 3 * window, 5 * window + 1):
        got = full_map(separations, numbered(length), WindowOptions(window=window)).probability
        index = torch.arange(length).double()
        expected = residue_logits((index[:, None] - index).abs(), torch.tensor(3.0)).sigmoid().float()
        torch.testing.assert_close(got, expected, rtol=0, atol=2e-6)


def test_special_tokens_stand_next_to_the_outer_residues() -> None:
    seen: list[tuple[Tensor, Tensor | None]] = []

    def spy(tokens: Tensor, attention_mask: Tensor, positions: Tensor | None) -> Tensor:
        seen.append((tokens, positions))
        return separations(tokens, attention_mask, positions)

    full_map(spy, numbered(11), WindowOptions(window=10, max_cost=1))
    (first, none), (second, _), (apart, positions) = seen
    assert first.tolist() == [[CLS, *range(4, 14), EOS]]
    assert second.tolist() == [[CLS, *range(5, 15), EOS]]
    assert none is None
    assert apart.tolist() == [[CLS, *range(4, 9), *range(10, 15), EOS]]
    assert positions is not None
    assert positions.tolist() == [[0, 1, 2, 3, 4, 5, 7, 8, 9, 10, 11, 12]]


def test_a_whole_chain_is_the_sigmoid_of_its_pass_bit_for_bit() -> None:
    for length in (1, 2, 7, 50, 333):
        logits = torch.randn(1, length, length, generator=torch.Generator().manual_seed(length)) * 5
        for window in (max(2, length), length + 1, None):
            got = full_map(lambda *_, out=logits: out, numbered(length), WindowOptions(window=window))
            assert torch.equal(got.probability.triu(), torch.sigmoid(logits[0]).triu())
            assert torch.equal(got.probability, got.probability.T)


@pytest.mark.parametrize("length", [1, 2, 9, 10, 11, 300])
def test_the_map_is_symmetric_float32_and_within_zero_and_one(length: int) -> None:
    # Logits that differ from pass to pass, some of them saturated.
    draw = torch.Generator().manual_seed(length)

    def noise(tokens: Tensor, attention_mask: Tensor, positions: Tensor | None) -> Tensor:
        del attention_mask, positions
        B, T = tokens.shape
        logits = 100 * torch.randn(B, T - 2, T - 2, generator=draw)
        return logits + logits.mT

    probability = full_map(noise, numbered(length), WindowOptions(window=10, overlap=3)).probability
    assert probability.shape == (length, length)
    assert probability.dtype == torch.float32
    assert probability.device.type == "cpu"
    assert probability.is_contiguous()
    assert torch.equal(probability, probability.T)
    assert probability.min() >= 0
    assert probability.max() <= 1


def test_the_value_seen_far_from_a_cut_weighs_most() -> None:
    # Windows 0..19, 10..29 and 20..39 of 40 residues. Pair (i, i + 1) is in at most two of them; the passes say 1 in
    # turn, so the map shows how much each weighs.
    options = WindowOptions(window=20, max_cost=1)
    plan = plan_passes(40, options)
    assert [piece.segments for piece in plan[:3]] == [((0, 20),), ((10, 30),), ((20, 40),)]
    shares = []
    for chosen in range(3):
        calls = iter(range(len(plan)))

        def vote(tokens: Tensor, *_: Tensor | None, calls: Iterator[int] = calls, chosen: int = chosen) -> Tensor:
            n = tokens.shape[1] - 2
            return torch.full((1, n, n), 40.0 if next(calls) == chosen else -40.0)

        shares.append(full_map(vote, numbered(40), options).probability.diagonal())
    first, middle, last = shares
    torch.testing.assert_close(first + middle + last, torch.ones(40))
    # Ends of the chain are no cuts: nothing else covers them, and the first window's share falls from there on only.
    assert (first[:10] == 1).all()
    assert (first[10:20].diff() < 0).all()
    assert (middle[10:20].diff() > 0).all()
    # A residue next to a cut, 1 residue of context against 10: (1² : 10²).
    torch.testing.assert_close(first[19], torch.tensor(1 / 101))
    torch.testing.assert_close(middle[10], torch.tensor(1 / 101))
    torch.testing.assert_close(middle, middle.flip(0))
    torch.testing.assert_close(first, last.flip(0))


def test_segments_say_nothing_about_pairs_within_themselves() -> None:
    def two_segments_say_yes(tokens: Tensor, attention_mask: Tensor, positions: Tensor | None) -> Tensor:
        del attention_mask
        n = tokens.shape[1] - 2
        return torch.full((len(tokens), n, n), -40.0 if positions is None else 40.0)

    options = WindowOptions(window=10, max_cost=1)
    probability = full_map(two_segments_say_yes, numbered(40), options).probability
    near = (torch.arange(40)[:, None] - torch.arange(40)).abs() < 5
    assert (probability[near] < 1e-9).all()
    far = (torch.arange(40)[:, None] - torch.arange(40)).abs() >= 10
    assert (probability[far] > 1 - 1e-6).all()


def test_how_tells_length_window_overlap_passes_and_version() -> None:
    how = full_map(TokenPairs(), numbered(60), WindowOptions(window=20)).how
    assert how == {
        "version": contactlm.__version__,
        "length": 60,
        "window": 20,
        "overlap": 10,
        "passes": {"whole": 0, "window": 5, "two_segments": 10},
        "blend": "probabilities, weights falling linearly towards cuts",
    }
    assert full_map(TokenPairs(), numbered(20), WindowOptions(window=20)).how["passes"] == {
        "whole": 1,
        "window": 0,
        "two_segments": 0,
    }
    assert full_map(TokenPairs(), numbered(20), WindowOptions(window=None)).how["window"] is None


def test_batches_stay_within_the_cost_and_hold_windows_of_several_chains() -> None:
    model = TokenPairs()
    lengths = [30, 8, 5, 31, 9, 1, 64]
    bound = 4 * 12**2
    got = list(full_maps(model, [numbered(n) for n in lengths], WindowOptions(window=10, max_cost=bound)))
    assert [len(one.probability) for one in got] == lengths
    assert max(B * T**2 for B, T in model.shapes) <= bound
    passes = sum(sum(one.how["passes"].values()) for one in got)
    assert sum(B for B, _ in model.shapes) == passes
    assert len(model.shapes) < passes / 2
    for one, length in zip(got, lengths, strict=True):
        alone = full_map(TokenPairs(), numbered(length), WindowOptions(window=10, max_cost=1))
        torch.testing.assert_close(one.probability, alone.probability, rtol=0, atol=1e-6)


def test_a_pass_above_the_cost_runs_alone() -> None:
    model = TokenPairs()
    full_map(model, numbered(30), WindowOptions(window=10, max_cost=1))
    assert model.shapes == [(1, 12)] * len(plan_passes(30, WindowOptions(window=10)))


def test_chains_are_drawn_as_they_are_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("contactlm.maps.full_map._HELD_PAIRS", 3 * 10**2)
    drawn = 0

    def chains() -> Iterator[Tensor]:
        nonlocal drawn
        for _ in range(9):
            drawn += 1
            yield numbered(10)

    maps = full_maps(TokenPairs(), chains(), WindowOptions(window=10))
    assert next(maps).how["length"] == 10
    assert drawn == 4  # three share the first batches, the fourth showed that they are full
    assert len(list(maps)) == 8


def test_no_chains_no_maps() -> None:
    assert list(full_maps(TokenPairs(), [])) == []


def test_blending_needs_one_buffer_of_the_map() -> None:
    length = 1000

    def flat(tokens: Tensor, attention_mask: Tensor, positions: Tensor | None) -> Tensor:
        del attention_mask, positions
        return torch.zeros(len(tokens), tokens.shape[1] - 2, tokens.shape[1] - 2)

    options = WindowOptions(window=100, max_cost=1)
    with torch.profiler.profile(profile_memory=True, activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        full_map(flat, numbered(length), options)
    held = peak = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    assert 4 * length**2 <= peak < 1.5 * 4 * length**2


def test_progress_shows_passes_of_long_chains_only(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)  # elsewhere there are no bars
    options = WindowOptions(window=10, progress=True)
    full_map(TokenPairs(), numbered(10), options)
    assert capsys.readouterr().err == ""
    full_map(TokenPairs(), numbered(30), options)
    assert "/15 " in capsys.readouterr().err
    full_map(TokenPairs(), numbered(30), WindowOptions(window=10))
    assert capsys.readouterr().err == ""


def test_uint8_tokens_of_the_alphabet_are_taken() -> None:
    tokens = torch.from_numpy(encode("MKTAYIAKQRQISFVKSHFSRQ"))
    got = full_map(TokenPairs(), tokens, WindowOptions(window=8))
    same = full_map(TokenPairs(), tokens.long(), WindowOptions(window=8))
    assert got.how["length"] == 22
    assert torch.equal(got.probability, same.probability)


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (torch.empty(0, dtype=torch.int64), "chain 0 is empty"),
        (torch.ones(3, 4, dtype=torch.int64) * 5, r"\(3, 4\).*shape \(L,\)"),
        (torch.ones(4) * 5, "float32"),
        (torch.tensor([CLS, 5, 6, EOS]), "token 0 at index 0 .*residue tokens only"),
        (torch.tensor([5, 6, PAD]), "token 1 at index 2"),
    ],
)
def test_tokens_that_are_no_chain_are_an_error(tokens: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        full_map(TokenPairs(), tokens)


def test_logits_of_the_wrong_shape_are_an_error() -> None:
    with pytest.raises(ValueError, match=r"shape \(1, 7, 7\).*\(1, 5, 5\)"):
        full_map(lambda tokens, *_: torch.zeros(1, 7, 7), numbered(5))


def test_no_gradients_are_recorded() -> None:
    weight = torch.ones(1, requires_grad=True)
    got = full_map(lambda tokens, *_: torch.zeros(1, 5, 5) * weight, numbered(5))
    assert not got.probability.requires_grad


def test_logits_that_are_not_finite_are_an_error() -> None:
    tiny = {"num_hidden_layers": 1, "hidden_size": 16, "num_attention_heads": 2}
    module = ContactModule(None, architecture=tiny, lora=None)
    with torch.no_grad():
        module.head_parameters()[1].fill_(float("nan"))
    with pytest.raises(ModelError, match="logits are not finite"):
        module.predict_map("MKTAYIAKQRQ")
