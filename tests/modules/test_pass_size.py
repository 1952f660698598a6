"""Batches of passes sized by free memory, against what a pass is measured to take."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch

from contactlm import ContactModule
from contactlm.maps.windows import MAX_COST, WindowOptions, batch_by_cost
from contactlm.model.blocks import block_bytes
from contactlm.modules import pass_size
from contactlm.modules.pass_size import ENOUGH, SHARE, sized
from contactlm.modules.step_cost import pass_cost

CUDA = torch.device("cuda")
SIZES = {"num_hidden_layers": 2, "hidden_size": 320, "num_attention_heads": 20, "intermediate_size": 1280}


def made(**options: Any) -> ContactModule:
    return ContactModule(None, architecture=SIZES, lora=None, **options)


@pytest.mark.parametrize("attention", ["streamed", "fused", "plain"])
@pytest.mark.parametrize(("rows", "tokens"), [(64, 52), (16, 202), (4, 602)])
def test_a_pass_takes_no_more_than_is_reckoned_and_not_much_less(attention: Any, rows: int, tokens: int) -> None:
    per_token, per_pair = made(attention=attention).backbone.pass_bytes
    reckoned = rows * tokens * (per_token + tokens * per_pair)
    measured = pass_cost(partial(made, attention=attention), rows, tokens, "cpu")
    assert measured <= reckoned + 2 * block_bytes(torch.device("cpu"))
    assert measured >= reckoned / 3


@pytest.mark.parametrize("free", [600 << 20, 1 << 30, 4 << 30, 80 << 30])
def test_batches_fit_the_memory_that_is_free(free: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pass_size, "free_bytes", lambda device: free)
    network = made().backbone
    windows = sized(WindowOptions(), network, CUDA)
    per_token, per_pair = network.pass_bytes
    assert windows.bound <= ENOUGH and windows.token_cost == per_token // per_pair
    for length in (100, 400, 1022):
        rows = len(batch_by_cost([length + 2] * 2000, windows.bound, windows.token_cost)[0])
        taken = rows * (length + 2) * (per_token + (length + 2) * per_pair)
        room = SHARE * (free - 2 * block_bytes(CUDA))
        assert rows == 1 or taken <= 1.01 * room
        more = (rows + 1) * (length + 2) * (per_token + (length + 2) * per_pair)
        assert windows.bound == ENOUGH or rows == 2000 or more > 0.98 * room  # and the room is used


def test_what_is_given_stays_and_so_does_everything_on_a_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pass_size, "free_bytes", lambda device: 80 << 30)
    network, given = made().backbone, WindowOptions(max_cost=1234)
    assert sized(given, network, CUDA) is given
    assert sized(WindowOptions(), network, torch.device("cpu")) == WindowOptions()
    assert sized(WindowOptions(), torch.nn.Linear(1, 1), CUDA) == WindowOptions()  # it does not say what it takes
    assert WindowOptions().bound == MAX_COST and replace(given, window=50).bound == 1234
