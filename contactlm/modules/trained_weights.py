"""LightningModules whose checkpoints hold what was trained, and no more."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import lightning as L
from torch import Tensor

from contactlm.metrics.calibration import Calibration
from contactlm.modules.checkpoint import CHECKPOINT_KEY, check_backbone, check_head, check_weights, class_name
from contactlm.modules.random_state import random_state, restore_random_state
from contactlm.types import ModelError

CHECKPOINT_FORMAT = 1


class TrainedWeights(L.LightningModule):
    """Saves trainable weights only, says which backbone they belong to, and refuses to go onto another.

    With ``hparams["pretrained"]``, a backbone's name or directory, what is frozen of it stays there; without, or with
    None, checkpoints hold all weights.
    """

    head: str  # what maps are read from; a checkpoint of another one is refused

    def __init__(self) -> None:
        super().__init__()
        self.strict_loading = False  # a checkpoint holds what was trained; on_load_checkpoint is strict about that
        self.backbone_checksum: str | None = None  # of a pretrained backbone
        # Found on dev by ContactEvaluation; travels with checkpoints and exports.
        self.tuned_threshold: float | None = None
        self.calibration: Calibration | None = None
        self.applies_calibration = True  # to predicted maps
        self._random_state: dict[str, Tensor] | None = None

    def on_train_start(self) -> None:
        """Go on with the dropout masks of the run that is resumed."""
        if self._random_state is not None:
            restore_random_state(self._random_state, self.device)
            self._random_state = None

    def saved_names(self) -> set[str]:
        """Names of the weights a checkpoint holds: the trainable ones; all where there is no backbone to return to."""
        if self.hparams.get("pretrained") is None:
            return set(self.state_dict())
        return {name for name, parameter in self.named_parameters() if parameter.requires_grad}

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load weights; those a checkpoint never holds (a frozen backbone's) do not count as missing."""
        result = super().load_state_dict(state_dict, strict=False, assign=assign)
        saved = self.saved_names()
        missing = [name for name in result.missing_keys if name in saved]
        if strict and (missing or result.unexpected_keys):
            raise ModelError(f"the weights do not fit: missing {missing}, unknown {list(result.unexpected_keys)}")
        return type(result)(missing, result.unexpected_keys)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what was trained, the name of the backbone and a checksum of its weights."""
        names = self.saved_names()
        checkpoint["state_dict"] = {name: w for name, w in checkpoint["state_dict"].items() if name in names}
        checkpoint[CHECKPOINT_KEY] = {
            "format": CHECKPOINT_FORMAT,
            "class": class_name(type(self)),
            "head": self.head,
            "backbone": self.hparams.get("pretrained"),
            "backbone_checksum": self.backbone_checksum,
            "tuned_threshold": self.tuned_threshold,
            "calibration": None if self.calibration is None else self.calibration.to_dict(),
            "random_state": random_state(self.device),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint that does not belong on this model.

        Raises:
            ModelError: Another head or backbone, or weights that do not fit.
        """
        about = checkpoint.get(CHECKPOINT_KEY)
        if about is None:
            raise ModelError("the checkpoint was not written by contactlm; to load weights alone, use load_state_dict")
        check_head(about, self.head)
        check_backbone(about, self.hparams.get("pretrained"), self.backbone_checksum)
        self.tuned_threshold = about["tuned_threshold"]
        fitted = about.get("calibration")  # older checkpoints have none
        self.calibration = None if fitted is None else Calibration.from_dict(fitted)
        self._random_state = about["random_state"]
        saved = self.saved_names()
        check_weights(checkpoint["state_dict"], {n: w for n, w in self.state_dict().items() if n in saved})
