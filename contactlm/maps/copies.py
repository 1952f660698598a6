"""Copies between the processor and a device that neither waits for.

On a GPU a copy starts from, or ends in, pinned memory, and runs in a stream of its own: while the results of one batch
come back, the next one is computed. Elsewhere they are plain copies.
"""

from __future__ import annotations

import torch
from torch import Tensor


def goes_on(device: torch.device) -> bool:
    """Whether a device works while the processor does, so that its results are better asked for later."""
    return device.type == "cuda"


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """The same tensor on a device, which may still be on its way there; the device waits for it, nobody else."""
    if goes_on(device) and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


class Fetched:
    """A tensor on its way to the processor, from any device; the tensor itself may be let go of at once."""

    _queues: dict[torch.device, torch.cuda.Stream] = {}  # noqa: RUF012 - one a device, for the whole process

    def __init__(self, tensor: Tensor) -> None:
        self._done: torch.cuda.Event | None = None
        if not goes_on(tensor.device):
            self._there = tensor.cpu()
            return
        queue = self._queues.setdefault(tensor.device, torch.cuda.Stream(tensor.device))
        queue.wait_stream(torch.cuda.current_stream(tensor.device))
        self._there = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        with torch.cuda.stream(queue):
            self._there.copy_(tensor, non_blocking=True)
        tensor.record_stream(queue)  # its memory is given to nobody before the copy is through
        self._done = torch.cuda.Event()
        self._done.record(queue)

    def wait(self) -> Tensor:
        """The tensor on the CPU, once it is there. Its memory is short: copy what is to be kept."""
        if self._done is not None:
            self._done.synchronize()
        return self._there
