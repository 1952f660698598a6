"""ContactModule: a language model with LoRA and a contact head as a LightningModule."""

from __future__ import annotations

import warnings
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn

from contactlm.maps.contact_map import ContactMap
from contactlm.maps.full_map import FullMap
from contactlm.model.adapter import load_adapter, read_about, read_adapter
from contactlm.model.backbone import AttentionName, ContactBackbone
from contactlm.model.families.family import family_of
from contactlm.model.frozen_weights import DtypeName, QuantizationName
from contactlm.model.lora import LoraOptions, contact_regression
from contactlm.model.pair_head import PairOptions
from contactlm.modules.checkpoint import CONTACT_HEAD
from contactlm.modules.language_model import ESM2
from contactlm.modules.optimization import FRESH_HEAD_LR_FACTOR, adam
from contactlm.modules.pair import PairedModule, pair_head, pair_options
from contactlm.types import ModelError

PRIOR_LOGIT = -3.0  # about one pair in twenty touches: where a contact head that knows nothing starts


class ContactModule(PairedModule):
    """Predicts contacts from sequence; usable right after construction, with or without a Trainer.

    Args:
        pretrained: Name on the Hugging Face hub, a local directory in its format, fair-esm's or ESM C's own file
            (``.pt``, ``.pth``), or an installed package with weights (``antiberty``). None: a randomly initialised
            backbone from ``architecture``.
        architecture: Configuration of a randomly initialised backbone; ``model_type`` defaults to ``esm``. Requires
            ``pretrained=None``.
        head: File of a contact head that ``contactlm head fit`` wrote, instead of the backbone's own. Checkpoints and
            exports include it; a head in a checkpoint takes precedence.
        lora: Low-rank adapters on the frozen backbone. None: train the whole backbone, unless ``freeze_backbone``.
        freeze_backbone: Train no backbone weight (with ``lora=None``: only the contact head learns).
        train_head: Train the contact head.
        optimizer: Makes the optimizer from the trainable parameters.
        head_lr_factor: Factor on the contact head's learning rate. Its C weights act on attention maps with entries of
            about 1 / L, so a head that starts from nothing learns faster with a larger factor. None: 1 for a trained
            head (published, exported, or given by ``head``), 10 for one that starts from nothing.
        scheduler: Makes a learning rate scheduler, any of torch's; see :class:`contactlm.MapModule`.
        attention: ``"streamed"``: contacts without storing attention maps; ``"fused"``: the same in Triton kernels, on
            a GPU; ``"plain"``: maps stored, one layer at a time (slow; to check against). ``"auto"`` is ``"streamed"``.
        activation_checkpointing: Keep only every layer's input for the backward pass and recompute the rest: the same
            loss and gradients in less memory and more time.
        init_seed: Seed of a randomly initialised backbone.
        loss_min_separation: Pairs closer in sequence, |i − j|, are left out of the loss.
        backbone_dtype: Dtype of frozen weights and their products: ``bfloat16`` halves their memory. Adapters, contact
            head, layer norms, positions, attention maps and loss stay float32. Null is float32.
        quantization: Store frozen weights in 8 or 4 bits (``int8``, ``nf4``; needs ``contactlm[quant]``). Products are
            in ``backbone_dtype``.
        window: Residues per pass when whole chains are scored; None: one pass at any length. Families with learned
            positions take at most as many as they reach.
        overlap: Residues that neighbouring windows share; None: half a window.
        threshold: Probability above which predicted pairs are called contacts; None: the threshold tuned on dev that
            the checkpoint stores, else 0.5.
        pair: A pair head on top of the contact head, which looks at neighbouring pairs and predicts distances as well;
            None: the contact head alone.
        distance_bins: Predict how probable each bin of distances is, too, for ``ContactMap.distance_bins``.

    Raises:
        ModelError: Options that do not fit together, or a backbone that cannot be loaded.

    Examples:
        >>> import torch
        >>> from contactlm import ContactModule
        >>> tiny = {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64}
        >>> model = ContactModule(None, architecture=tiny, lora=None)  # or ContactModule("facebook/esm2_t6_8M_UR50D")
        >>> tokens = torch.tensor([[0, 20, 15, 11, 5, 2]])  # <cls> M K T A <eos>
        >>> model.contact_logits(tokens).shape
        torch.Size([1, 4, 4])
    """

    head = CONTACT_HEAD
    fresh_head_lr_factor = FRESH_HEAD_LR_FACTOR
    flops_follow_length = True

    def __init__(
        self,
        pretrained: str | None = ESM2,
        architecture: dict[str, Any] | None = None,
        lora: LoraOptions | None = LoraOptions(),  # noqa: B008 - read only; shown by --help
        freeze_backbone: bool = False,
        train_head: bool = True,
        optimizer: OptimizerCallable = adam,
        head_lr_factor: float | None = None,
        scheduler: LRSchedulerCallable | None = None,
        attention: AttentionName = "auto",
        activation_checkpointing: bool = False,
        init_seed: int = 0,
        loss_min_separation: int = 1,
        window: int | None = 1022,
        overlap: int | None = None,
        threshold: float | None = None,
        head: str | None = None,
        backbone_dtype: DtypeName | None = "float32",
        quantization: QuantizationName | None = None,
        pair: PairOptions | None = None,
        distance_bins: bool = False,
    ) -> None:
        pair = pair_options(pair)
        super().__init__(
            partial(_network, attention, train_head, pretrained is None and head is None, pair, init_seed),
            pretrained,
            architecture,
            lora,
            freeze_backbone,
            activation_checkpointing,
            init_seed,
            loss_min_separation,
            head,
            backbone_dtype,
            quantization,
            head_lr_factor,
            optimizer=optimizer,
            scheduler=scheduler,
            window=window,
            overlap=overlap,
            threshold=threshold,
            distance_bins=distance_bins,
        )
        self.save_hyperparameters({"train_head": train_head, "pair": None if pair is None else asdict(pair)})
        if not head:
            self.take_published()

    @classmethod
    def from_adapter(cls, directory: str | Path, pretrained: str | None = None, **options: Any) -> ContactModule:
        """Put an adapter directory, as ``contactlm export`` writes it, onto its backbone.

        Args:
            directory: With ``adapter_config.json`` and ``adapter_model.safetensors``; or its name on the hub.
            pretrained: Hub name or directory of the backbone; None: the one that the adapter names.
            options: Other arguments of this class; ``lora`` is decided by the adapter, ``backbone_dtype`` and
                ``quantization``, where they are left out, by how it was trained.

        Raises:
            ModelError: No such adapter, one of another kind than LoRA, or another backbone than it was trained on.
        """
        adapter = read_adapter(directory)
        pair = {} if adapter.pair is None else {"pair": adapter.pair[0]}
        options = {"head_lr_factor": 1.0, **adapter.held, **pair, **options}  # the adapter's head is a trained one
        module = cls(pretrained or adapter.backbone, lora=adapter.lora, **options)
        if adapter.backbone_checksum not in (None, module.backbone_checksum):
            raise ModelError(
                f"{directory}: the adapter was trained on {adapter.backbone} (checksum {adapter.backbone_checksum}), "
                f"but {module.hparams['pretrained']} has other weights (checksum {module.backbone_checksum})"
            )
        load_adapter(module.backbone.esm, adapter)
        if adapter.pair is not None and module.pair is not None:
            module.pair.load(adapter.pair[1])
        module.tuned_threshold, module.calibration = adapter.tuned_threshold, adapter.calibration
        module.take_definition(read_about(directory))
        return module

    def setup(self, stage: str) -> None:
        """Let a contact head of zeros that is about to learn begin with the share of pairs that touch."""
        super().setup(stage)
        weight, bias = self.head_parameters()
        if stage == "fit" and bias.requires_grad and not weight.any() and not bias.any():
            nn.init.constant_(bias, PRIOR_LOGIT)

    def as_contact_map(self, id: str, sequence: str, full: FullMap, labels: Tensor | None = None) -> ContactMap:
        """Put a full-length map together with its sequence, its truth and a note of how it was made.

        Warns:
            UserWarning: The contact head is zero, so that the map says nothing.
        """
        if self.pair is None and not self.head_parameters()[0].any():
            warnings.warn(
                f"the contact head of this {self.family.name} reads no attention map, and all pairs are alike: fit one "
                "with `contactlm head fit` and give it as `head` (--model.head), or train it",
                stacklevel=2,
            )
        return super().as_contact_map(id, sequence, full, labels)

    def head_parameters(self) -> list[nn.Parameter]:
        """Weight (1, C) and bias (1,) of the contact head; zeros where none was published, fitted or trained."""
        return list(contact_regression(self.backbone.esm).parameters())


def prepare_head(esm: Any, train_head: bool, fresh: bool) -> None:
    """Let a backbone's contact head learn or not, and a fresh one begin with the share of pairs that touch."""
    head = contact_regression(esm).requires_grad_(train_head)
    if fresh and family_of(esm.config).published_head:
        nn.init.constant_(head.bias, PRIOR_LOGIT)


def _network(
    attention: AttentionName, train_head: bool, fresh: bool, pair: PairOptions | None, seed: int, esm: Any
) -> ContactBackbone:
    prepare_head(esm, train_head, fresh)
    return ContactBackbone(esm, attention, pair=pair_head(esm, pair, seed))
