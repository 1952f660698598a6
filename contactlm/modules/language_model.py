"""LanguageModelModule: a network on a protein language model, pretrained or random, with LoRA or without."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from types import EllipsisType
from typing import Any

import torch
from torch import Tensor, nn

from contactlm.maps.contact_map import ContactMap
from contactlm.maps.full_map import FullMap
from contactlm.maps.windows import WindowOptions
from contactlm.model.adapter import ABOUT_FILE, calibration_of, fetched, read_about
from contactlm.model.backbone import backbone_checksum, load_esm
from contactlm.model.contact_head import put_head, read_head
from contactlm.model.families.family import Family, family_of
from contactlm.model.frozen_weights import DtypeName, QuantizationName, check_frozen, is_narrow, narrow
from contactlm.model.loading import EXPORTED
from contactlm.model.lora import LoraOptions, add_lora, contact_regression, lora_targets, read_options
from contactlm.model.trunk import checkpoint_layers
from contactlm.modules.base import MapModule
from contactlm.modules.checkpoint import CHECKPOINT_KEY
from contactlm.modules.trained_weights import defined_contact
from contactlm.types import ModelError

FITTED_HEAD = "fitted_head"  # where a checkpoint says that it holds one, trained further or not
ESM2 = "facebook/esm2_t6_8M_UR50D"


class LanguageModelModule(MapModule):
    """A network on a language model of any family, of which checkpoints hold what was trained.

    Args:
        network: Makes the network from the language model, adapters in it; the network has it as ``.esm``.
        pretrained: Name on the Hugging Face hub, or a local directory in Hugging Face format. None: a randomly
            initialised backbone from ``architecture``.
        architecture: Values of the configuration of a randomly initialised backbone, ``model_type`` among them (left
            out: ``esm``); needs ``pretrained`` to be None.
        head: A contact head's file, as ``contactlm head fit`` writes it, in the place of the backbone's own. It goes
            into checkpoints and exports, whose own comes before it.
        lora: Low-rank adapters on the frozen backbone. None leaves LoRA out: then the whole backbone is trained,
            unless ``freeze_backbone``.
        freeze_backbone: Train no backbone weight (with ``lora=None``: the contact head alone learns).
        activation_checkpointing: Keep only every layer's input for the backward pass and compute the rest again: the
            same loss and gradients in less memory and more time.
        init_seed: Seed of a randomly initialised backbone.
        loss_min_separation: Pairs closer in sequence, |i − j|, are left out of the loss.
        backbone_dtype: Of the frozen weights, and of products with them; null is float32.
        quantization: Hold the frozen weights in 8 or 4 bits (bitsandbytes, ``contactlm[quant]``).
        head_lr_factor: The learning rate of what reads the language model over the others'; None:
            ``fresh_head_lr_factor`` for a contact head that starts from nothing, else 1.
        options: As of :class:`contactlm.MapModule`: ``optimizer``, ``scheduler``, ``window``, ….

    Raises:
        ModelError: Options that do not fit together, or a backbone that cannot be loaded.
    """

    fresh_head_lr_factor = 1.0

    def __init__(
        self,
        network: Callable[[Any], nn.Module],
        pretrained: str | None = ESM2,
        architecture: dict[str, Any] | None = None,
        lora: LoraOptions | None = LoraOptions(),  # noqa: B008 - read only; shown by --help
        freeze_backbone: bool = False,
        activation_checkpointing: bool = False,
        init_seed: int = 0,
        loss_min_separation: int = 1,
        head: str | None = None,
        backbone_dtype: DtypeName | None = "float32",
        quantization: QuantizationName | None = None,
        head_lr_factor: float | None = None,
        **options: Any,
    ) -> None:
        check_frozen(backbone_dtype, quantization, all_weights=lora is None and not freeze_backbone)
        lora = read_options(lora) if isinstance(lora, Mapping) else lora  # a checkpoint holds plain values
        esm = load_esm(pretrained, architecture, init_seed, as_stored=is_narrow(backbone_dtype, quantization))
        checksum = backbone_checksum(esm) if pretrained is not None else None
        chooses = head_lr_factor is None
        if head_lr_factor is None:
            head_lr_factor = 1.0 if head is not None or esm.head_is_trained else self.fresh_head_lr_factor
        if head is not None:
            put_head(esm, head, checksum or backbone_checksum(esm))
        if lora is not None:
            lora = replace(lora, target_modules=tuple(lora_targets(esm, lora)))
            add_lora(esm, lora)
        elif freeze_backbone:
            esm.requires_grad_(False)
        narrow(esm, backbone_dtype, quantization)  # after the checksum, which is of the file's weights
        if activation_checkpointing:
            checkpoint_layers(family_of(esm.config).layers(esm))
        super().__init__(
            network(esm), loss_min_separation=loss_min_separation, head_lr_factor=head_lr_factor, **options
        )
        self.backbone_checksum = checksum
        self._head_is_fitted, self._chose_lr_factor = head is not None, chooses
        if head is not None:
            self.take_definition(read_head(head)[2])
        self.windows = self._within_reach(self.windows)
        # Inference options are no hyperparameters: they are free to differ from what a checkpoint was trained with.
        self.save_hyperparameters(
            {
                "pretrained": pretrained,
                "architecture": architecture,
                "lora": None if lora is None else asdict(lora),
                "freeze_backbone": freeze_backbone,
                "init_seed": init_seed,
                "loss_min_separation": loss_min_separation,
                "backbone_dtype": backbone_dtype,
                "quantization": quantization,
                "head_lr_factor": head_lr_factor,
            }
        )

    def take_published(self) -> None:
        """Take over the threshold and the calibration on dev that an exported model brings, if it is one."""
        if (pretrained := self.hparams["pretrained"]) is not None:
            on_hub = getattr(self.backbone.esm.config, EXPORTED, False)
            about = read_about(fetched(pretrained, ABOUT_FILE) if on_hub else pretrained)
            self.tuned_threshold, self.calibration = about.get("tuned_threshold"), calibration_of(about)
            self.take_definition(about)

    def take_definition(self, about: Mapping[str, Any]) -> None:
        """Take over, from what an export or a head says of itself, when residues touch, and the jump between chains."""
        self.contact, self.chain_jump = defined_contact(about), int(about.get("chain_jump", self.chain_jump))

    def saved_names(self) -> set[str]:
        """The trained weights, and a fitted contact head."""
        if not self._head_is_fitted:
            return super().saved_names()
        fitted = {id(parameter) for parameter in contact_regression(self.backbone.esm).parameters()}
        return super().saved_names() | {name for name, p in self.named_parameters() if id(p) in fitted}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Say, next to what was trained, whether there is a fitted contact head."""
        super().on_save_checkpoint(checkpoint)
        checkpoint[CHECKPOINT_KEY][FITTED_HEAD] = self._head_is_fitted

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint that does not belong on this model; expect a fitted contact head where there is one."""
        about = checkpoint.get(CHECKPOINT_KEY, {})
        own, self._head_is_fitted = self._head_is_fitted, bool(about.get(FITTED_HEAD, False))
        super().on_load_checkpoint(checkpoint)
        self._head_is_fitted |= own
        if self._chose_lr_factor and "head_lr_factor" not in checkpoint.get("hyper_parameters", {}):
            self.head_lr_factor = self.hparams["head_lr_factor"] = 1.0  # it began before there was a choice

    @property
    def held(self) -> dict[str, str]:
        """How frozen weights are held, where that is not in float32."""
        names = ("backbone_dtype", "quantization")
        return {name: self.hparams[name] for name in names if self.hparams.get(name) not in (None, "float32")}

    @property
    def run_facts(self) -> dict[str, dict[str, Any]]:
        """For ``run.json``, and for what predictions were made from: how frozen weights are held."""
        return {"equal": dict(self.held), "reads": dict(self.held)}

    def on_train_epoch_start(self) -> None:
        """Refuse to train weights that a callback has unfrozen and that are held in few bits."""
        unfit = [name for name, p in self.named_parameters() if p.requires_grad and p.dtype == torch.bfloat16]
        if unfit:
            raise ModelError(
                f"{len(unfit)} weights in bfloat16 are to learn, such as {unfit[0]}: rounding would undo their steps; "
                "leave them frozen, or set backbone_dtype to float32"
            )

    @property
    def family(self) -> Family:
        """What is known of the language model's family."""
        return family_of(self.backbone.esm.config)

    @property
    def reach(self) -> int | None:
        """Most residues in one pass, where the family's positions are learned; None: no such bound."""
        reach = self.family.reach(self.backbone.esm.config)
        return None if reach is None else reach - 2

    def own_tokens(self, tokens: Tensor) -> Tensor:
        """Numbers of the ESM alphabet as the family's."""
        return self.family.tokens.own(tokens)

    def windows_with(self, window: int | EllipsisType | None, overlap: int | EllipsisType | None) -> WindowOptions:
        """The module's own windows, but for what is given; no longer than the family reaches."""
        return self._within_reach(super().windows_with(window, overlap))

    def _within_reach(self, windows: WindowOptions) -> WindowOptions:
        reach, window = self.reach, windows.window
        if reach is None or (window is not None and window <= reach):
            return windows
        fits = windows.overlap is None or windows.overlap < reach
        return replace(windows, window=reach, overlap=windows.overlap if fits else None)

    def as_contact_map(self, id: str, sequence: str, full: FullMap, labels: Tensor | None = None) -> ContactMap:
        """Put a full-length map together with its sequence, its truth and a note of how it was made."""
        full.how["family"] = self.family.name
        if self.reach is not None:
            far = full.how.get("passes", {}).get("two_segments") and len(sequence) > self.reach
            rule = f", jumps between segments shortened to {self.reach} residues" if far else ""
            full.how["positions"] = f"learned{rule}"
        return super().as_contact_map(id, sequence, full, labels)
