"""From chains to contact maps: what predicts with a network that gives contact logits."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from types import EllipsisType
from typing import Any

import torch
from lightning.pytorch.trainer.states import RunningStage
from torch import Tensor

from contactlm.alphabet import decode, encode
from contactlm.maps.complexes import merge_copies
from contactlm.maps.contact_map import ContactMap
from contactlm.maps.full_map import FullMap, full_maps
from contactlm.maps.pairs import OUTSIDE, THRESHOLD_KIND
from contactlm.maps.windows import WindowOptions
from contactlm.metrics.calibration import Calibration
from contactlm.metrics.calibration_scores import CONFIDENCE
from contactlm.modules.memory import sized
from contactlm.modules.sharded import Lockstep, is_last_step
from contactlm.modules.trained_weights import TrainedWeights
from contactlm.structure.contacts import contact_labels
from contactlm.types import ContactDefinition, ModelError, chain_numbers, residue_positions, split_chains

_STEPS: dict[RunningStage | None, str] = {
    RunningStage.PREDICTING: "predict_step",
    RunningStage.TESTING: "test_step",
    RunningStage.VALIDATING: "validation_step",
    RunningStage.SANITY_CHECKING: "validation_step",
}


class MapPredictor(TrainedWeights):
    """Predicts full-length maps; :class:`contactlm.MapModule` adds how the network is trained and scored."""

    backbone: Any
    windows: WindowOptions
    threshold: float | None
    gives_ranks: bool
    _lockstep: Lockstep | None = None  # where weights are spread over processes

    @abstractmethod
    def _logits_of_pass(self, tokens: Tensor, attention_mask: Tensor, positions: Tensor | None) -> Tensor:
        """Contact logits (B, T − 2, T − 2) of a batch of passes, whose tokens are those of the ESM alphabet."""

    def in_lockstep(self, batch_idx: int | None = None) -> AbstractContextManager[None]:
        """Where a step of an evaluation runs the network: as often as every other process that shares its weights.

        What overrides such a step puts it there. Without ``batch_idx`` there is this step alone, in all processes.
        """
        if self._lockstep is None:
            return nullcontext()
        return self._lockstep.step(batch_idx is None or is_last_step(self.trainer, batch_idx))

    def _full_maps(self, batch: dict[str, Any], progress: bool = False, on_device: bool = False) -> list[FullMap]:
        lengths, tokens = batch["lengths"].tolist(), batch["tokens"].cpu()  # passes are put together there
        chains = [row[1 : length + 1] for row, length in zip(tokens, lengths, strict=True)]
        positions = of_residues(batch, "positions", first=1)
        windows = replace(self.windows, progress=progress, on_device=on_device)
        return list(self.chain_maps(batch["ids"], chains, windows, positions))

    def chain_maps(
        self, ids: Sequence[str], chains: Sequence[Tensor], windows: WindowOptions, positions: Sequence[Any] | None
    ) -> Iterator[FullMap]:
        """Full-length maps of whole chains; override it where more is known of a chain than the residues of a pass.

        Of each chain there are residue tokens (L,), and positions int64 (L,), or None for 0 … L − 1.
        """
        return full_maps(self._logits_of_pass, chains, self.sized(windows), self.device, positions)

    def sized(self, windows: WindowOptions) -> WindowOptions:
        """Windows whose batches fit the memory that is free, where ``max_cost`` leaves that open."""
        return sized(windows, self.backbone, self.device)

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Move a batch; whole chains stay on the CPU, where passes are put together, for a step of this package."""
        trainer = self.attached_trainer
        step = None if trainer is None else _STEPS.get(trainer.state.stage)
        if step is not None and getattr(type(self), step).__module__.startswith("contactlm."):
            return batch
        return super().transfer_batch_to_device(batch, device, dataloader_idx)

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> list[ContactMap]:
        """Contact maps of a batch of whole chains, with labels where coordinates are known."""
        chain_of = of_residues(batch, "chain_of")
        predicted = []
        with self.in_lockstep(batch_idx):
            maps = self._full_maps(batch, progress=True)
        for row, full in enumerate(maps):
            length = len(full.probability)
            cb, sequence = batch["cb"][row, :length], decode(batch["tokens"][row, 1 : length + 1].cpu().numpy())
            labels = contact_labels(cb, self.contact.below) if torch.isfinite(cb).any() else None
            if chain_of is not None:
                full.how["chain_lengths"] = chain_of[row].bincount().tolist()
            predicted.append(self.as_contact_map(batch["ids"][row], sequence, full, labels))
        return predicted

    def predict_map(
        self,
        sequence: str,
        window: int | EllipsisType | None = ...,
        overlap: int | EllipsisType | None = ...,
        id: str = "query",
        chain_lengths: Sequence[int] | None = None,
    ) -> ContactMap:
        """Predict the contact map of one sequence of any length.

        Where weights are spread over processes, a collective call.

        Args:
            sequence: L letters of the ESM alphabet, or chains of a complex as ``SEQ1:SEQ2``.
            window: Residues in one pass; None: one pass at any length; left out: as the module was made.
            overlap: Residues that neighbouring windows share; None: half a window; left out: as the module was made,
                half a window where ``window`` is given.
            id: A name for the map.
            chain_lengths: Of a complex, residues of each chain, whose sequences follow one another in ``sequence``.
        """
        if chain_lengths is None:
            sequence, chain_lengths = split_chains(sequence)
        tokens, positions = torch.from_numpy(encode(sequence)), self.positions_of(chain_lengths)
        if positions is not None and len(positions) != len(tokens):
            raise ModelError(f"chain_lengths: {len(positions)} residues in all, but the sequence has {len(tokens)}")
        training, windows = self.training, self.windows_with(window, overlap)
        self.eval()
        try:
            with self.in_lockstep():  # one that finds rows of a Jacobian in the cache has fewer passes
                full = next(iter(self.chain_maps([id], [tokens], windows, [positions])))
        finally:
            self.train(training)
        if chain_lengths is not None:
            full.how["chain_lengths"] = list(chain_lengths)
        return self.as_contact_map(id, sequence, full)

    def positions_of(self, chain_lengths: Sequence[int] | None) -> Tensor | None:
        """Positions of a complex's residues, int64 (L,), with the jump of training; None of a single chain."""
        return None if chain_lengths is None else torch.from_numpy(residue_positions(chain_lengths, self.chain_jump))

    def windows_with(self, window: int | EllipsisType | None, overlap: int | EllipsisType | None) -> WindowOptions:
        """The module's own windows, but for what is given."""
        if isinstance(window, EllipsisType):
            return WindowOptions(self.windows.window, self.windows.overlap if overlap is ... else overlap)
        return WindowOptions(window, None if overlap is ... else overlap)

    def as_contact_map(self, id: str, sequence: str, full: FullMap, labels: Tensor | None = None) -> ContactMap:
        """Put a full-length map together with its sequence, its truth and a note of how it was made."""
        how = {**full.how, "model": self.hparams.get("pretrained") or self._random_weights}
        if self.contact != ContactDefinition():
            how["contact"] = str(self.contact)
        truth = None if labels is None else labels.cpu().numpy()
        probability, fitted = full.probability, self.applied_calibration
        if fitted is not None:
            lengths = how.get("chain_lengths")
            chain_of = None if lengths is None else torch.from_numpy(chain_numbers(lengths))
            probability = fitted.apply_map(probability, chain_of)
            how["calibration"] = {name: fitted.to_dict()[name] for name in ("kind", "slope", "bias")}
            if (expected := fitted.predicted_precision(full.probability, chain_of)) is not None:
                how[CONFIDENCE] = round(expected, 4)
            how |= {OUTSIDE: reason} if (reason := fitted.outside(probability)) else {}
        chains = sequence, how.get("chain_lengths", ())
        probability, merged = merge_copies(probability, *chains, not self.gives_ranks)
        how |= {"copies": merged} if merged else {}
        how[THRESHOLD_KIND] = self.threshold_kind
        more: dict[str, Any] = {}
        if full.distance is not None:
            more["distance"] = merge_copies(full.distance, *chains, discount=False)[0].numpy()
        if full.distance_bins is not None:
            merged_bins = [merge_copies(each, *chains, discount=False)[0] for each in full.distance_bins]
            more["distance_bins"] = torch.stack(merged_bins, -1).numpy()
        return ContactMap(id, sequence, probability.numpy(), truth, self.call_threshold, how, **more)

    @property
    def _random_weights(self) -> str:
        """What a model is called that began with none of a hub or folder."""
        return "trained from random weights" if self.was_trained else "randomly initialised"

    @property
    def applied_calibration(self) -> Calibration | None:
        """What predicted probabilities are calibrated with; None: they are left as they are."""
        return self.calibration if self.applies_calibration else None

    @property
    def call_threshold(self) -> float:
        """Probability above which predicted pairs are called contacts."""
        if self.threshold is not None:
            return self.threshold
        if self.applied_calibration is not None:
            return self.applied_calibration.threshold
        return 0.5 if self.tuned_threshold is None else self.tuned_threshold

    @property
    def threshold_kind(self) -> str:
        """What kind of number :attr:`call_threshold` is, in words."""
        if self.threshold is not None:
            return "as given"
        if self.applied_calibration is not None:
            return "tuned on dev, for calibrated probabilities"
        return "none was tuned" if self.tuned_threshold is None else "tuned on dev"


def of_residues(batch: Mapping[str, Any], name: str, first: int = 0) -> list[Tensor] | None:
    """What only batches of complexes have: each protein's row from ``first``, without padding, on the CPU."""
    if name not in batch:
        return None
    lengths = batch["lengths"].tolist()
    return [row[first : first + length].cpu() for row, length in zip(batch[name], lengths, strict=True)]
