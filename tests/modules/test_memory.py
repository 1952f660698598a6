"""The memory of steps and passes, told without numbers, against those with them; batches that fit in what is free."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch

from contactlm import ContactModule, ContrastiveModule
from contactlm.maps.windows import MAX_COST, WindowOptions, batch_by_cost
from contactlm.model.blocks import block_bytes
from contactlm.modules import memory
from contactlm.modules.memory import ENOUGH, SHARE, StorageMeter, pass_bytes, pass_cost, sized, step_cost
from contactlm.types import ModelError
from tests.model.families import architecture

SMALL = {"num_hidden_layers": 3, "hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 128}
WAYS = {
    "lora": {},
    "checkpointed": {"activation_checkpointing": True},
    "all weights": {"lora": None},
    "head": {"lora": None, "freeze_backbone": True},
    "plain": {"attention": "plain"},
}
# Steps of the 8M architecture in a process of their own: prints what each adds to the memory of the process.
STEPS = """
import json, re, sys, torch
from contactlm import ContactModule
torch.set_num_threads(1)
sizes = dict(num_hidden_layers=6, hidden_size=320, num_attention_heads=20, intermediate_size=1280)
def most(name):
    return int(re.search(name + r":\\s+(\\d+)", open("/proc/self/status").read())[1]) * 1024
for checkpointed, rows, tokens in json.loads(sys.argv[1]):
    module = ContactModule(None, sizes, activation_checkpointing=checkpointed)
    module.log = lambda *_, **__: None
    batch = {
        "tokens": torch.full((rows, tokens), 5), "attention_mask": torch.ones(rows, tokens, dtype=torch.bool),
        "positions": torch.arange(tokens).repeat(rows, 1), "cb": torch.randn(rows, tokens - 2, 3) * 20,
    }
    small = {name: value[:1, :30] for name, value in batch.items() if name != "cb"} | {"cb": batch["cb"][:1, :28]}
    module.training_step(small, 0).backward()  # code is read when it is first run
    open("/proc/self/clear_refs", "w").write("5")  # forget the most there was
    before = most("VmHWM")
    module.training_step(batch, 0).backward()
    print(most("VmHWM") - before)
    del module, batch, small
"""


def made_batch(rows: int, tokens: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "tokens": torch.randint(4, 24, (rows, tokens), generator=generator),
        "attention_mask": torch.ones(rows, tokens, dtype=torch.bool),
        "positions": torch.arange(tokens).repeat(rows, 1),
        "cb": torch.randn(rows, tokens - 2, 3, generator=generator) * 10,
    }


@pytest.mark.parametrize("way", WAYS)
def test_bytes_and_flops_are_those_of_a_step_with_numbers(way: str) -> None:
    make = partial(ContactModule, None, SMALL, **WAYS[way])
    batch = made_batch(3, 70)
    cost = step_cost(make, batch)
    module, meter = make(), StorageMeter()
    module.log = lambda *_, **__: None  # type: ignore[method-assign]
    weights = [*module.parameters(), *module.buffers()]
    meter.ignore([*weights, *batch.values()])
    with meter:
        loss = module.training_step(batch, 0)
        left = meter.now
        loss.backward()
    assert cost.weights == sum(x.nbytes for x in weights)
    assert cost.gradients == sum(x.nbytes for x in module.parameters() if x.requires_grad)
    assert 0 <= cost.optimizer - 2 * cost.gradients <= 8 * len(weights)  # Adam, and its count of steps
    assert cost.activations == pytest.approx(left + sum(x.nbytes for x in batch.values()), rel=0.05)
    assert cost.total - cost.weights - cost.optimizer == pytest.approx(meter.peak, rel=0.05)


def test_checkpointing_trades_activations_for_operations() -> None:
    plain, less = (
        step_cost(partial(ContactModule, None, SMALL, **WAYS[way]), made_batch(2, 200))
        for way in ("lora", "checkpointed")
    )
    assert less.activations < 0.7 * plain.activations and less.flops > 1.2 * plain.flops


@pytest.mark.slow
def test_memory_is_told_of_models_that_this_machine_need_not_hold() -> None:
    sizes = {"num_hidden_layers": 6, "hidden_size": 5120, "num_attention_heads": 40, "intermediate_size": 20480}
    cost = step_cost(partial(ContactModule, None, sizes), made_batch(1, 1022))
    assert cost.weights / 4 == pytest.approx(1.89e9, rel=0.01)  # an eighth of 15B
    assert cost.activations > 1e9


def test_a_step_that_asks_for_numbers_is_refused() -> None:
    with pytest.raises(ModelError, match="ContrastiveModule depends on the numbers in it"):
        step_cost(partial(ContrastiveModule, None, SMALL), made_batch(2, 60))


def test_a_pass_of_more_sequences_takes_more() -> None:
    small, large = (pass_cost(partial(ContactModule, None, SMALL), rows, 100) for rows in (1, 4))
    assert 0 < small < large < 8 * small


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="it asks Linux's kernel and C library")
def test_memory_is_what_a_process_takes() -> None:
    sizes = {"num_hidden_layers": 6, "hidden_size": 320, "num_attention_heads": 20, "intermediate_size": 1280}
    cases = [(True, 1, 1022), (False, 8, 202)]  # checkpointed, rows, tokens
    # The C library keeps memory it was given back, in pieces too small for the next tensor, unless told not to.
    environment = {"MALLOC_MMAP_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin"}
    command = [sys.executable, "-c", STEPS, json.dumps(cases)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    for (checkpointed, rows, tokens), taken in zip(cases, done.stdout.split(), strict=True):
        make = partial(ContactModule, None, sizes, activation_checkpointing=checkpointed)
        cost = step_cost(make, made_batch(rows, tokens))
        planned = cost.total - cost.weights - cost.optimizer
        assert planned == pytest.approx(int(taken), rel=0.15), (checkpointed, rows, tokens)


CUDA = torch.device("cuda")
SIZES = {"num_hidden_layers": 2, "hidden_size": 320, "num_attention_heads": 20, "intermediate_size": 1280}


def made(**options: Any) -> ContactModule:
    return ContactModule(None, architecture=SIZES, lora=None, **options)


@pytest.mark.parametrize("attention", ["streamed", "fused", "plain"])
@pytest.mark.parametrize(("rows", "tokens"), [(64, 52), (16, 202), (4, 602)])
def test_a_pass_takes_about_what_is_reckoned(attention: Any, rows: int, tokens: int) -> None:
    make = partial(made, attention=attention)
    per_token, per_pair = pass_bytes(make, 10_000)
    reckoned = rows * tokens * (per_token + tokens * per_pair)
    room = 2 * block_bytes(torch.device("cpu"))
    assert reckoned / 1.5 <= pass_cost(make, rows, tokens, "cpu") <= 1.1 * reckoned + room


def pretend_cuda(monkeypatch: pytest.MonkeyPatch, free: int) -> None:
    monkeypatch.setattr(memory, "memory_for", lambda device: free)


@pytest.mark.parametrize("free", [600 << 20, 1 << 30, 4 << 30, 80 << 30])
def test_batches_fit_the_memory_that_is_free(free: int, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_cuda(monkeypatch, free)
    network = made().backbone
    windows = sized(WindowOptions(), network, CUDA)
    per_token, per_pair = pass_bytes(made, 10_000)
    assert windows.bound <= ENOUGH and windows.token_cost == per_token // per_pair
    for length in (100, 400, 1022):
        rows = len(batch_by_cost([length + 2] * 2000, windows.bound, windows.token_cost)[0])
        taken = rows * (length + 2) * (per_token + (length + 2) * per_pair)
        room = SHARE * (free - 2 * block_bytes(CUDA))
        assert rows == 1 or taken <= 1.01 * room
        more = (rows + 1) * (length + 2) * (per_token + (length + 2) * per_pair)
        assert windows.bound == ENOUGH or rows == 2000 or more > 0.98 * room  # and the room is used


def test_what_is_given_stays_and_so_does_everything_on_a_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_cuda(monkeypatch, 80 << 30)
    network, given = made().backbone, WindowOptions(max_cost=1234)
    assert sized(given, network, CUDA) is given
    assert sized(WindowOptions(), network, torch.device("cpu")) == WindowOptions()
    assert sized(WindowOptions(), torch.nn.Linear(1, 1), CUDA) == WindowOptions()  # a network of somebody's own
    network.esm.encoder.layer[0].__class__ = type("Spread", (type(network.esm.encoder.layer[0]),), {})
    assert sized(WindowOptions(), network, CUDA) == WindowOptions()  # its weights are spread over processes
    assert WindowOptions().bound == MAX_COST and replace(given, window=50).bound == 1234


def test_learned_positions_bound_the_pass_that_is_asked_about(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_cuda(monkeypatch, 80 << 30)
    with torch.inference_mode():  # as in an evaluation
        windows = sized(WindowOptions(), ContactModule(None, architecture("ESM-1b")).backbone, CUDA)
    assert windows.bound == ENOUGH and windows.token_cost > 0
