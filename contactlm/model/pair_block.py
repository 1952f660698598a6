"""A residual 3 x 3 convolution over pairs, which keeps its input alone for the backward pass.

    out = x + conv(y) + b,    y = mask · relu(x s),    s = 1 / sqrt(mean over channels of x² + ε)

Pairs lie as (B, rows, columns, N), channels last, as convolutions and products of channels want them. The backward
pass makes y again, which is cheap.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_EPSILON = 1e-5


class PairBlock(nn.Module):
    """The block of N channels, of a dilation; its weights begin small."""

    def __init__(self, channels: int, dilation: int) -> None:
        super().__init__()
        self.dilation = dilation
        self.weight = nn.Parameter(0.5 * (9 * channels) ** -0.5 * torch.randn(channels, channels, 3, 3))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor, mask: Tensor, dtype: torch.dtype) -> Tensor:
        """Run on pairs (B, rows, columns, N); nothing is read where ``mask`` (B, rows, columns, 1) is 0.

        Convolutions are done in ``dtype``, all else in that of ``x``.
        """
        made: Tensor = _Block.apply(x, mask, self.weight, self.bias, self.dilation, dtype)
        return made


def unit(x: Tensor) -> Tensor:
    """Values (…, N) of a root mean square of 1."""
    return x * _scale(x)


def _scale(x: Tensor) -> Tensor:
    return x.square().mean(-1, keepdim=True).add_(_EPSILON).rsqrt_()


class _Block(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, mask: Tensor, weight: Tensor, bias: Tensor, dilation: int, dtype: Any) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            masked = _scale(x).mul_(mask)
            y = (x * masked).relu_()
            made = _convolved(y, weight, dilation, dtype, bias).add_(x)
        ctx.save_for_backward(x, masked, weight)
        ctx.dilation, ctx.dtype = dilation, dtype
        return made

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        x, masked, weight = ctx.saved_tensors
        with torch.autocast(x.device.type, enabled=False):
            gradient = gradient.contiguous()
            d_weight = d_bias = None
            if ctx.needs_input_grad[2]:
                d_weight = _weight_gradient((x * masked).relu_(), gradient, weight, ctx.dilation, ctx.dtype)
            if ctx.needs_input_grad[3]:
                d_bias = gradient.new_ones(1, gradient[..., 0].numel()).mm(gradient.flatten(0, -2)).squeeze(0)
            if not ctx.needs_input_grad[0]:
                return None, None, d_weight, d_bias, None, None
            turned = weight.flip(2, 3).transpose(0, 1)
            dy = _convolved(gradient, turned, ctx.dilation, ctx.dtype)
            dy = torch.ops.aten.threshold_backward(dy, x, 0).mul_(masked)
            pulled = (dy * x).mean(-1, keepdim=True).mul_(masked.square())
            return dy.addcmul_(x, pulled, value=-1).add_(gradient), None, d_weight, d_bias, None, None


def _convolved(y: Tensor, weight: Tensor, dilation: int, dtype: torch.dtype, bias: Tensor | None = None) -> Tensor:
    """Convolve (B, rows, columns, N); fresh memory, in y's dtype."""
    images, kernel = y.to(dtype).permute(0, 3, 1, 2), weight.to(dtype).contiguous(memory_format=torch.channels_last)
    bias = None if bias is None else bias.to(dtype)
    made = F.conv2d(images, kernel, bias, padding=dilation, dilation=dilation).permute(0, 2, 3, 1)
    return made.contiguous().to(y.dtype)


def _weight_gradient(y: Tensor, gradient: Tensor, weight: Tensor, dilation: int, dtype: torch.dtype) -> Tensor:
    """The weights' gradient; on a CPU the pairs of each residue class modulo the dilation are images of their own."""
    if y.device.type == "cpu" and dilation > 1:  # libraries have no fast gradient of dilated weights
        y, gradient, dilation = _classes(y, dilation), _classes(gradient, dilation), 1
    images = [each.to(dtype).permute(0, 3, 1, 2) for each in (gradient, y)]
    about = [1, 1], [dilation] * 2, [dilation] * 2, False, [0, 0], 1, [False, True, False]
    kernel = weight.to(dtype).contiguous(memory_format=torch.channels_last)
    return torch.ops.aten.convolution_backward(*images, kernel, None, *about)[1].to(weight.dtype)


def _classes(x: Tensor, dilation: int) -> Tensor:
    B, rows, columns, N = x.shape
    x = F.pad(x, (0, 0, 0, -columns % dilation, 0, -rows % dilation))
    parts = x.view(B, x.shape[1] // dilation, dilation, x.shape[2] // dilation, dilation, N)
    return parts.permute(0, 2, 4, 1, 3, 5).reshape(-1, parts.shape[1], parts.shape[3], N)
