"""What the C library does with the memory that tensors of a large model gave back, on a CPU.

glibc answers requests below a threshold from a heap, which it can shrink at its upper end alone, and raises that
threshold by itself to 32 MB as larger blocks are freed. The tensors of a large model's step, of 2 to 40 MB and of many
sizes, then lie between holes: the process takes up to twice what they hold. With a fixed threshold each large block is
mapped by itself and goes back to the system at once. Pages that are mapped anew must be filled with zeros first, which
a small model's steps feel and a large one's products drown (``python tests/benchmarks/bench_memory.py table``).
"""

from __future__ import annotations

import ctypes
import os
import platform

from torch import nn

LARGE = 100_000_000  # weights, from which on it costs a few hundredths of a step's time at most
LARGE_BLOCK = 2 << 20  # bytes
KEPT_AT_THE_END = 64 << 20  # bytes at the heap's upper end, as where glibc chooses by itself
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of malloc.h
_CHOSEN = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES")


def give_large_blocks_back(model: nn.Module) -> bool:
    """Let the C library give large blocks back at once, in this process, where a model is large.

    Nothing is done where the library is not glibc, or where the environment has chosen already.

    Args:
        model: The model, on the CPU.

    Returns:
        Whether it was done.
    """
    if platform.libc_ver()[0] != "glibc" or any(name in os.environ for name in _CHOSEN):
        return False
    if sum(weight.numel() for weight in model.parameters()) < LARGE:
        return False
    library = ctypes.CDLL(None)
    both = ((_M_MMAP_THRESHOLD, LARGE_BLOCK), (_M_TRIM_THRESHOLD, KEPT_AT_THE_END))
    return all(library.mallopt(option, value) == 1 for option, value in both)
