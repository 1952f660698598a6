"""Results that come back while the next batch is computed: the order of things, and the same maps."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from contactlm.maps import full_map as module
from contactlm.maps.copies import Fetched, sent
from contactlm.maps.full_map import full_maps
from contactlm.maps.windows import WindowOptions, batch_by_cost
from contactlm.types import ModelError
from tests.maps.test_full_map import TokenPairs, numbered

LENGTHS = [30, 8, 5, 31, 9, 1, 64]
OPTIONS = WindowOptions(window=10, max_cost=4 * 12**2)


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """What happens, as if the model ran on a device that goes on by itself."""
    seen: list[tuple[str, int]] = []

    class Noted:
        def __init__(self, tensor: Tensor) -> None:
            self.number = sum(what == "asked" for what, _ in seen)
            self.tensor = tensor
            seen.append(("asked", self.number))

        def wait(self) -> Tensor:
            seen.append(("waited", self.number))
            return self.tensor

    monkeypatch.setattr(module, "goes_on", lambda device: True)
    monkeypatch.setattr(module, "Fetched", Noted)
    return seen


def test_a_result_is_waited_for_once_the_next_batch_is_under_way(events: list[tuple[str, int]]) -> None:
    model = TokenPairs()
    maps = list(full_maps(model, [numbered(n) for n in LENGTHS], OPTIONS))
    batches = len(model.shapes)
    expected = [("asked", 0)]
    for number in range(1, batches):
        expected += [("asked", number), ("waited", number - 1)]
    assert batches > 5 and events == [*expected, ("waited", batches - 1)]
    assert [len(one.probability) for one in maps] == LENGTHS


def test_the_maps_are_those_of_the_plain_way(events: list[tuple[str, int]], monkeypatch: pytest.MonkeyPatch) -> None:
    chains = [numbered(n) for n in LENGTHS]
    coming = list(full_maps(TokenPairs(), chains, OPTIONS))
    assert events
    monkeypatch.undo()
    for one, plain in zip(coming, full_maps(TokenPairs(), chains, OPTIONS), strict=True):
        torch.testing.assert_close(one.probability, plain.probability, rtol=0, atol=2e-7)
        assert one.how == plain.how and one.probability.is_contiguous()
        assert one.probability.untyped_storage().nbytes() == plain.probability.untyped_storage().nbytes()


def test_logits_that_are_not_finite_are_told_of(events: list[tuple[str, int]]) -> None:
    def broken(tokens: Tensor, attention_mask: Tensor, positions: Tensor | None) -> Tensor:
        return torch.full((len(tokens), tokens.shape[1] - 2, tokens.shape[1] - 2), torch.nan)

    with pytest.raises(ModelError, match="logits are not finite"):
        list(full_maps(broken, [numbered(5)], OPTIONS))
    assert events


def test_on_a_processor_copies_are_plain() -> None:
    values = torch.arange(6.0)
    assert Fetched(values).wait() is values and sent(values, torch.device("cpu")) is values


@pytest.mark.parametrize("token_cost", [0, 7, 900])
def test_batches_stay_within_what_tokens_and_pairs_cost(token_cost: int) -> None:
    tokens = [int(n) for n in torch.randint(3, 60, (50,), generator=torch.Generator().manual_seed(token_cost))]
    batches = batch_by_cost(tokens, 20_000, token_cost)
    assert sorted(k for batch in batches for k in batch) == list(range(50))
    for batch in batches:
        longest = max(tokens[k] for k in batch)
        assert len(batch) * (longest**2 + token_cost * longest) <= 20_000 or len(batch) == 1
