"""Frozen weights in fewer bits: bfloat16, or quantised with bitsandbytes.

What becomes smaller are the weights of the layers' linear maps, which are nearly all there is. Biases, embeddings,
layer norms, rotary frequencies, adapters and the contact head stay float32, as does the sum that every layer adds to.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from contactlm.model.blocks import has_numbers
from contactlm.model.families.family import family_of
from contactlm.model.loading import load_esm
from contactlm.types import MissingExtraError, ModelError

DtypeName = Literal["float32", "bfloat16"]
QuantizationName = Literal["int8", "nf4"]
_DTYPES = {None: torch.float32, "float32": torch.float32, "bfloat16": torch.bfloat16}
_QUANTIZATIONS = (None, "int8", "nf4")
_BLOCK = 64  # neighbouring weights that share a scale in nf4
EXTRA = "quant"


class FrozenLinear(nn.Linear):
    """A linear map whose weight (out, in) is held, and multiplied, in half precision; its bias is float32.

    Attributes:
        wide: Whether results are float32, for what is added to them or made of them not to be rounded again: those
            that an adapter adds to, queries and keys.
    """

    wide = False

    def forward(self, x: Tensor) -> Tensor:
        """Map (…, in) to (…, out), in the weight's dtype, or in float32."""
        dtype = self.weight.dtype
        bias = None if self.bias is None else self.bias.to(dtype)
        with torch.autocast(x.device.type, enabled=False):
            result = F.linear(x.to(dtype), self.weight, bias)
        return result.float() if self.wide else result


class QuantizedLinear(nn.Linear):
    """A linear map whose weight is held in 8 or 4 bits, and made whole for each of its products; its bias is float32.

    Inputs are not quantised, and nothing of their size is kept for the backward pass.

    Attributes:
        wide: As of :class:`FrozenLinear`.
        quantization: ``"int8"``: a scale a row; ``"nf4"``: 4 bits at the quantiles of a normal distribution, a scale
            for 64 weights (Dettmers et al. 2023).
        product: The dtype of products where there is no autocast.
    """

    wide = False
    quantization: QuantizationName
    product: torch.dtype
    packed: Tensor  # int8 (out, in), or uint8 (out x in / 2, 1)
    scales: Tensor  # float32 (out,), or (out x in / 64,)

    @property
    def weight(self) -> Tensor:  # type: ignore[override]  # a parameter in its base class
        """What the product is with: float32 (out, in), rebuilt each time."""
        return self.whole(torch.float32)

    def whole(self, dtype: torch.dtype) -> Tensor:
        """The weight (out, in)."""
        if not has_numbers(self.packed) or self.packed.is_meta:
            return self.packed.new_empty(self.out_features, self.in_features, dtype=dtype)
        codec = _bitsandbytes()
        if self.quantization == "int8":
            return codec.int8_vectorwise_dequant(self.packed, self.scales).to(dtype)
        shape = torch.Size((self.out_features, self.in_features))
        state = codec.QuantState(self.scales, shape, blocksize=_BLOCK, quant_type="nf4", dtype=dtype)
        return codec.dequantize_4bit(self.packed, state)

    def forward(self, x: Tensor) -> Tensor:
        """Map (…, in) to (…, out), in the product's dtype, or in float32."""
        kind = x.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else self.product
        result = _QuantizedProduct.apply(x, self, dtype)
        if self.bias is not None:
            result = result + self.bias.to(dtype)
        return result.float() if self.wide else result


class _QuantizedProduct(torch.autograd.Function):
    """A product with a quantised weight, which is made whole again for the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: QuantizedLinear, dtype: torch.dtype) -> Tensor:
        ctx.layer, ctx.given = layer, x.dtype
        with torch.autocast(x.device.type, enabled=False):
            return F.linear(x.to(dtype), layer.whole(dtype))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = gradients
        return (gradient @ ctx.layer.whole(gradient.dtype)).to(ctx.given), None, None


def check_frozen(dtype: str | None, quantization: str | None, all_weights: bool) -> None:
    """Refuse ways to hold weights that are unknown, cannot be had, or could not be trained where all are to learn."""
    if dtype not in _DTYPES:
        reason = ": gradients of a loss over L x L pairs fall below what float16 can hold" if dtype == "float16" else ""
        raise ModelError(f"backbone_dtype: {dtype!r} given; choose from float32 and bfloat16{reason}")
    if quantization not in _QUANTIZATIONS:
        raise ModelError(f"quantization: {quantization!r} given; choose from int8 and nf4, or null for none")
    if quantization is not None:
        _bitsandbytes()
    if all_weights and is_narrow(dtype, quantization):
        given = f"quantization {quantization}" if quantization else f"backbone_dtype {dtype}"
        raise ModelError(
            f"{given} is for frozen weights, and without LoRA all are to learn: a step changes a weight by about a "
            "ten-thousandth, less than the half percent that is lost in rounding; keep lora, or set freeze_backbone"
        )


def is_narrow(dtype: str | None, quantization: str | None) -> bool:
    """Whether frozen weights are held in fewer bits than float32."""
    return quantization is not None or _DTYPES[dtype] != torch.float32


def narrow(esm: Any, dtype: str | None, quantization: str | None) -> None:
    """Hold, and freeze, the weights of a backbone's layers in fewer bits, one by one; none where float32 is asked for.

    Memory that was shared with a file is given back: what stays float32 is copied. With ``quantization``, ``dtype`` is
    that of products.
    """
    if not is_narrow(dtype, quantization):
        return
    family = family_of(esm.config)
    # the layers' own, and none of adapters
    parts = [(name, part) for name, part in family.layers(esm).named_modules() if type(part) is nn.Linear]
    for name, linear in parts:
        if "lora_" in name:
            continue
        wide = name.endswith(".base_layer") or any(f".{name}".endswith(f".{end}") for end in family.lora_targets)
        if quantization is None:
            linear.weight = nn.Parameter(linear.weight.detach().to(_DTYPES[dtype]), requires_grad=False)
            linear.__class__ = FrozenLinear
        else:
            _quantize(linear, quantization, _DTYPES[dtype])
        linear.wide = wide  # type: ignore[assignment]  # of either class
    _let_go(esm)


def whole_weights(esm: Any) -> dict[str, Tensor]:
    """The state of a backbone as if its weights had not been narrowed: those in float32, by the names they had."""
    state = esm.state_dict()
    for name, part in esm.named_modules():
        if isinstance(part, QuantizedLinear):
            del state[f"{name}.packed"], state[f"{name}.scales"]
            state[f"{name}.weight"] = part.weight
        elif isinstance(part, FrozenLinear):
            state[f"{name}.weight"] = part.weight.detach().float()
    return state


def load_frozen(
    pretrained: str | None,
    architecture: Mapping[str, Any] | None,
    seed: int,
    dtype: str | None,
    quantization: str | None,
) -> Any:
    """Load a backbone as of :func:`~contactlm.model.loading.load_esm`, its layers' weights held in fewer bits."""
    esm = load_esm(pretrained, architecture, seed, as_stored=is_narrow(dtype, quantization))
    narrow(esm, dtype, quantization)
    return esm


def _let_go(esm: Any) -> None:
    """Copy in float32 what is left in a file's mapped memory, which stays mapped as long as one tensor lies in it."""
    for part in esm.modules():
        tensors = [*part.parameters(recurse=False), *part.buffers(recurse=False)]
        if isinstance(part, (FrozenLinear, QuantizedLinear)):
            tensors = [] if part.bias is None else [part.bias]
        for tensor in tensors:
            tensor.data = tensor.data.to(torch.float32 if tensor.is_floating_point() else tensor.dtype, copy=True)


def _quantize(linear: Any, quantization: QuantizationName | str, product: torch.dtype) -> None:
    weight = linear.weight.detach()
    del linear.weight  # which the class below makes anew each time
    linear.__class__ = QuantizedLinear
    linear.quantization, linear.product = quantization, product
    for name, tensor in zip(("packed", "scales"), _packed(weight, quantization), strict=True):
        linear.register_buffer(name, tensor)


def _packed(weight: Tensor, quantization: str) -> tuple[Tensor, Tensor]:
    if weight.is_meta:  # a plan of a run
        if quantization == "int8":
            return weight.to(torch.int8), weight[:, 0]
        blocks = -(-weight.numel() // _BLOCK)
        return weight.new_empty(-(-weight.numel() // 2), 1, dtype=torch.uint8), weight.new_empty(blocks)
    codec = _bitsandbytes()
    if quantization == "int8":
        packed, scales, _ = codec.int8_vectorwise_quant(weight.to(torch.float16))
        return packed, scales.float()
    packed, state = codec.quantize_4bit(weight.float().contiguous(), blocksize=_BLOCK, quant_type="nf4")
    return packed, state.absmax


def _bitsandbytes() -> Any:
    """Its functions; a MissingExtraError where it is not installed, or not for this machine."""
    try:
        from bitsandbytes import functional
    except (ImportError, OSError, RuntimeError) as error:
        raise MissingExtraError("bitsandbytes", EXTRA, str(error)[:200]) from error
    return functional
