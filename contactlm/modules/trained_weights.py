"""LightningModules whose checkpoints hold what was trained, and whose random draws follow from seed and step."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning as L
import torch
from torch.optim.swa_utils import AveragedModel

from contactlm.data.crop import Stream, generator
from contactlm.metrics.calibration import Calibration
from contactlm.modules.checkpoint import (
    CHECKPOINT_KEY,
    check_checkpoint,
    check_fits,
    check_weights,
    found_backbone,
    public_name,
)
from contactlm.types import CHAIN_JUMP, ContactDefinition, ModelError

if TYPE_CHECKING:
    from typing_extensions import Self

CHECKPOINT_FORMAT = 1
UNFROZEN = "unfrozen"  # where a checkpoint says which weights were trained that are frozen when the module is made
FROZEN = "frozen"  # and which were not trained at the moment
NOT_AVERAGED = "current_model_state"  # where Lightning's WeightAveraging keeps the weights behind their average


def defined_contact(about: Mapping[str, Any]) -> ContactDefinition:
    """When two residues touch, by what a checkpoint, an export or a head says of itself; older ones say nothing."""
    return ContactDefinition.from_text(about["contact"]) if "contact" in about else ContactDefinition()


AverageOf = Callable[[Any, Any, Any], Any]


class TrainedWeights(L.LightningModule):
    """Saves trainable weights only (all without ``hparams["pretrained"]``) and refuses to go onto another backbone."""

    head: str  # what maps are read from; a checkpoint of another one is refused

    def __init__(self) -> None:
        super().__init__()
        self.strict_loading = False  # a checkpoint holds what was trained; on_load_checkpoint is strict about that
        self.backbone_checksum: str | None = None  # of a pretrained backbone
        # Found on dev by ContactEvaluation; travels with checkpoints and exports.
        self.tuned_threshold: float | None = None
        self._made_trainable: set[str] | None = None  # once there is a trainer, whose callbacks may freeze some
        self._frozen: set[str] | None = None  # of the resumed run, in the end
        self.calibration: Calibration | None = None
        self._trained_before = False  # whether its weights are those of a checkpoint after some steps
        self.applies_calibration = True  # to predicted maps
        self.chain_jump = CHAIN_JUMP  # positions between chains: what the data say, or a checkpoint
        self.contact = ContactDefinition()  # likewise

    def on_train_start(self) -> None:
        """Freeze and unfreeze what the resumed run had frozen; Lightning's callbacks begin with all frozen."""
        if self._frozen is not None:
            saved = self.saved_names()
            for name, parameter in self.named_parameters():
                if name in saved:
                    parameter.requires_grad_(name not in self._frozen)
            self._frozen = None
        for callback in self.trainer.callbacks:  # type: ignore[attr-defined]  # a connector sets it
            average = getattr(callback, "_average_model", None)  # of Lightning's WeightAveraging
            if isinstance(average, AveragedModel) and average.avg_fn is not None:
                pairs = zip(average.module.parameters(), self.parameters(), strict=True)
                own = {held.data_ptr(): weight for held, weight in pairs}
                average.avg_fn = partial(_averaged, average.avg_fn, own)

    @property
    def trainer(self) -> L.Trainer:
        """The trainer of this module."""
        return super().trainer

    @trainer.setter
    def trainer(self, trainer: L.Trainer | None) -> None:
        if trainer is not None:
            self._made_trainable = self._trainable() | (self._made_trainable or set())
        L.LightningModule.trainer.fset(self, trainer)  # type: ignore[attr-defined]  # mypy sees no property there

    @property
    def attached_trainer(self) -> L.Trainer | None:
        """The trainer of this module; None: it has none."""
        try:
            return self.trainer
        except RuntimeError:
            return None

    @classmethod
    def load_from_checkpoint(cls, checkpoint_path: Any, *arguments: Any, **options: Any) -> Self:
        """Make a module from a checkpoint as Lightning does; a backbone of a relative path is found from anywhere."""
        if isinstance(checkpoint_path, (str, Path)) and Path(checkpoint_path).exists() and "pretrained" not in options:
            found = found_backbone(check_checkpoint(checkpoint_path))
            options |= {} if found is None else {"pretrained": found}
        return super().load_from_checkpoint(checkpoint_path, *arguments, **options)

    @property
    def was_trained(self) -> bool:
        """Whether a step of training was made, here or by the run whose checkpoint was loaded."""
        trainer = self.attached_trainer
        return self._trained_before or (trainer is not None and trainer.global_step > 0)

    def own_draws(self) -> AbstractContextManager[None]:
        """Draw what belongs to this step and process: what overrides ``training_step`` and draws puts that into it."""
        trainer = self.attached_trainer
        if trainer is None:
            return nullcontext()
        return _drawn_from(_seed_of_run(trainer), trainer.fit_loop.total_batch_idx, trainer.global_rank, self.device)

    def _given(self, option: str) -> Any:
        """An option of the trainer's data; None where it is not given."""
        return getattr(getattr(self.attached_trainer, "datamodule", None), option, None)

    def _trainable(self) -> set[str]:
        return {name for name, parameter in self.named_parameters() if parameter.requires_grad}

    def saved_names(self) -> set[str]:
        """Names of the weights a checkpoint holds: those that are trainable, or were when training began; or all."""
        if self.hparams.get("pretrained") is None:
            return set(self.state_dict())
        return self._trainable() | (self._made_trainable or set())

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
        pretrained = self.hparams.get("pretrained")
        is_here = pretrained is not None and Path(pretrained).exists()
        for part in checkpoint.keys() & {"state_dict", NOT_AVERAGED}:
            checkpoint[part] = {name: weight for name, weight in checkpoint[part].items() if name in names}
        checkpoint[CHECKPOINT_KEY] = {
            "format": CHECKPOINT_FORMAT,
            "class": public_name(f"{type(self).__module__}.{type(self).__qualname__}"),
            "head": self.head,
            "backbone": pretrained,
            "backbone_folder": str(Path(str(pretrained)).resolve()) if is_here else None,
            "backbone_checksum": self.backbone_checksum,
            "tuned_threshold": self.tuned_threshold,
            "chain_jump": self.chain_jump,
            "contact": str(self.contact),
            UNFROZEN: sorted(names - (self._made_trainable or names)),
            FROZEN: sorted(names & {n for n, parameter in self.named_parameters() if not parameter.requires_grad}),
            "calibration": None if self.calibration is None else self.calibration.to_dict(),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint that does not belong on this model."""
        about = checkpoint.get(CHECKPOINT_KEY)
        if about is None:
            raise ModelError("the checkpoint was not written by contactlm; to load weights alone, use load_state_dict")
        check_fits(about, self.head, self.hparams.get("pretrained"), self.backbone_checksum)
        self.tuned_threshold = about["tuned_threshold"]
        self.chain_jump = self._given("chain_jump") or about.get("chain_jump", CHAIN_JUMP)
        self._trained_before = bool(checkpoint.get("global_step"))
        used = self._given("definition")
        self.contact = defined_contact(about)
        if used not in (None, self.contact):
            raise ModelError(
                f"the checkpoint predicts contacts {self.contact}, but those of the data are {used}; give data.contact "
                "as it was trained"
            )
        fitted = about.get("calibration")  # older checkpoints have none
        self.calibration = None if fitted is None else Calibration.from_dict(fitted)
        saved = self._made_trainable = self.saved_names().union(about.get(UNFROZEN, []))
        trainer = self.attached_trainer
        goes_on = trainer is not None and trainer.state.fn == "fit"
        self._frozen = set(about[FROZEN]) if goes_on and FROZEN in about else None
        if "state_dict" in checkpoint:  # or the strategy has loaded the weights already
            check_weights(checkpoint["state_dict"], {n: w for n, w in self.state_dict().items() if n in saved})
            if (
                NOT_AVERAGED in checkpoint
            ):  # the average is loaded with what is frozen, and what is scored is the average
                checkpoint["state_dict"] = {**self.state_dict(), **checkpoint["state_dict"]}
                checkpoint[NOT_AVERAGED] = checkpoint[NOT_AVERAGED if goes_on else "state_dict"]


def _averaged(average: AverageOf, own: Mapping[int, torch.Tensor], held: Any, new: Any, number: Any) -> Any:
    """The average of a weight that is trained; what is frozen would drift from rounding, and no checkpoint holds it."""
    weight = own.get(held.data_ptr())
    return new if weight is None or not weight.requires_grad else average(held, new, number)


@contextmanager
def _drawn_from(seed: int, step: int, process: int, device: torch.device) -> Iterator[None]:
    """Let the global generators draw what belongs to one step of one process; afterwards they are as they were."""
    number = int(generator(seed, Stream.MASKS, step, process).integers(2**63))
    on_gpu = device.type == "cuda"
    with torch.random.fork_rng([device] if on_gpu else []):
        torch.default_generator.manual_seed(number)  # torch.manual_seed would reach all devices
        if on_gpu:
            torch.cuda.default_generators[device.index or 0].manual_seed(number)
        yield


def _seed_of_run(trainer: L.Trainer) -> int:
    """The seed of the data module, or else of ``seed_everything``, or else of PyTorch's own generator."""
    seed = getattr(trainer.datamodule, "seed", None)  # type: ignore[attr-defined]  # a connector sets it
    if seed is None:
        seed = os.environ.get("PL_GLOBAL_SEED", torch.initial_seed())
    return int(seed or 0) % 2**63
