"""What is cheap to make again is not kept for the backward pass.

A product whose weights learn keeps its input: the output of a layer norm, of an activation, of dropout. Each of them
takes one pass over memory to make, and what it is made of is kept anyway, or smaller. So the backward pass makes it
again: the same numbers, less memory.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from contextvars import ContextVar, Token
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

Again = Callable[[], Tensor]


class Remade(saved_tensors_hooks):
    """Within this context what :func:`cheap` and :class:`CheapDropout` made is not kept, but recomputed when needed.

    Nothing changes within another context of saved tensors (activation checkpointing is one): it decides.
    """

    def __init__(self) -> None:
        super().__init__(self._pack, _unpack)
        self._recipes: dict[int, tuple[weakref.ref[torch.UntypedStorage], Again]] = {}
        self._before: Token[Remade | None] | None = None

    def __enter__(self) -> None:
        if _is_free():
            self._before = _now.set(self)
            super().__enter__()

    def __exit__(self, *error: object) -> None:
        if self._before is not None:
            super().__exit__(*error)
            _now.reset(self._before)
            self._before = None
            self._recipes.clear()

    def add(self, made: Tensor, again: Again) -> None:
        """Say how to make a tensor again; it must be the only one in its memory."""
        storage = made.untyped_storage()  # PyTorch hands out the same object for the same storage, while it lives
        self._recipes[id(storage)] = weakref.ref(storage), again

    def source(self, x: Tensor) -> Again:
        """How to come by a tensor: by what makes it again, else by keeping it."""
        return self._recipe(x) or partial(Tensor.detach, x.detach())

    def _recipe(self, x: Tensor) -> Again | None:
        storage = x.untyped_storage()
        reference, again = self._recipes.get(id(storage), (None, None))
        whole = x.is_contiguous() and x.nbytes == storage.nbytes()
        return again if reference is not None and reference() is storage and whole else None

    def _pack(self, tensor: Tensor) -> Any:
        again = self._recipe(tensor)
        return tensor if again is None else (again, tensor.shape)


_now: ContextVar[Remade | None] = ContextVar("remade", default=None)


def _is_free() -> bool:
    """Whether there is no other context of saved tensors; torch < 2.7 cannot say, and nothing changes there."""
    top = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", None)
    return top is not None and top(False) is None


def _context() -> Remade | None:
    return None if torch.compiler.is_compiling() else _now.get()


def _unpack(kept: Any) -> Tensor:
    if isinstance(kept, Tensor):
        return kept
    again, shape = kept
    with torch.no_grad():
        return again().view(shape)


def cheap(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Give ``function(x)``, a fresh tensor; within :class:`Remade` what keeps it keeps ``x`` instead."""
    made = function(x)
    if (now := _context()) is not None:
        source = now.source(x)
        now.add(made, lambda: function(source()))
    return made


class CheapDropout(nn.Dropout):
    """Dropout that keeps which entries it kept, a byte each, and not what became of them; draws as the stock one does.

    Under mixed precision its output is what a product makes of it, in half precision.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Drop entries of ``x``, any shape."""
        if not self.training or self.p == 0:
            return x
        made, mask = torch.native_dropout(x, self.p, True)
        kind = x.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
        made = made.to(dtype)
        if (now := _context()) is not None:
            source, scale = now.source(x), 1 / (1 - self.p)
            now.add(made, lambda: (source() * mask).mul_(scale).to(dtype))
        return made
