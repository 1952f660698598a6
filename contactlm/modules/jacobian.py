"""JacobianModule: contacts read out of a masked language model, without a head and without training."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from contactlm.alphabet import PAD
from contactlm.data.cache import default_cache_dir
from contactlm.maps.contact_map import RANKED, ContactMap
from contactlm.maps.full_map import FullMap
from contactlm.maps.jacobian import AMINO_ACIDS, jacobian_maps
from contactlm.maps.pairs import LEAST_SEPARATION
from contactlm.maps.windows import WindowOptions
from contactlm.metrics.calibration import newton
from contactlm.model.backbone import backbone_checksum
from contactlm.model.encoder import MaskedLanguageModel, load_language_model_head
from contactlm.model.families.family import family_of
from contactlm.model.lora import LoraOptions
from contactlm.modules.base import Evaluated
from contactlm.modules.language_model import ESM2, LanguageModelModule
from contactlm.types import ModelError

log = logging.getLogger(__name__)

FOLDER = "jacobian"  # of the cache
RIDGE = 1e-6  # of a pair, against data that two numbers separate
LOGISTIC = "logistic fit of the score on dev"


class Logistic(NamedTuple):
    """Probability = sigmoid(slope × score + intercept)."""

    slope: float
    intercept: float

    def of(self, scores: Tensor) -> Tensor:
        """Probabilities, float32 of the same shape."""
        return torch.sigmoid(self.slope * scores.double() + self.intercept).float()


@dataclass(frozen=True, eq=False)
class ScoredMap(FullMap):
    """A full-length map with the scores behind it, (L, L)."""

    scores: Tensor = field(kw_only=True)


class JacobianModule(LanguageModelModule):
    """Predicts contacts from the categorical Jacobian of a masked language model (Zhang et al. 2024).

    Nothing is trained, and the backbone's contact head is not used; :mod:`contactlm.maps.jacobian` computes it at any
    length. A map takes 19 L sequences. Finished maps stay in the cache: a killed process loses the current protein.

    Scores are no probabilities. ``contactlm fit --config jacobian`` trains no step, fits a logistic curve to the scores
    of dev's pairs at least 6 apart, and keeps its two numbers in a checkpoint. Before that, what it calls probabilities
    are ranks of scores: P@L and AUPRC mean what they always do, and no score at a threshold is reported.

    Args:
        pretrained: Name on the Hugging Face hub, or a local directory in Hugging Face format, with the language-model
            head. None: a randomly initialised backbone from ``architecture``.
        architecture: Configuration of a randomly initialised backbone; ``model_type`` defaults to ``esm``. Requires
            ``pretrained=None``.
        symmetrise: ``"before"`` the norm, or None; with ``masked`` and ``substitutions`` for older checkpoints alone.
        masked: False.
        substitutions: None.
        cache_dir: Folder for maps; None: ``$CONTACTLM_CACHE`` or ``~/.cache/contactlm``.
        lora: None: there is nothing to adapt.
        freeze_backbone: True: nothing is trained.
        init_seed: Seed of a randomly initialised backbone.
        options: As of :class:`contactlm.MapModule`.

    Raises:
        ModelError: Options that do not fit together, a backbone that cannot be loaded, or one without that head.
    """

    head = "language-model head"
    backbone: MaskedLanguageModel

    def __init__(
        self,
        pretrained: str | None = ESM2,
        architecture: dict[str, Any] | None = None,
        symmetrise: Literal["before", "after"] | None = None,
        masked: bool = False,
        substitutions: int | None = None,
        cache_dir: str | None = None,
        lora: LoraOptions | None = None,
        freeze_backbone: bool = True,
        init_seed: int = 0,
        **options: Any,
    ) -> None:
        if lora is not None or not freeze_backbone or options.get("head") is not None:
            raise ModelError(
                "lora, freeze_backbone, head: the categorical Jacobian trains nothing and reads no contact head; leave "
                "them out"
            )
        if symmetrise == "after" or masked or substitutions is not None:
            raise ModelError(
                "symmetrise, masked, substitutions: the categorical Jacobian takes all substitutions, symmetric "
                "before the norm; leave them out, and fit again what was fitted with them"
            )

        def network(esm: Any) -> MaskedLanguageModel:
            with torch.device("cpu"):  # also where the model is made without numbers
                letters = family_of(esm.config).tokens.own(torch.tensor(AMINO_ACIDS)).tolist()
            return MaskedLanguageModel(esm, load_language_model_head(esm, pretrained, init_seed), letters)

        super().__init__(network, pretrained, architecture, None, True, init_seed=init_seed, **options)
        # A parameter, though no step moves it: it travels in checkpoints, and DDP wants one that could be trained.
        self.slope_and_intercept = nn.Parameter(torch.zeros(2))
        self._cache_dir = Path(cache_dir).expanduser() if cache_dir else None
        self._checksum: str | None = None
        self._dev: list[Tensor] | None = None  # scores and truth of dev's pairs, (2, n) a protein; None: no fit to come

    @property
    def score_fit(self) -> Logistic | None:
        """What turns scores into probabilities; None: nothing was fitted yet."""
        slope, intercept = self.slope_and_intercept.tolist()
        return None if slope == 0 else Logistic(slope, intercept)

    @score_fit.setter
    def score_fit(self, fitted: Logistic | None) -> None:
        with torch.no_grad():
            self.slope_and_intercept.copy_(torch.tensor(fitted or (0.0, 0.0)))

    @property
    def gives_ranks(self) -> bool:  # type: ignore[override]
        """Whether probabilities are ranks, since nothing was fitted yet."""
        return self.score_fit is None

    def contact_logits(
        self, tokens: Tensor, attention_mask: Tensor | None = None, positions: Tensor | None = None
    ) -> Tensor:
        """Compute logits of the probabilities (of the ranks, before a fit), without gradients.

        Arguments, shape and errors are those of :meth:`contactlm.MapModule.contact_logits`.
        """
        tokens = self.family.tokens.common(tokens)
        mask = tokens != PAD if attention_mask is None else attention_mask.bool()
        lengths = (mask.sum(1) - 2).tolist()
        chains = [row[1 : n + 1] for row, n in zip(tokens, lengths, strict=True)]
        own = None if positions is None else [row[1 : n + 1] for row, n in zip(positions, lengths, strict=True)]
        logits = torch.zeros(len(tokens), tokens.shape[1] - 2, tokens.shape[1] - 2, device=tokens.device)
        for row, n, full in zip(logits, lengths, self.chain_maps([], chains, WindowOptions(None), own), strict=True):
            row[:n, :n] = torch.logit(full.probability, eps=1e-6)
        return logits

    def chain_maps(
        self, ids: Sequence[str], chains: Sequence[Tensor], windows: WindowOptions, positions: Sequence[Any] | None
    ) -> Iterator[ScoredMap]:
        """Full-length maps of whole chains, with their scores."""

        def letters(tokens: Tensor, *others: Any) -> Tensor:
            return self.backbone(self.own_tokens(tokens), *others)

        for scores, how in jacobian_maps(letters, chains, windows, self.device, positions, self._folder(), AMINO_ACIDS):
            fit = self.score_fit
            probability = ranks(scores) if fit is None else fit.of(scores).fill_diagonal_(0)
            yield ScoredMap(probability, {**how, "p": RANKED if fit is None else LOGISTIC}, scores=scores)

    def _folder(self) -> Path:
        """Where this model's maps are kept: precision changes them, and calibration does not."""
        root = self._cache_dir or default_cache_dir()
        if self._checksum is None:
            self._checksum = backbone_checksum(self.backbone)[:16]
        precision = "32-true" if self.attached_trainer is None else str(self.trainer.precision)
        return root / FOLDER / "_".join([self._checksum, precision, *self.held.values()])

    def configure_model(self) -> None:
        """As of any module; the checksum that names the folder is taken while this process has whole weights."""
        if self.device_mesh is not None:
            self._folder()
        super().configure_model()

    def as_contact_map(self, id: str, sequence: str, full: FullMap, labels: Tensor | None = None) -> ContactMap:
        """As of any module; where probabilities are ranks, the L highest at least 6 apart are called contacts."""
        made = super().as_contact_map(id, sequence, full, labels)
        if self.threshold is None and made.is_ranked:
            far = full.probability[tuple(torch.triu_indices(len(made), len(made), LEAST_SEPARATION))]
            made.threshold = float(far.sort(descending=True).values[len(made)]) if len(far) > len(made) else 0.0
        return made

    def on_fit_start(self) -> None:
        """Fit on dev, unless a checkpoint has brought a fit."""
        super().on_fit_start()
        self._dev = [torch.empty(2, 0)] if self.score_fit is None else None

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> Evaluated:
        """Full-length maps of a batch of whole chains, with their labels; their pairs are kept for the fit."""
        with self.in_lockstep(batch_idx):
            maps = self._full_maps(batch)
        evaluated = self._with_labels(batch, maps)
        if self._dev is not None:
            for full, labels in zip(maps, evaluated["labels"], strict=True):
                known = (labels >= 0).triu(LEAST_SEPARATION)
                scores: Tensor = full.scores  # type: ignore[attr-defined]  # of chain_maps
                self._dev.append(torch.stack([scores[known].float(), labels[known].float()]))
        return evaluated

    def on_validation_epoch_end(self) -> None:
        """Fit what was kept of dev, the pairs of all processes together."""
        super().on_validation_epoch_end()
        if self._dev is None or self.trainer.sanity_checking:
            return
        scores, contact = torch.cat(self._dev, 1)
        fitted = self.score_fit = fit_logistic(scores, contact, self._total)
        self._dev, self.learnt_on_dev = None, fitted is not None
        if fitted is None:
            log.warning("dev has no pair in contact at least 6 apart (or nothing else): scores stay without a fit")
        elif fitted.slope <= 0:
            log.warning("on dev, higher scores are no likelier contacts: this language model knows none")

    def _total(self, own: Tensor) -> Tensor:
        device = own.device if self.device.type == "mps" else self.device  # which has no float64
        return self.trainer.strategy.reduce(own.to(device), reduce_op="sum").cpu()

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """None, for there is nothing to train."""
        if self.trainer.max_steps != 0:
            raise ModelError(
                "the categorical Jacobian trains nothing: give --trainer.max_steps 0, as the config jacobian does; a "
                "fit of no steps calibrates its scores on dev"
            )
        return None


def ranks(scores: Tensor) -> Tensor:
    """Rank of each pair among all pairs of a symmetric map (L, L): float32 in (0, 1), 0 on the diagonal.

    Higher scores are nearer to 1; equal ones share their mean rank.
    """
    upper = torch.ones_like(scores, dtype=torch.bool).triu(1)
    _, inverse, counts = scores[upper].unique(return_inverse=True, return_counts=True)
    average_ranks = (counts.cumsum(0).double() - (counts - 1) / 2)[inverse]  # from 1
    result = torch.zeros(scores.shape)
    result[upper] = ((average_ranks - 0.5) / max(1, len(inverse))).float()
    return result + result.T


def fit_logistic(
    scores: Tensor, contact: Tensor, total: Callable[[Tensor], Tensor] = lambda own: own
) -> Logistic | None:
    """Fit the two numbers to known pairs: scores (N,) and truth (N,), 1 or 0; None where all are of one class.

    ``total`` sums a float64 tensor over all processes, of which each has pairs of its own.
    """
    x, y = scores.double(), contact.double()
    count, contacts, mean, square = total(torch.stack([x.new_tensor(len(x)), y.sum(), x.sum(), x.square().sum()]))
    if not 0 < contacts < count:
        return None
    mean, scale = mean / count, ((square / count - (mean / count).square()).clamp(min=0).sqrt() + 1e-12)
    start = 0.0, float(torch.log(contacts / (count - contacts)))
    slope, intercept = newton((x - mean) / scale, y, 1 - y, start, start, RIDGE, total=total)
    return Logistic(float(slope / scale), float(intercept - slope * mean / scale))
