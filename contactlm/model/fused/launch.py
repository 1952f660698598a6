"""Which kernel runs with which tiles, and what it is given.

Axis letters: B batch, T tokens, H heads, D head width, K read-outs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from contactlm.model.fused import backward_kernels, forward_kernels


class Tiles(NamedTuple):
    """How a kernel cuts its work: rows and columns of a tile, warps of a program, stages of loads under way."""

    rows: int
    columns: int
    warps: int
    stages: int


# By kernel: for heads of at most 64, and for wider ones.
_HALF_PRECISION = {
    "attend": (Tiles(128, 64, 8, 2), Tiles(128, 32, 8, 3)),
    "share": (Tiles(128, 64, 8, 3), Tiles(128, 64, 8, 2)),
    "share_many": (Tiles(32, 64, 8, 2), Tiles(32, 64, 8, 2)),
    "row_sums": (Tiles(128, 32, 8, 3), Tiles(128, 32, 8, 3)),
    "query_gradient": (Tiles(128, 32, 8, 3), Tiles(64, 32, 8, 2)),
    "key_value_gradient": (Tiles(64, 32, 4, 2), Tiles(32, 64, 8, 2)),
}

_SINGLE_PRECISION = {
    "attend": (Tiles(32, 32, 4, 1), Tiles(16, 32, 4, 1)),
    "share": (Tiles(32, 32, 4, 1), Tiles(16, 32, 4, 1)),
    "share_many": (Tiles(32, 32, 8, 1), Tiles(16, 32, 8, 1)),
    "row_sums": (Tiles(32, 32, 4, 1), Tiles(16, 32, 4, 1)),
    "query_gradient": (Tiles(32, 32, 8, 1), Tiles(16, 16, 4, 1)),
    "key_value_gradient": (Tiles(32, 32, 8, 1), Tiles(16, 32, 8, 1)),
}

AT_ONCE = 8  # read-outs whose tiles a program holds in registers


def tiles(kernel: str, width: int, entry_bytes: int) -> Tiles:
    """Tiles that fit into the shared memory of every card from compute capability 8.0 on, without register spills.

    ``width`` is as of :func:`padded_width`; ``entry_bytes`` of the inputs are 2 in half precision, else 4.
    """
    narrow, wide = (_HALF_PRECISION if entry_bytes == 2 else _SINGLE_PRECISION)[kernel]
    return wide if width > 64 else narrow


def padded_width(width: int) -> int:
    """The head width as the kernels see it: a power of two, and at least 16, which a tensor core's product needs."""
    return max(16, 1 << (width - 1).bit_length())


@dataclass(frozen=True)
class Given:
    """What both passes read."""

    query: Tensor  # (B, H, T, D), each token's D entries side by side; key and value alike, all of one dtype
    key: Tensor
    value: Tensor | None
    head_weight: Tensor  # (H,) or (K, H), contiguous, any floating dtype
    residue: Tensor  # bool (B, T)
    key_bias: Tensor  # float32 (B, T), 0 or −inf
    spans: Tensor  # int32 (B, 2): as of TokenLayout

    @property
    def read(self) -> Tensor:
        """The value, or in its place something that the kernels do not touch."""
        return self.query if self.value is None else self.value

    @property
    def read_outs(self) -> int:
        """K."""
        return 1 if self.head_weight.ndim == 1 else len(self.head_weight)

    def per_token(self, count: int) -> list[Tensor]:
        """Make empty float32 arrays (B, H, T)."""
        shape = self.query.shape[:3]
        return [torch.empty(shape, device=self.query.device) for _ in range(count)]

    def run(self, kernel: Any, grid: tuple[int, ...], arguments: Sequence[Any], **constants: Any) -> None:
        """Launch a kernel with its tiles and constants."""
        cut = self.tiles(kernel)
        width = self.query.shape[3]
        constants |= {"D": width, "BD": padded_width(width), "BM": cut.rows, "BN": cut.columns}
        constants["PRECISION"] = _precision()
        start(kernel, grid, arguments, constants, {"num_warps": cut.warps, "num_stages": cut.stages})

    def tiles(self, kernel: Any) -> Tiles:
        """The kernel's tiles for these inputs."""
        name: str = kernel.__name__
        return tiles(name, padded_width(self.query.shape[3]), self.query.element_size())


def start(
    kernel: Any, grid: tuple[int, ...], arguments: Sequence[Any], constants: dict[str, Any], options: dict[str, int]
) -> None:
    """Launch a kernel; what compiles the kernels without running them takes this function's place."""
    kernel[grid](*arguments, **constants, **options, enable_fp_fusion=True)


def attend(given: Given) -> tuple[Tensor | None, Tensor, Tensor]:
    """Return context (B, H, T, D), laid out as (B, T, H, D), or None; log-sums and sums over residues (B, H, T)."""
    q, k, v, kernel = given.query, given.key, given.value, forward_kernels.attend
    B, H, T, D = q.shape
    context = None if v is None else v.new_empty(B, T, H, D).transpose(1, 2)
    written = q if context is None else context
    log_sums, inner = given.per_token(2)
    tensors = [q, k, given.read, given.key_bias, given.residue, given.spans, written, log_sums, inner]
    grid = (_parts(T, given.tiles(kernel).rows), B * H)
    given.run(kernel, grid, [*tensors, *_strides(q, k, given.read, written), H, T], WITH_VALUE=v is not None)
    return context, log_sums, inner


def share(given: Given, log_sums: Tensor, skip_idle: bool) -> tuple[Tensor, Tensor]:
    """Return ``weighted`` (B, T, T) or (B, K, T, T) and the maps' column sums over residues (B, H, T).

    Every row of tiles writes column sums of its own: nothing is added up in an order that may change.
    """
    q, k, K = given.query, given.key, given.read_outs
    kernel = forward_kernels.share if K == 1 else forward_kernels.share_many
    B, H, T, _ = q.shape
    cut = given.tiles(kernel)
    rows, columns = _parts(T, cut.rows), _parts(T, cut.columns)
    weighted = torch.empty(B, *given.head_weight.shape[:-1], T, T, device=q.device)
    sums = torch.zeros(B, H, rows, T, device=q.device)
    tensors = [q, k, given.head_weight, given.residue, given.spans, log_sums, weighted, sums]
    arguments = [*tensors, *_strides(q, k), H, T, rows]
    if K == 1:
        given.run(kernel, (rows, columns, B), arguments, SKIP_IDLE=skip_idle)
    else:
        given.run(kernel, (rows, columns, B * _parts(K, AT_ONCE)), [*arguments, K], AT_ONCE=AT_ONCE)
    return weighted, sums.sum(2)


@dataclass(frozen=True)
class Outer:
    """What the backward pass takes in addition to the inputs."""

    d_context: Tensor | None  # (B, H, T, D)
    d_weighted: Tensor  # float32 (B, T, T) or (B, K, T, T), contiguous
    d_margins: Tensor  # float32 (B, H, T), contiguous, 0 at tokens that are no residues
    log_sums: Tensor  # float32 (B, H, T), as of attend


def row_sums(given: Given, outer: Outer, context: Tensor | None, inner: Tensor) -> tuple[Tensor, Tensor]:
    """Return Σ_j P_ij dA_ij (B, H, K, T), whose sum over rows is the head weight's gradient, and D_i (B, H, T)."""
    q, k, kernel = given.query, given.key, backward_kernels.row_sums
    c, g = (q, q) if context is None or outer.d_context is None else (context, outer.d_context)
    (dots,) = given.per_token(1)
    (B, H, T), K = dots.shape, given.read_outs
    u = torch.empty(B, H, K, T, device=q.device)
    tensors = [q, k, c, g, outer.d_weighted, outer.d_margins, given.head_weight]
    tensors += [given.key_bias, given.residue, given.spans, outer.log_sums, inner, u, dots]
    given.run(
        kernel,
        _grid(q, given.tiles(kernel).rows),
        [*tensors, *_strides(q, k, c, g), q.shape[1], q.shape[2]],
        K=K,
        KP=1 << (K - 1).bit_length(),
        WITH_VALUE=outer.d_context is not None,
    )
    return u, dots


def query_gradient(given: Given, outer: Outer, dots: Tensor) -> Tensor:
    """Return dq (B, H, T, D)."""
    q, kernel = given.query, backward_kernels.query_gradient
    arguments, strides, with_value = _of_gradients(given, outer, dots)
    dq = torch.empty_like(q)
    arguments += [dq, *strides, *_strides(dq), q.shape[1], q.shape[2]]
    given.run(kernel, _grid(q, given.tiles(kernel).rows), arguments, K=given.read_outs, WITH_VALUE=with_value)
    return dq


def key_value_gradient(
    given: Given, outer: Outer, dots: Tensor | None, need_value: bool
) -> tuple[Tensor | None, Tensor | None]:
    """Return dk and dv (B, H, T, D); without ``dots`` no dk."""
    q, kernel = given.query, backward_kernels.key_value_gradient
    arguments, strides, with_value = _of_gradients(given, outer, dots)
    need_value = need_value and with_value
    dk = None if dots is None else torch.empty_like(given.key)
    dv = torch.empty_like(given.read) if need_value else None
    written = [q if gradient is None else gradient for gradient in (dk, dv)]
    given.run(
        kernel,
        _grid(q, given.tiles(kernel).columns),
        [*arguments, *written, *strides, *_strides(*written), q.shape[1], q.shape[2]],
        K=given.read_outs,
        WITH_VALUE=with_value,
        NEED_KEY=dk is not None,
        NEED_VALUE=need_value,
    )
    return dk, dv


def _of_gradients(given: Given, outer: Outer, dots: Tensor | None) -> tuple[list[Any], list[int], bool]:
    """What both gradient kernels read; the strides of it; whether there is a context whose gradient counts."""
    with_value = given.value is not None and outer.d_context is not None
    g = outer.d_context if outer.d_context is not None else given.query
    tensors = [given.query, given.key, given.read, g, outer.d_weighted, outer.d_margins, given.head_weight]
    tensors += [given.key_bias, given.residue, given.spans, outer.log_sums, outer.log_sums if dots is None else dots]
    return tensors, _strides(given.query, given.key, given.read, g), with_value


def _grid(query: Tensor, size: int) -> tuple[int, int, int]:
    B, H, T, _ = query.shape
    return H, _parts(T, size), B


def _parts(total: int, size: int) -> int:
    return -(-total // size)


def _strides(*tensors: Tensor) -> list[int]:
    """Of batch, head and token."""
    return [stride for tensor in tensors for stride in tensor.stride()[:3]]


def _precision() -> str:
    """How float32 is multiplied: as TF32 where ``torch.set_float32_matmul_precision`` lets it, else as three."""
    return "tf32x3" if torch.get_float32_matmul_precision() == "highest" else "tf32"
