"""MapModule: what turns a network that gives contact logits into a LightningModule."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, TypedDict

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from contactlm.maps.full_map import FullMap
from contactlm.maps.windows import WindowOptions
from contactlm.model.execution import check_crop_length, check_execution, give_large_blocks_back, shard_layers
from contactlm.model.losses import contact_loss
from contactlm.modules.map_predictor import MapPredictor, of_residues
from contactlm.modules.optimization import Parts, adam, fuse, make_optimizer, schedule, step_plateaus
from contactlm.modules.sharded import Lockstep, adopt, check_sizes, idle_tokens
from contactlm.structure.contacts import contact_labels
from contactlm.types import ModelError


class Distances(TypedDict, total=False):
    """What they also return for a model that predicts distances, one entry a protein."""

    distance: list[Tensor]  # float32 (L, L), expected, in Å, where the model is
    cb: list[Tensor]  # float32 (L, 3), true C-betas in Å, likewise


class Evaluated(Distances):
    """What validation and test steps return, one entry a protein."""

    ids: list[str]
    indices: list[int]
    probability: list[Tensor]  # float32 (L, L) in [0, 1], where the model is
    labels: list[Tensor]  # int8 (L, L): 1 contact, 0 none, −1 unknown; likewise
    chain_of: list[Tensor] | None  # of complexes: int64 (L,), each residue's chain number; likewise


class MapModule(MapPredictor):
    """Trains, scores and predicts with a network that gives contact logits.

    A subclass hands over its own network and overrides what it learns: ``loss``, ``training_labels``, ``pair_scores``.

    Args:
        backbone: The network, called with ``tokens`` int64 (B, T), ``attention_mask`` bool (B, T) or None, and
            ``positions`` int64 (B, T) or None, all as of :meth:`contact_logits`; gives logits (B, T − 2, T − 2).
        optimizer: Makes the optimizer from the trainable parameters.
        head_lr_factor: The learning rate of :meth:`head_parameters` over the others'. None: 1.
        scheduler: Makes a learning rate scheduler, any of torch's (and
            ``contactlm.modules.optimization.CosineWithWarmup``), stepped after every optimizer step.
            ``ReduceLROnPlateau`` monitors a dev score (Lightning's its ``monitor``, torch's ``dev/mcc_sep6`` with mode
            max, ``train/loss`` with mode min) and counts its patience in looks at the dev set.
        loss_min_separation: Pairs closer in sequence, |i − j|, are left out of the loss.
        window: Residues in one pass when whole chains are scored; None: one pass at any length.
        overlap: Residues that neighbouring windows share; None: half a window.
        threshold: Probability above which predicted pairs are called contacts; None: the threshold tuned on dev that
            travels with a checkpoint, 0.5 where there is none.

    Predicted maps are calibrated where a checkpoint or an export brings a calibration that was fitted on dev, unless
    ``module.applies_calibration = False``. Validation and test steps always give probabilities as they are.

    Examples:
        >>> import torch
        >>> from contactlm import MapModule
        >>> class Nearness(torch.nn.Module):  # near in sequence, near in space
        ...     def forward(self, tokens, attention_mask=None, positions=None):
        ...         residues = torch.arange(tokens.shape[1] - 2)
        ...         return (4.0 - (residues[:, None] - residues).abs()).expand(len(tokens), -1, -1)
        >>> MapModule(Nearness()).predict_map("MKTAYIAK").probability.shape
        (8, 8)
    """

    head = "network of its own"
    gives_ranks = False  # whether what it calls probabilities are ranks of scores, of which no threshold means anything
    flops_follow_length = False  # whether a training step of B x T tokens costs B (a + b T + c T²) FLOPs
    learnt_on_dev = False  # whether looking at dev, without a step of training, has changed what it predicts

    def __init__(
        self,
        backbone: nn.Module,
        optimizer: OptimizerCallable = adam,
        head_lr_factor: float | None = None,
        scheduler: LRSchedulerCallable | None = None,
        loss_min_separation: int = 1,
        window: int | None = 1022,
        overlap: int | None = None,
        threshold: float | None = None,
    ) -> None:
        super().__init__()
        self.backbone: Any = backbone
        self.optimizer, self.scheduler = optimizer, scheduler
        self.head_lr_factor = 1.0 if head_lr_factor is None else head_lr_factor
        self.loss_min_separation = loss_min_separation
        self.windows = WindowOptions(window, overlap)
        self.threshold = threshold
        self.train()  # Hugging Face loads in eval mode, and Lightning leaves that as it is

    def head_parameters(self) -> list[nn.Parameter]:
        """Parameters whose learning rate ``head_lr_factor`` multiplies; none of a network without a head."""
        return []

    def contact_logits(
        self, tokens: Tensor, attention_mask: Tensor | None = None, positions: Tensor | None = None
    ) -> Tensor:
        """Compute contact logits.

        Args:
            tokens: int64 (B, T), the network's own numbers: ``<cls>``, residues, ``<eos>``, ``<pad>`` ….
            attention_mask: (B, T), true on tokens, false on padding; None: wherever ``tokens`` is not ``<pad>``.
            positions: int64 (B, T), the tokens' positions in the protein, for the rotary embedding; None: 0 … T − 1.

        Returns:
            float32 (B, T − 2, T − 2), symmetric; 0 where a residue is padding.
        """
        return self.backbone(tokens, attention_mask, positions)

    def forward(self, tokens: Tensor, attention_mask: Tensor | None = None, positions: Tensor | None = None) -> Tensor:
        """The same as :meth:`contact_logits`."""
        return self.contact_logits(tokens, attention_mask, positions)

    def own_tokens(self, tokens: Tensor) -> Tensor:
        """Turn numbers of the ESM alphabet, which batches and chains have, into the network's own (B, T)."""
        return tokens

    def pair_scores(self, tokens: Tensor, attention_mask: Tensor | None, positions: Tensor | None) -> Tensor:
        """What :meth:`loss` takes, (B, T − 2, T − 2): the contact logits; override both to train on something else."""
        return self.contact_logits(tokens, attention_mask, positions)

    def batch_scores(self, batch: dict[str, Any]) -> Tensor:
        """The scores of a batch of crops; override it where a batch brings more than tokens and positions."""
        return self.pair_scores(self.own_tokens(batch["tokens"]), batch["attention_mask"], batch.get("positions"))

    def training_labels(self, cb: Tensor) -> Tensor:
        """What :meth:`loss` compares with: contacts, int8 (B, L, L); override it for another kind of label.

        Args:
            cb: float32 (B, L, 3), C-beta coordinates in Å; NaN where unresolved or padding.
        """
        return contact_labels(cb, self.contact.below)

    def loss(self, scores: Tensor, labels: Tensor) -> Tensor:
        """Masked binary cross-entropy, averaged per protein; override it to train another objective.

        Args:
            scores: float32 (B, L, L), contact logits.
            labels: int8 (B, L, L): 1 contact, 0 none, −1 unknown.
        """
        return contact_loss(scores, labels, self.loss_min_separation)

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """Loss of a batch of crops; labels are made from the coordinates, on the device."""
        with self.own_draws():
            scores = self.batch_scores(batch)
            loss = self.loss(scores, self.training_labels(batch["cb"]))
        bar = getattr(self.attached_trainer, "progress_bar_callback", None)
        # some bars want the loss as a number after every step, which the device has to compute first
        shown = bar is not None and not getattr(bar, "reads_loss_when_drawn", False)
        self.log("train/loss", loss, prog_bar=shown, batch_size=len(batch["tokens"]), sync_dist=True)
        # batches of bounded cost differ in size: weighted by it, every protein counts the same
        return loss * batch["loss_weight"] if "loss_weight" in batch else loss

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> Evaluated:
        """Full-length maps of a batch of whole chains, with their labels."""
        with self.in_lockstep(batch_idx):
            return self._evaluate(batch)

    def test_step(self, batch: dict[str, Any], batch_idx: int) -> Evaluated:
        """As :meth:`validation_step`."""
        with self.in_lockstep(batch_idx):
            return self._evaluate(batch)

    def idle_pass(self) -> None:
        """Run the network as :meth:`contact_logits` does, for the sake of other processes; nobody reads the result."""
        with torch.no_grad():
            self.backbone(self.own_tokens(idle_tokens(self.device)))

    def _evaluate(self, batch: dict[str, Any]) -> Evaluated:
        return self._with_labels(batch, self._full_maps(batch, on_device=True))

    def _with_labels(self, batch: dict[str, Any], maps: Sequence[FullMap]) -> Evaluated:
        probability, chain_of = [full.probability for full in maps], of_residues(batch, "chain_of")
        with_cb = zip(batch["cb"], probability, strict=True)
        labels = [contact_labels(cb[: len(own)].to(own.device), self.contact.below) for cb, own in with_cb]
        if chain_of is not None:
            chain_of = [numbers.to(own.device) for numbers, own in zip(chain_of, probability, strict=True)]
        ids, indices = batch["ids"], batch["indices"].tolist()
        made = Evaluated(ids=ids, indices=indices, probability=probability, labels=labels, chain_of=chain_of)
        distance = [full.distance for full in maps if full.distance is not None]
        if distance and len(distance) == len(maps):
            made["distance"] = distance
            made["cb"] = [cb[: len(own)].to(own.device) for cb, own in zip(batch["cb"], distance, strict=True)]
        return made

    def _logits_of_pass(self, tokens: Tensor, attention_mask: Tensor, positions: Tensor | None) -> Tensor:
        return self.contact_logits(self.own_tokens(tokens), attention_mask, positions)

    def hold_out(self, ids: Sequence[str], sequences: Sequence[str]) -> None:
        """Take note of what is scored outside a trainer; override it where more is read than sequences."""

    def configure_model(self) -> None:
        """Let a strategy that spreads weights over processes (``fsdp``, ``ModelParallelStrategy``) do so by layers."""
        if self.device_mesh is not None:
            data, tensor = (self.device_mesh[name].size() for name in ("data_parallel", "tensor_parallel"))
            check_sizes(data, tensor, self.trainer.world_size)
        shard_layers(self.backbone, self.device_mesh)
        if self.device_mesh is not None and self._lockstep is None:
            adopt(self.trainer)
            self._lockstep = Lockstep(self.backbone, lambda: self.trainer, self.idle_pass)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Make the optimizer over what is trainable; none for a run of no steps."""
        trainable = [parameter for parameter in self.parameters() if parameter.requires_grad]
        trainer = self.attached_trainer
        if not trainable and trainer is not None and trainer.max_steps == 0:
            return None
        if not trainable:
            raise ModelError(
                "nothing to train: lora is null, freeze_backbone is true and train_head is false, or a callback froze "
                "what learns (BackboneFinetuning does); score the model with `contactlm test`, or let something learn"
            )
        optimizer = make_optimizer(self.optimizer, trainable, self.lr_factors())
        if trainer is None or trainer.world_size == 1:
            fuse(optimizer)
        if self.scheduler is None:
            return optimizer
        entry = schedule(self.scheduler, optimizer)
        return {"optimizer": optimizer, "lr_scheduler": entry}  # type: ignore[return-value]  # a plain dict will do

    def lr_factors(self) -> Parts:
        """Parts that have a learning rate of their own: their parameters, and how often the others' rate it is."""
        return [] if self.head_lr_factor == 1.0 else [(self.head_parameters(), self.head_lr_factor)]

    def on_validation_epoch_end(self) -> None:
        """Let a scheduler that waits for a plateau know the score of this look at the dev set."""
        if self.trainer.state.fn == "fit" and not self.trainer.sanity_checking:
            step_plateaus(self.trainer)

    def setup(self, stage: str) -> None:
        """Refuse what would not do what it promises (true half precision, torch.compile); on a CPU, save memory."""
        check_execution(self, str(self.trainer.precision))
        self.chain_jump = self._given("chain_jump") or self.chain_jump
        if stage == "fit":
            self.contact = self._given("contact") or self.contact
        if self.trainer.strategy.root_device.type == "cpu":
            give_large_blocks_back(self)
        # A remark of Lightning's on the way: it takes the hooks of this module and not the data module's, as it should
        warnings.filterwarnings("ignore", "You have overridden `(transfer_batch_to_device|on_before_batch_transfer)`")

    def on_fit_start(self) -> None:
        """Refuse crops that whole chains could not be scored with."""
        crop_length = getattr(self.trainer.datamodule, "crop_length", None)  # type: ignore[attr-defined]
        check_crop_length(crop_length, self.windows.window)
