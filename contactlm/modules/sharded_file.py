"""Checkpoints that several processes wrote, each its part: a folder with a file of each process, and an index.

The index, ``meta.pt``, holds what all processes know and names the files, so that replacing it replaces the checkpoint
in one stroke. A sharded tensor is its parts, in the order of the processes, joined along the first dimension: any
number of processes can read it. Nothing in the folder is unpickled but plain values.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

INDEX = "meta.pt"  # the name by which Lightning knows a sharded checkpoint, and removes it
PARTS = "parts"  # in the index: names of the processes' files
STATES = "optimizer_states"

Key = tuple[Any, ...]
"""``("state_dict", name)``, or ``("optimizer_states", number of the optimizer, number of the weight, name)``."""


def is_sharded(path: str | Path) -> bool:
    """Whether a path is a folder that several processes wrote a checkpoint to."""
    return (Path(path) / INDEX).is_file()


def take_parts(checkpoint: dict[str, Any]) -> dict[Key, Tensor]:
    """Take what is spread over processes out of a checkpoint.

    Args:
        checkpoint: As Lightning makes it, with tensors that are spread over processes in it; changed.

    Returns:
        This process's part of each such tensor.
    """
    weights = checkpoint["state_dict"]
    parts: dict[Key, Tensor] = {
        ("state_dict", name): weight.to_local() for name, weight in weights.items() if hasattr(weight, "to_local")
    }
    checkpoint["state_dict"] = {name: weight for name, weight in weights.items() if ("state_dict", name) not in parts}
    for number, optimizer in enumerate(checkpoint.get(STATES, [])):
        for weight, values in optimizer["state"].items():
            for name in [name for name, value in values.items() if hasattr(value, "to_local")]:
                parts[STATES, number, weight, name] = values.pop(name).to_local()
    return {key: part.detach().cpu() for key, part in parts.items()}


def load_file(path: str | Path, map_location: str = "cpu") -> dict[str, Any]:
    """Load a checkpoint, a file or a folder of parts, as the dictionary that one process would have written.

    Args:
        path: Where it lies.
        map_location: As of ``torch.load``; ``"meta"``: tensors without values.

    Raises:
        OSError: It, or a part of it, is not there, or cannot be read.
        RuntimeError: As of ``torch.load``, and parts that do not fit together.
    """
    if is_sharded(path):
        return ShardedFile(path, map_location).checkpoint()
    return torch.load(path, weights_only=True, map_location=map_location, mmap=True)


def weights_stream(path: str | Path) -> io.BytesIO:
    """The checkpoint in a folder as the file that one process would have written, without the optimizer's state."""
    checkpoint, stream = ShardedFile(path).checkpoint(lazy=True), io.BytesIO()
    torch.save({**checkpoint, "state_dict": dict(checkpoint["state_dict"]), STATES: []}, stream)
    stream.seek(0)
    return stream


class ShardedFile:
    """A checkpoint in parts, of which no more is read than what is asked for.

    Args:
        path: The folder.
        map_location: As of ``torch.load``.
    """

    def __init__(self, path: str | Path, map_location: str = "cpu") -> None:
        folder = Path(path)
        options: dict[str, Any] = {"weights_only": True, "map_location": map_location}
        self._rest: dict[str, Any] = torch.load(folder / INDEX, **options)
        self._parts = [torch.load(folder / name, mmap=True, **options) for name in self._rest.pop(PARTS)]

    def whole(self, key: Key) -> Tensor:
        """Join the parts of a tensor."""
        return torch.cat([part[key] for part in self._parts])

    def checkpoint(self, lazy: bool = False) -> dict[str, Any]:
        """The checkpoint as one process would have written it.

        Args:
            lazy: Join the parts of a weight, or of an optimizer's state, whenever it is looked at.
        """
        groups: dict[Key, dict[str, Key]] = {}
        for key in self._parts[0]:
            groups.setdefault(key[:-1], {})[key[-1]] = key
        checkpoint = {**self._rest}
        for group, keys in groups.items():
            holder, last = checkpoint, group[-1]
            if len(group) > 1:
                holder = checkpoint[STATES][group[1]]["state"]
            joined = _Joined(self, keys, holder[last])
            holder[last] = joined if lazy else dict(joined)
        return checkpoint


class _Joined(Mapping[str, Any]):
    """Tensors by name, some of them in parts."""

    def __init__(self, file: ShardedFile, keys: Mapping[str, Key], rest: Mapping[str, Any]) -> None:
        self._file, self._keys, self._rest = file, keys, rest

    def __getitem__(self, name: str) -> Any:
        return self._file.whole(self._keys[name]) if name in self._keys else self._rest[name]

    def __iter__(self) -> Iterator[str]:
        yield from self._keys
        yield from self._rest

    def __len__(self) -> int:
        return len(self._keys) + len(self._rest)
