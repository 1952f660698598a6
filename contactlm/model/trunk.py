"""One layer, run for its contact shares: the arithmetic of the stock layer in fewer passes over memory.

Axis letters: B batch, T tokens, H heads, D head width, E hidden width (H x D).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from contactlm.model.blocks import TokenLayout
from contactlm.model.contact_attention import Shares
from contactlm.model.families.family import Family
from contactlm.model.remade import Remade
from contactlm.types import ModelError

Attention = Callable[[Tensor, Tensor, Tensor | None, Tensor, TokenLayout], Shares]


def read_batch(
    family: Family, config: Any, tokens: Tensor, attention_mask: Tensor | None, positions: Tensor | None
) -> tuple[Tensor, TokenLayout, Tensor]:
    """Check a batch, as of :meth:`~contactlm.model.backbone.ContactBackbone.forward`.

    Returns:
        Which tokens are attended to, bool (B, T); which are what; and their positions, int64 (1 or B, T), those of a
        family that learns them as far apart as it reaches (:func:`within_reach`).
    """
    if tokens.ndim != 2 or tokens.shape[1] < 3:
        raise ModelError(
            f"tokens: shape {tuple(tokens.shape)}; (B, T) is needed with T at least 3: <cls>, a residue, <eos>"
        )
    for name, given in (("attention_mask", attention_mask), ("positions", positions)):
        if given is not None and given.shape != tokens.shape:
            raise ModelError(f"{name}: shape {tuple(given.shape)}, but tokens have {tuple(tokens.shape)}")
    mask = tokens != family.tokens.pad if attention_mask is None else attention_mask.bool()
    T, reach = tokens.shape[1], family.reach(config)
    if reach is not None and reach < T:
        raise ModelError(
            f"{T} tokens in one pass, but this {family.name} has learned positions for {reach}: {reach - 2} residues "
            "at most; score longer chains in windows (model.window), and train on shorter crops (data.crop_length)"
        )
    if positions is None:
        positions = torch.arange(T, device=tokens.device).unsqueeze(0)
    elif reach is not None:
        positions = within_reach(positions, mask, reach)
    return mask, TokenLayout.of(tokens, mask, family.tokens.eos), positions


def within_reach(positions: Tensor, mask: Tensor, reach: int) -> Tensor:
    """Bring learned positions to where a model has learned them.

    Rows that end before ``reach`` stay as they are. Others are shifted towards 0 as a whole; where even their span is
    too long, the jumps in it (between the segments of a pass, between chains) are shortened in proportion. Positions
    (B, T) ascend where attended, and are 0 at padding.
    """
    positions = positions.masked_fill(~mask, 0)
    excess = (positions.amax(1, keepdim=True) - (reach - 1)).clamp(min=0)
    shift = torch.minimum(excess, positions[:, :1])
    jumps = (positions.diff(dim=1) - 1).clamp(min=0)
    total = jumps.sum(1, keepdim=True)
    kept = jumps * (total - excess + shift).clamp(min=0) // total.clamp(min=1)
    shortened = F.pad((jumps - kept).cumsum(1), (1, 0))
    return (positions - shift - shortened).masked_fill(~mask, 0)


def rotary_angles(frequencies: Tensor, positions: Tensor) -> Tensor:
    """Return the angle of every position and frequency: float32 (B or 1, T, D / 2)."""
    return positions.unsqueeze(-1).float() * frequencies.float()


def checkpoint_layers(layers: nn.ModuleList) -> None:
    """Let every layer but the last keep only its input while training, and run again in the backward pass.

    The last layer's turn in the backward pass comes at once: nothing would be won. transformers' own switch makes the
    embeddings ask for a gradient as well, which costs a frozen backbone a backward pass to its very beginning.
    """
    for layer in list(layers)[:-1]:
        layer.checkpointed = True  # type: ignore[assignment]  # a SharingLayer, or about to be one


class SharingLayer:
    """What a family's stock layer inherits from before its own class, to be called for its contact shares as well.

    Called, and not run from outside, it does what is hooked to it: activation checkpointing, and the gathering of its
    weights where they are spread over processes.
    """

    checkpointed = False  # whether only its input is kept for the backward pass
    training: bool

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        """Run the layer, and again in the backward pass where it is checkpointed."""
        call = super().__call__  # type: ignore[misc]  # the stock layer's
        if self.checkpointed and self.training:
            return checkpoint(call, *arguments, use_reentrant=False, **options)
        return call(*arguments, **options)

    def forward(self, hidden: Tensor, *arguments: Any, shares: Mapping[str, Any] | None = None, **options: Any) -> Any:
        """Run the layer on (B, T, E): for its shares, with the arguments of :func:`layer_shares`, or the stock one."""
        if shares is None:
            return super().forward(hidden, *arguments, **options)  # type: ignore[misc]  # the stock layer's
        if not torch.is_grad_enabled() or torch.compiler.is_compiling():  # a compiler decides by itself what is kept
            return layer_shares(self, hidden, *arguments, **shares)
        with Remade():
            return layer_shares(self, hidden, *arguments, **shares)

    def project(self, hidden: Tensor, angles: Tensor | None, last: bool) -> tuple[Tensor, Tensor, Tensor | None]:
        """Make of (B, T, E) query (B, H, T, D), scaled and rotated; key alike; value alike, None of the last layer."""
        raise TypeError(f"{type(self).__name__} hands out no queries and keys")

    def finish(self, hidden: Tensor, context: Tensor) -> Tensor:
        """Make the layer's output (B, T, E) of its input and the attention's context (B, T, E)."""
        raise TypeError(f"{type(self).__name__} makes no output of a context")


def layer_shares(
    layer: SharingLayer,
    hidden: Tensor,
    angles: Tensor | None,
    head_weight: Tensor,
    layout: TokenLayout,
    attention: Attention,
    last: bool,
    active: Sequence[int] | None = None,
) -> Shares:
    """Run one layer.

    Args:
        layer: A family's, with or without adapters.
        hidden: (B, T, E).
        angles: See :func:`rotary_angles`.
        head_weight: (H,), the contact head's weights of this layer's maps; (K, H) of K read-outs.
        layout: Which tokens are what.
        attention: The operation.
        last: Whether nobody reads the layer's own output: then only queries and keys are computed.
        active: The heads whose maps the contact head reads; None: all.

    Returns:
        The layer's output (B, T, E), or None for the last layer; ``weighted`` and ``margins`` as of
        :func:`~contactlm.model.contact_attention.contact_attention`, of the active heads.
    """
    query, key, value = layer.project(hidden, angles, last)
    if active is None:
        context, weighted, margins = attention(query, key, value, head_weight, layout)
    else:
        context, weighted, margins = _attend_some(query, key, value, head_weight, layout, attention, active)
    if context is None:
        return None, weighted, margins
    return layer.finish(hidden, context.transpose(1, 2).flatten(2)), weighted, margins


def _attend_some(
    query: Tensor, key: Tensor, value: Tensor | None, head_weight: Tensor, layout: TokenLayout, attention: Attention,
    active: Sequence[int],
) -> Shares:  # fmt: skip
    """Attend with all heads, and hand over shares of the active ones: the others' maps are never seen."""
    B, H, T, _ = query.shape
    idle = sorted(set(range(H)) - set(active))
    some, others = torch.tensor(active, device=query.device), torch.tensor(idle, device=query.device)
    context, weighted, margins = None, head_weight.new_zeros(B, T, T), head_weight.new_zeros(B, 0, T)
    if active:
        read = None if value is None else value[:, some]
        context, weighted, margins = attention(query[:, some], key[:, some], read, head_weight[some], layout)
    if value is None or not idle:
        return context, weighted, margins
    bias = None if layout.unpadded else layout.key_bias[:, None, None].to(query.dtype)
    q, k, v = query[:, others], key[:, others], value[:, others].to(query.dtype)
    rest = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=1.0).to(value.dtype)
    if context is None:
        return rest, weighted, margins
    return torch.cat([context, rest], 1)[:, torch.cat([some, others]).argsort()], weighted, margins


def rotate(x: Tensor, angles: Tensor | None, scale: float) -> Tensor:
    """Scale (B, T, H, D), rotate it by its positions' angles (Su et al. 2021), and return it as (B, H, T, D).

    Without angles it is scaled alone.
    """
    if angles is None:
        return (x if scale == 1 else x * scale).transpose(1, 2)
    dtype = x.dtype if x.dtype == torch.float64 else torch.float32
    cos = (angles.cos().to(dtype) * scale).unsqueeze(2)
    sin = (angles.sin().to(dtype) * scale).unsqueeze(2)
    left, right = x.to(dtype).chunk(2, dim=-1)
    return torch.cat([left * cos - right * sin, right * cos + left * sin], dim=-1).transpose(1, 2)
