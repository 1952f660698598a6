"""Checkpoints are written as a stream, and in place of whatever lay there."""

import errno
import io
import resource
from pathlib import Path
from typing import Any

import pytest
import torch

from contactlm.runs.checkpoint_io import AtomicCheckpointIO, write_checkpoint
from tests.processes import finish, start

SIZE = 64 * 1024**2  # bytes of a tensor


def save_two(path: Path) -> int:
    """Write two large tensors; by how many bytes the most memory that was ever used grew."""
    checkpoint = {"state_dict": {name: torch.ones(SIZE // 4) for name in "ab"}}
    write_checkpoint({"state_dict": {"a": torch.ones(10)}}, path)  # what is imported on the way is there now
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    write_checkpoint(checkpoint, path)
    return 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)


@pytest.mark.slow
def test_the_file_is_never_in_memory(tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    grown = finish(start(save_two, path, folder=tmp_path), tmp_path)
    assert grown < SIZE / 4
    assert path.stat().st_size > 2 * SIZE
    assert (torch.load(path, weights_only=True)["state_dict"]["b"] == 1).all()


class Full(io.BytesIO):
    """Takes a number of bytes."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room = room

    def write(self, data: Any) -> int:
        self.room -= len(data)
        if self.room < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return len(data)


@pytest.mark.parametrize("room", [0, 100, 5000])
def test_a_disk_that_fills_up_amid_a_tensor_is_told_as_such(tmp_path: Path, monkeypatch, room: int) -> None:
    path, saver = tmp_path / "a.ckpt", AtomicCheckpointIO()
    saver.save_checkpoint({"n": 1}, path)
    full = Full(room)
    full.fileno = lambda: 0  # type: ignore[method-assign]
    monkeypatch.setattr(Path, "open", lambda *_: full)
    saver.save_checkpoint({"weight": torch.ones(2000)}, path)
    monkeypatch.undo()
    assert saver.failures == 1 and torch.load(path, weights_only=True) == {"n": 1}
