"""Checkpoints in parts: written, replaced in one stroke, read by others; whole commands are in ``tests/devices``."""

from pathlib import Path
from typing import Any

import pytest
import torch

from contactlm.modules.checkpoint import check_checkpoint
from contactlm.modules.sharded_file import is_sharded, load_file, weights_stream
from contactlm.modules.sharded_strategy import ShardedStrategy, local_part
from contactlm.runs.checkpoint_io import AtomicCheckpointIO
from contactlm.types import ModelError

ABOUT = {"contactlm": {"backbone": None, "backbone_checksum": None, "tuned_threshold": None}}


class Spread:
    """Stands for a tensor that is spread over processes."""

    def __init__(self, part: torch.Tensor) -> None:
        self.part = part

    def to_local(self) -> torch.Tensor:
        return self.part


class First(ShardedStrategy):
    """The first of two processes, alone: the second one wrote its part, or could not."""

    world_size, global_rank, is_global_zero, root_device = 2, 0, True, torch.device("cpu")  # type: ignore[assignment]

    def __init__(self, second: Any) -> None:
        self.second, self._save_distributed_checkpoint, self._io = second, True, AtomicCheckpointIO()

    checkpoint_io = property(lambda self: self._io)

    def broadcast(self, value: Any, src: int = 0) -> Any:
        self.folder, self.token = value
        return value

    def barrier(self, name: str | None = None) -> None:
        pass

    def reduce(self, tensor: torch.Tensor, group: Any = None, reduce_op: Any = "mean") -> torch.Tensor:
        if self.second is not None:
            torch.save(self.second, self.folder / f"part-{self.token}-1.pt")
        return tensor if self.second is not None else torch.zeros_like(tensor)


def saved(path: Path, second: Any, value: float) -> First:
    strategy = First(second)
    moments = {"exp_avg": Spread(torch.full((3, 2), value)), "step": torch.tensor(4.0)}
    weights = {"a": Spread(torch.full((3, 2), value)), "buffer": torch.ones(1)}
    checkpoint = {**ABOUT, "state_dict": weights, "optimizer_states": [{"state": {7: moments}, "param_groups": []}]}
    strategy.save_checkpoint(checkpoint, path)
    return strategy


def part_of_second(rows: int) -> dict[Any, torch.Tensor]:
    return {("state_dict", "a"): torch.zeros(rows, 2), ("optimizer_states", 0, 7, "exp_avg"): torch.zeros(rows, 2)}


@pytest.mark.parametrize("rows", [2, 0])
def test_parts_are_read_as_one(tmp_path: Path, rows: int) -> None:
    path = tmp_path / "last.ckpt"
    path.write_text("a plain one lies there")
    for value in (1.0, 5.0):
        assert saved(path, part_of_second(rows), value).checkpoint_io.failures == 0
        assert is_sharded(path) and len(list(path.iterdir())) == 3
        whole, expected = load_file(path), torch.cat([torch.full((3, 2), value), torch.zeros(rows, 2)])
        state = whole["optimizer_states"][0]["state"][7]
        assert torch.equal(whole["state_dict"]["a"], expected) and torch.equal(state["exp_avg"], expected)
        assert whole["state_dict"]["buffer"] == 1 and state["step"] == 4
    shapes = {name: tuple(weight.shape) for name, weight in check_checkpoint(path)["state_dict"].items()}
    assert shapes == {"a": (3 + rows, 2), "buffer": (1,)}
    alone = torch.load(weights_stream(path), weights_only=True)
    assert torch.equal(alone["state_dict"]["a"], expected) and alone["optimizer_states"] == []


def test_a_part_that_cannot_be_written_leaves_the_checkpoint_before(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    saved(path, part_of_second(2), 1.0)
    before = sorted(path.iterdir())
    assert saved(path, None, 5.0).checkpoint_io.failures == 1  # the run knows
    assert sorted(path.iterdir()) == before and load_file(path)["state_dict"]["a"].max() == 1


def test_what_is_missing_or_damaged_is_named(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    saved(path, part_of_second(2), 1.0)
    second = next(path.glob("part-*-1.pt"))
    content = second.read_bytes()
    second.write_bytes(content[:-200])
    with pytest.raises(ModelError, match="is not a readable checkpoint: it is damaged in one of its parts"):
        check_checkpoint(path)
    second.unlink()
    with pytest.raises(ModelError, match=f"lacks .*{second.name}, a part that one process wrote; .*checkpoint.dirpath"):
        check_checkpoint(path)


@pytest.mark.parametrize(("rows", "processes"), [(7, 2), (5, 4), (1, 3), (8, 4)])
def test_each_process_takes_its_rows(rows: int, processes: int) -> None:
    class Like:
        def __init__(self, rank: int) -> None:
            self.device_mesh = self
            self.rank = rank

        def size(self) -> int:
            return processes

        def get_local_rank(self) -> int:
            return self.rank

    whole = torch.arange(3.0 * rows).view(rows, 3)
    parts = [local_part(whole, Like(rank)) for rank in range(processes)]  # type: ignore[arg-type]
    assert torch.equal(torch.cat(parts), whole) and len(parts[0]) == -(-rows // processes)
    assert local_part(whole, whole) is whole
