"""Memory that tensors of a large model gave back goes back to the system; a small model's stays at hand."""

from __future__ import annotations

import platform
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from contactlm import ContactModule
from contactlm.model.execution import LARGE, give_large_blocks_back
from contactlm.modules import base
from tests.processes import finish, start

needs_glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="it asks glibc and the Linux kernel")
BLOCK, BLOCKS = 6 << 20, 40  # bytes of one, and how many


def model_of(weights: int) -> nn.Module:
    return nn.Linear(weights, 1, bias=False, device="meta")


def resident() -> int:
    return int(re.search(r"VmRSS:\s+(\d+)", Path("/proc/self/status").read_text())[1]) * 1024  # type: ignore[index]


def given_back(weights: int) -> tuple[bool, float]:
    """Whether anything was done, and which share of every second block goes back when it is freed."""
    done = give_large_blocks_back(model_of(weights))
    torch.ones(30 << 18)  # freed at once: from here on, glibc left to itself takes such blocks from its heap
    blocks: list[torch.Tensor | None] = [torch.ones(BLOCK // 4) for _ in range(BLOCKS)]
    before = resident()
    blocks[::2] = [None] * (BLOCKS // 2)
    return done, (before - resident()) / (BLOCK * BLOCKS / 2)


@pytest.mark.slow
@needs_glibc
@pytest.mark.parametrize(("weights", "most"), [(LARGE, True), (LARGE - 1, False)])
def test_blocks_of_a_large_model_go_back_at_once(weights: int, most: bool, tmp_path: Path) -> None:
    done, share = finish(start(given_back, weights, folder=tmp_path), tmp_path)
    assert done == most and (share > 0.9 if most else share < 0.3)


@needs_glibc
def test_what_the_environment_chose_stays(tmp_path: Path) -> None:
    environment = {"MALLOC_MMAP_THRESHOLD_": "33554432"}  # read when a process starts; here only looked at
    done, _ = finish(start(given_back, LARGE, folder=tmp_path, env=environment), tmp_path)
    assert not done


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_every_run_on_a_cpu_asks_for_it(tiny_esm: Path, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[nn.Module] = []
    monkeypatch.setattr(base, "give_large_blocks_back", asked.append)
    module = ContactModule(str(tiny_esm))
    strategy = SimpleNamespace(root_device=torch.device(device))
    module._trainer = SimpleNamespace(precision="32-true", strategy=strategy)  # type: ignore[assignment]
    module.setup("fit")
    assert asked == ([module] if device == "cpu" else [])
