"""What the matrix products of a training step cost, told from sizes alone.

A product of (m, k) and (k, n) costs 2 m k n, and as much again for the gradient of each factor that somebody asks for.
Everything else (norms, activations, embeddings, losses) is left out, as ``torch.utils.flop_counter`` leaves it out: on
a step of the models of this package both come to the same number, and a test holds them to it.

Axis letters: B batch, T tokens, L residues (T − 2), H heads, D head width, C layers x heads, S segments, K hits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import nn
from torch.utils.flop_counter import sdpa_backward_flop_count, sdpa_flop_count

from contactlm.model.backbone import ContactBackbone
from contactlm.model.decoder import HEAD_WIDTH, ContactDecoder
from contactlm.model.lora import contact_regression
from contactlm.model.operation import backward_flops, forward_flops
from contactlm.model.residue_encoder import ResidueEncoder
from contactlm.model.retrieval_backbone import RetrievalBackbone
from contactlm.model.template import FEATURES

Size = tuple[int, int, int]


class StepFlops:
    """Adds up the products of a step.

    Attributes:
        forward: FLOPs of the forward pass.
        backward: FLOPs of the backward pass, with what it computes again.
    """

    def __init__(self) -> None:
        self.forward = self.backward = 0

    @property
    def total(self) -> int:
        """Of the step."""
        return self.forward + self.backward

    def product(self, flops: int, *asked: bool) -> None:
        """Add a product.

        Args:
            flops: What it costs.
            asked: For each factor, whether its gradient is asked for.
        """
        self.forward += flops
        self.backward += flops * sum(asked)

    def linear(self, layer: Any, rows: int, asked: bool) -> bool:
        """Add a linear layer, with the adapters on it.

        Args:
            layer: From ``torch`` or PEFT.
            rows: Of its input.
            asked: Whether the gradient of its input is asked for.

        Returns:
            Whether that of its output is.
        """
        base = getattr(layer, "base_layer", layer)
        self.product(2 * rows * base.in_features * base.out_features, asked, base.weight.requires_grad)
        asked_of = asked or _learns(base)
        for name, down in getattr(layer, "lora_A", {}).items():
            asked_of |= self.linear(layer.lora_B[name], rows, self.linear(down, rows, asked))
        return asked_of

    def contact_attention(
        self, shape: tuple[int, int, int, int], asked: Sequence[bool], has_value: bool, fused: bool
    ) -> None:
        """Add contact attention.

        Args:
            shape: (B, H, T, D).
            asked: Whether the gradients of query, key, value and head weights are asked for.
            has_value: Whether there is a value.
            fused: Whether it is the fused operation.
        """
        value = shape if has_value else None
        self.forward += forward_flops(fused)(shape, shape, value)
        if any(asked):
            self.backward += backward_flops(fused)(value, shape, shape, shape, shape, value, list(asked))

    def attention(self, query: tuple[int, int, int, int], key: tuple[int, int, int, int], asked: bool) -> None:
        """Add PyTorch's attention: shapes (B, H, T, D) of query and of key and value."""
        self.forward += sdpa_flop_count(query, key, key)
        if asked:
            self.backward += sdpa_backward_flop_count(query, query, key, key)

    def layer(self, layer: Any, size: Size, asked: bool, contacts: Contacts | None, last: bool = False) -> bool:
        """Add a layer of a language model.

        Args:
            layer: A family's.
            size: B, T and H.
            asked: Whether the gradient of its input is asked for.
            contacts: How it attends; None: by PyTorch's attention.
            last: Whether nobody reads its output.

        Returns:
            Whether the gradient of its output is asked for.
        """
        B, T, H = size
        before, rows = self.forward, B * T
        norms = any(_learns(part) for part in layer.modules() if isinstance(part, nn.LayerNorm))
        made, *then = [[layer.get_submodule(name) for name in names] for names in layer.products]
        made = made[: 2 if last else 3]  # query, key, value
        wanted = [self.linear(part, rows, asked or norms) for part in made]
        shape = (B, H, T, getattr(made[0], "base_layer", made[0]).out_features // H)
        if contacts is None:
            self.attention(shape, shape, any(wanted))
        else:
            asked_of = (*wanted, False) if last else wanted
            self.contact_attention(shape, (*asked_of, contacts.learn), not last, contacts.fused)
        if last:
            return False
        x, end = any(wanted), self.forward
        for group in then:
            end = self.forward  # what comes last is not computed again: its output is read by nobody
            of_parts = [self.linear(part, rows, x or norms) for part in group]
            x = any(of_parts) or x or asked
        if getattr(layer, "gradient_checkpointing", False):
            self.backward += end - before
        return x

    def average_product(self, B: int, L: int, C: int) -> None:
        """Add what the average product correction of C maps takes."""
        self.product(2 * B * L * C * L, True, True)


class Contacts(NamedTuple):
    """Contact attention of a model: whether its head weights learn, and whether it is the fused operation."""

    learn: bool
    fused: bool


def contact_flops(backbone: ContactBackbone, B: int, T: int, whole: bool = False) -> tuple[StepFlops, bool] | None:
    """Tell what a step of a language model with its contact head costs.

    Args:
        backbone: The model.
        B: Sequences in the batch.
        T: Their tokens, padding included.
        whole: Whether its last layer is run to the end.

    Returns:
        The sum, and whether the gradient of the final states is asked for; None where it depends on more: on maps that
        are stored (``attention="plain"``), or on which weights of a frozen head are 0.
    """
    family, esm = backbone.family, backbone.esm
    layers, weight = family.layers(esm), contact_regression(esm).weight
    learn = weight.requires_grad
    if backbone.attention == "plain" or not (learn or bool((weight != 0).all())):
        return None
    flops, H = StepFlops(), esm.config.num_attention_heads
    contacts, asked = Contacts(learn, backbone.attention == "fused"), _embeddings_learn(esm)
    for layer in layers:
        asked = flops.layer(layer, (B, T, H), asked, contacts, layer is layers[-1] and not whole)
    flops.average_product(B, T - 2, len(layers) * H)
    return flops, asked


def encoder_flops(encoder: ResidueEncoder, projection: nn.Linear, B: int, T: int) -> StepFlops:
    """Tell what a step costs that compares the embeddings of all pairs of residues.

    Args:
        encoder: The language model.
        projection: Makes embeddings of final states.
        B: Sequences in the batch.
        T: Their tokens, padding included.
    """
    flops, asked = StepFlops(), _embeddings_learn(encoder.esm)
    for layer in encoder.family.layers(encoder.esm):
        asked = flops.layer(layer, (B, T, encoder.esm.config.num_attention_heads), asked, None)
    learns = flops.linear(projection, B * (T - 2), asked)
    flops.product(2 * B * (T - 2) ** 2 * projection.out_features, learns, learns)
    return flops


def retrieval_flops(backbone: RetrievalBackbone, B: int, T: int, S: int, K: int) -> StepFlops | None:
    """Tell what a step costs of a model that reads known structures.

    Args:
        backbone: The model.
        B: Sequences in the batch.
        T: Their tokens, padding included.
        S: Segments of each.
        K: Hits of each.

    Returns:
        The sum, or None: as of :func:`contact_flops`.
    """
    found = contact_flops(backbone, B, T, whole=True)
    if found is None:
        return None
    flops, asked = found
    _add_decoder(flops, backbone.decoder, (B, T, S), asked, backbone.attention == "fused")
    if backbone.template is not None:
        flops.product(2 * B * K * len(FEATURES) * (T - 2) ** 2, True)
    return flops


def _add_decoder(
    flops: StepFlops, decoder: ContactDecoder, size: tuple[int, int, int], asked: bool, fused: bool
) -> None:
    B, T, S = size
    flops.linear(decoder.segments.states, B * S, False)
    flops.linear(decoder.segments.numbers, B * S, False)
    flops.linear(decoder.enter, B * T, asked)
    layers: list[Any] = list(decoder.layers)
    for layer in layers:
        width = layer.ask.out_features
        shape = (B, width // HEAD_WIDTH, T, HEAD_WIDTH)
        flops.linear(layer.offer, B * (S + 1), True)
        for part in (layer.ask, layer.take, layer.query, layer.key):
            flops.linear(part, B * T, True)
        flops.attention(shape, (*shape[:2], S + 1, HEAD_WIDTH), True)
        flops.contact_attention(shape, (True, True, not layer.last, True), not layer.last, fused)
        if not layer.last:
            for part in (layer.value, layer.output, *layer.feed_forward):
                if isinstance(part, nn.Linear):
                    flops.linear(part, B * T, True)
    flops.average_product(B, T - 2, decoder.head_weight.numel())


def _embeddings_learn(esm: nn.Module) -> bool:
    return any(parameter.requires_grad for name, parameter in esm.named_parameters() if "embed" in name)


def _learns(module: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in module.parameters(recurse=False))
