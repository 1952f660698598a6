"""One layer of ESM2, run for its contact shares: the arithmetic of the stock layer in fewer passes over memory.

Axis letters: B batch, T tokens, H heads, D head width, E hidden width (H x D).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers.models.esm.modeling_esm import EsmLayer

from contactlm.alphabet import PAD
from contactlm.model.blocks import TokenLayout
from contactlm.model.contact_attention import Shares
from contactlm.types import ModelError

Attention = Callable[[Tensor, Tensor, Tensor | None, Tensor, TokenLayout], Shares]


def check_tokens(tokens: Tensor, attention_mask: Tensor | None, positions: Tensor | None) -> Tensor:
    """Return which tokens are attended to: bool (B, T).

    Raises:
        ModelError: Tokens that are not (B, T) with T at least 3, or a mask or positions of another shape.
    """
    if tokens.ndim != 2 or tokens.shape[1] < 3:
        raise ModelError(
            f"tokens: shape {tuple(tokens.shape)}; (B, T) is needed with T at least 3: <cls>, a residue, <eos>"
        )
    for name, given in (("attention_mask", attention_mask), ("positions", positions)):
        if given is not None and given.shape != tokens.shape:
            raise ModelError(f"{name}: shape {tuple(given.shape)}, but tokens have {tuple(tokens.shape)}")
    return tokens != PAD if attention_mask is None else attention_mask.bool()


def rotary_angles(esm: Any, positions: Tensor) -> Tensor:
    """Return the angle of every position and frequency: float32 (B or 1, T, D / 2)."""
    return positions.unsqueeze(-1).float() * esm.rotary_embeddings.inv_freq.float()


def checkpoint_layers(esm: Any) -> None:
    """Let every layer but the last keep only its input while training, and run again in the backward pass.

    The last layer's turn in the backward pass comes at once: nothing would be won. transformers' own switch makes the
    embeddings ask for a gradient as well, which costs a frozen backbone a backward pass to its very beginning.

    Args:
        esm: An ``EsmModel``; its layers are changed.
    """
    for layer in esm.encoder.layer[:-1]:
        layer.gradient_checkpointing = True
        layer._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False)


class SharingLayer(EsmLayer):
    """The stock layer, which is also called for its contact shares.

    Called, and not run from outside, it does what is hooked to it: activation checkpointing, and the gathering of its
    weights where they are spread over processes.
    """

    def forward(self, hidden: Tensor, *arguments: Any, shares: Mapping[str, Any] | None = None, **options: Any) -> Any:
        """Run the layer.

        Args:
            hidden: (B, T, E).
            arguments: With ``shares``: ``angles`` and ``head_weight`` of :func:`layer_shares`; else the stock layer's.
            shares: The other arguments of :func:`layer_shares`; None runs the stock layer.
            options: The stock layer's.
        """
        if shares is None:
            return super().forward(hidden, *arguments, **options)
        return layer_shares(self, hidden, *arguments, **shares)


def layer_shares(
    layer: Any,
    hidden: Tensor,
    angles: Tensor,
    head_weight: Tensor,
    layout: TokenLayout,
    attention: Attention,
    last: bool,
    active: Sequence[int] | None = None,
) -> Shares:
    """Run one layer.

    Args:
        layer: An ``EsmLayer``, with or without adapters.
        hidden: (B, T, E).
        angles: See :func:`rotary_angles`.
        head_weight: (H,), the contact head's weights of this layer's maps.
        layout: Which tokens are what.
        attention: The streamed or the plain operation.
        last: Whether nobody reads the layer's own output: then only queries and keys are computed.
        active: The heads whose maps the contact head reads; None: all.

    Returns:
        The layer's output (B, T, E), or None for the last layer; ``weighted`` and ``margins`` as of
        :func:`~contactlm.model.contact_attention.contact_attention`, of the active heads.
    """
    block = layer.attention
    heads = block.self
    normed = block.LayerNorm(hidden)
    split = (*hidden.shape[:2], heads.num_attention_heads, heads.attention_head_size)
    query = rotate(heads.query(normed).view(split), angles, heads.attention_head_size**-0.5)
    key = rotate(heads.key(normed).view(split), angles, 1.0)
    value = None if last else heads.value(normed).view(split).transpose(1, 2)
    if active is None:
        context, weighted, margins = attention(query, key, value, head_weight, layout)
    else:
        context, weighted, margins = _attend_some(query, key, value, head_weight, layout, attention, active)
    if context is None:
        return None, weighted, margins
    hidden = block.output(context.transpose(1, 2).flatten(2), hidden)
    # The erf form in one pass; transformers spells it out in five.
    inner = F.gelu(layer.intermediate.dense(layer.LayerNorm(hidden)))
    return layer.output(inner, hidden), weighted, margins


def _attend_some(
    query: Tensor,
    key: Tensor,
    value: Tensor | None,
    head_weight: Tensor,
    layout: TokenLayout,
    attention: Attention,
    active: Sequence[int],
) -> Shares:
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


def rotate(x: Tensor, angles: Tensor, scale: float) -> Tensor:
    """Rotate (B, T, H, D) by its positions' angles (Su et al. 2021) and return it as (B, H, T, D)."""
    dtype = x.dtype if x.dtype == torch.float64 else torch.float32
    cos = (angles.cos() * scale).to(dtype).unsqueeze(2)
    sin = (angles.sin() * scale).to(dtype).unsqueeze(2)
    left, right = x.to(dtype).chunk(2, dim=-1)
    return torch.cat([left * cos - right * sin, right * cos + left * sin], dim=-1).transpose(1, 2)
