"""LanguageModelModule: a network on a protein language model, pretrained or random, with LoRA or without."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from torch import nn
from transformers import EsmModel

from contactlm.model.backbone import backbone_checksum, load_esm
from contactlm.model.lora import LoraOptions, add_lora
from contactlm.model.trunk import checkpoint_layers
from contactlm.modules.base import MapModule

ESM2 = "facebook/esm2_t6_8M_UR50D"


class LanguageModelModule(MapModule):
    """A network on ESM2, of which checkpoints hold what was trained.

    Args:
        network: Makes the network from the language model, adapters in it; the network has it as ``.esm``.
        pretrained: Name on the Hugging Face hub, or a local directory in Hugging Face format. None: a randomly
            initialised backbone from ``architecture``.
        architecture: Values of ``transformers.EsmConfig`` for a randomly initialised backbone; needs ``pretrained``
            to be None.
        lora: Low-rank adapters on the frozen backbone. None leaves LoRA out: then the whole backbone is trained,
            unless ``freeze_backbone``.
        freeze_backbone: Train no backbone weight (with ``lora=None``: the contact head alone learns).
        activation_checkpointing: Keep only every layer's input for the backward pass and compute the rest again: the
            same loss and gradients in less memory and more time.
        init_seed: Seed of a randomly initialised backbone.
        loss_min_separation: Pairs closer in sequence, |i − j|, are left out of the loss.
        options: As of :class:`contactlm.MapModule`: ``optimizer``, ``scheduler``, ``window``, ….

    Raises:
        ModelError: Options that do not fit together, or a backbone that cannot be loaded.
    """

    def __init__(
        self,
        network: Callable[[EsmModel], nn.Module],
        pretrained: str | None = ESM2,
        architecture: dict[str, Any] | None = None,
        lora: LoraOptions | None = LoraOptions(),  # noqa: B008 - read only; shown by --help
        freeze_backbone: bool = False,
        activation_checkpointing: bool = False,
        init_seed: int = 0,
        loss_min_separation: int = 1,
        **options: Any,
    ) -> None:
        lora = LoraOptions(**lora) if isinstance(lora, Mapping) else lora  # a checkpoint holds plain values
        esm = load_esm(pretrained, architecture, init_seed)
        checksum = backbone_checksum(esm) if pretrained is not None else None
        if lora is not None:
            add_lora(esm, lora)
        elif freeze_backbone:
            esm.requires_grad_(False)
        if activation_checkpointing:
            checkpoint_layers(esm)
        super().__init__(network(esm), loss_min_separation=loss_min_separation, **options)
        self.backbone_checksum = checksum
        # Inference options are no hyperparameters: they are free to differ from what a checkpoint was trained with.
        self.save_hyperparameters(
            {
                "pretrained": pretrained,
                "architecture": architecture,
                "lora": None if lora is None else asdict(lora),
                "freeze_backbone": freeze_backbone,
                "init_seed": init_seed,
                "loss_min_separation": loss_min_separation,
            }
        )
