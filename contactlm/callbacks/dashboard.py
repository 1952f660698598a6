"""TensorBoardDashboard: what TensorBoard shows of a run beyond scalars by step."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import lightning as L
import numpy as np
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.trainer.states import TrainerFn
from numpy.typing import NDArray
from torch import Tensor

from contactlm.callbacks.budget import TokenBudget
from contactlm.callbacks.evaluation import ContactEvaluation
from contactlm.callbacks.flops import FlopsMeter
from contactlm.callbacks.record import HISTORY, optimizer_facts, run_seed, scheme_facts
from contactlm.callbacks.steps import find_callback
from contactlm.maps.contact_map import ContactMap
from contactlm.metrics.protein_states import RankedBatch
from contactlm.metrics.ranked import cuts_on, reaching
from contactlm.types import ContactLMError

OVER_TOKENS = (*HISTORY, "mcc_sep6_tuned", "trivial_mcc", "trivial_p_at_L_long")
# Scalars of dev and test that RunBoard shows, and those that come first in TensorBoard, which sorts by name
SHOWN = (*HISTORY, "mcc_sep6_tuned", "tuned_threshold", "trivial_mcc", "copy_mcc_sep6", "inter_mcc", "ece_sep6")
FIRST = {name: f"1_watch/{name.replace('/', '_')}" for name in ("dev/mcc_sep6", "dev/p_at_L_long", "train/loss")}
UNSEEN = ("budget/", "epoch")  # straight lines
OVER_PROTEINS = ("mcc_sep6", "mcc", "p_at_L_long", "auprc_sep6")
HPARAM_METRICS = ("dev/mcc_sep6", "test/mcc_sep6")
GFLOPS = "flops/cumulative_gflops"
BY_TOKENS = "by_tokens/dev/"  # prefix of scores whose step is the number of tokens trained on
LAYOUT = {  # of the custom scalars: the two panels of the report, and how scores and loss go along
    "report": {"cumulative GFLOPs by step": [GFLOPS], "dev MCC by tokens, |i - j| >= 6": [f"{BY_TOKENS}mcc_sep6"]},
    "dev by tokens": {
        "MCC by range": [f"{BY_TOKENS}{name}" for name in ("mcc_short", "mcc_medium", "mcc_long")],
        "long-range precision at L, L/5": [f"{BY_TOKENS}{name}" for name in ("p_at_L_long", "p_at_L5_long")],
        "MCC of all pairs, with the trivial predictor": [f"{BY_TOKENS}{name}" for name in ("mcc", "trivial_mcc")],
    },
    "training": {
        "loss": ["train/loss"],
        "tokens and residues a second": ["speed/tokens_per_s", "speed/residues_per_s"],
    },
}
PLAIN = (bool, int, float, str)
DIGITS = 5  # of a number in TensorBoard's table of hyperparameters
LENGTHS = (50, 100, 200, 400)  # residues: the proteins nearest to these lengths are drawn
EMS = 30  # letters' heights in a picture's side: a card shows it at half its size
CURVE_POINTS = 201
THRESHOLDS = tuple(np.linspace(0, 1, CURVE_POINTS).tolist())  # 0, 0.005, … 1


class RunBoard(TensorBoardLogger):
    """Lightning's TensorBoardLogger with the scalars that people look at, the main three first; CSV files have all.

    Arguments are those of :class:`lightning.pytorch.loggers.TensorBoardLogger`.
    """

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Write the scalars that are shown; in the first process only."""
        shown = {name: value for name, value in metrics.items() if is_shown(name)}
        super().log_metrics({**shown, **{FIRST[name]: shown[name] for name in FIRST if name in shown}}, step)


def is_shown(name: str) -> bool:
    """Whether :class:`RunBoard` shows a scalar."""
    group, _, score = name.partition("/")
    return score in SHOWN if group in ("dev", "test") else not name.startswith(UNSEEN)


class TensorBoardDashboard(L.Callback):
    """Fills TensorBoard's tabs; without a :class:`TensorBoardLogger` it does nothing.

    - **Scalars**: the dev scores once more as ``by_tokens/dev/…``, with the tokens trained on as the step;
      ``flops/cumulative_gflops``. **Custom scalars**: GFLOPs by step, dev MCC by tokens, and others.
    - **Images**: predicted (above the diagonal) and true maps of the same few dev proteins, as ``dev/maps/<id>``; at
      the first look at dev and at most ``pictures`` times more, evenly over the budget (without one at looks 1, 2, 4,
      8, …). On several processes the proteins are chosen from those of the first.
    - **PR curves**: all pairs with |i − j| ≥ 6 of all proteins. **Histograms**: scores over proteins.
    - **HParams**: the options that tell runs apart, with ``dev/mcc_sep6`` and ``test/mcc_sep6``.

    It reads what validation and test steps return as :class:`ContactEvaluation` does, and :class:`TokenBudget`,
    :class:`FlopsMeter` and :class:`ContactEvaluation` where the trainer has them, in any order.

    Args:
        lengths: Residues; for each length, the dev protein of the nearest length is drawn. Empty: no pictures.
        pictures: Maximum number of times that they are drawn over the token budget.

    Raises:
        ContactLMError: A length or number below 1.
    """

    def __init__(self, lengths: Sequence[int] = LENGTHS, pictures: int = 9) -> None:
        for name, values in (("lengths", lengths), ("pictures", [pictures])):
            if any(value < 1 for value in values):
                raise ContactLMError(f"dashboard.{name} is {list(values)}; every value must be at least 1")
        self.lengths, self.pictures = tuple(lengths), pictures
        self._looks = self._parts = 0  # looks at dev, and ``pictures`` parts of the budget spent when last drawn
        self._step = -1
        self._described: set[str] = set()  # run directories
        self._exhibits: Exhibits | None = None
        self._curve = PrecisionRecall()

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._looks = self._parts = 0
        charts = {
            tab: {title: ["Multiline", [f"{name}$" for name in names]] for title, names in group.items()}
            for tab, group in LAYOUT.items()
        }
        for writer in _writers(trainer):
            writer.add_custom_scalars(charts)
        self._write_hparams(trainer, pl_module)

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        meter = find_callback(trainer, FlopsMeter)
        every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]  # a connector sets it
        before, self._step = self._step, trainer.global_step
        if meter is not None and every and self._step != before and self._step % every == 0:
            for writer in _writers(trainer):
                writer.add_scalar(GFLOPS, meter.total / 1e9, self._step)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._curve, self._exhibits = PrecisionRecall(pl_module.device), None
        if not trainer.sanity_checking:
            self._looks += 1
            if _has_logger(trainer) and self._is_time_to_draw(trainer):
                self._exhibits = Exhibits(self.lengths)

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._curve, self._exhibits = PrecisionRecall(pl_module.device), None
        self._write_hparams(trainer, pl_module)

    def on_validation_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, *_: Any, **__: Any
    ) -> None:
        are_maps = isinstance(outputs, Mapping) and {"ids", "probability", "labels"} <= outputs.keys()
        if _has_logger(trainer) and not trainer.sanity_checking and are_maps:
            self._curve.add(outputs)
            if self._exhibits is not None and trainer.is_global_zero:
                self._exhibits.add(outputs)

    on_test_batch_end = on_validation_batch_end

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.sanity_checking or not _has_logger(trainer):
            return
        self._write_distributions(trainer, "dev")
        budget = find_callback(trainer, TokenBudget)
        if budget is not None and trainer.state.fn == TrainerFn.FITTING:
            for name in OVER_TOKENS:
                if (value := trainer.callback_metrics.get(f"dev/{name}")) is not None:
                    for writer in _writers(trainer):
                        writer.add_scalar(f"{BY_TOKENS}{name}", float(value), budget.tokens)
        if self._exhibits is not None:
            for exhibit in self._exhibits.chosen():
                picture = draw(exhibit, getattr(pl_module, "call_threshold", 0.5))
                for writer in _writers(trainer):
                    writer.add_image(f"dev/maps/{exhibit.id}", picture, trainer.global_step, dataformats="HWC")
            self._exhibits = None

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if _has_logger(trainer):
            self._write_distributions(trainer, "test")

    def _is_time_to_draw(self, trainer: L.Trainer) -> bool:
        budget = find_callback(trainer, TokenBudget)
        if not self.lengths:
            return False
        if budget is None or budget.max_tokens is None:
            return self._looks & (self._looks - 1) == 0  # 1, 2, 4, 8, …
        before, self._parts = self._parts, math.floor(budget.fraction * self.pictures)
        return self._looks == 1 or self._parts > before

    def _write_hparams(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        from torch.utils.tensorboard.summary import hparams

        metrics = dict.fromkeys(HPARAM_METRICS, 0.0)  # their values are the last scalars of these names
        for writer in _writers(trainer):
            if writer.log_dir not in self._described:
                self._described.add(writer.log_dir)
                for summary in hparams(run_hparams(trainer, pl_module), metrics):
                    writer.file_writer.add_summary(summary)

    def _write_distributions(self, trainer: L.Trainer, prefix: str) -> None:
        """Curve and histograms. On several processes a collective call."""
        curve = self._curve.curve(trainer.strategy.reduce(self._curve.called, reduce_op="sum"))
        evaluation = find_callback(trainer, ContactEvaluation)
        rows = [] if evaluation is None else evaluation.rows
        step = trainer.global_step
        for writer in _writers(trainer):
            tag = f"{prefix}/precision_recall_sep6"
            writer.add_pr_curve_raw(tag, **curve, global_step=step, num_thresholds=CURVE_POINTS)
            for name in OVER_PROTEINS:
                values = np.array([row[name] for row in rows if math.isfinite(row[name])])
                if len(values):
                    bins = np.linspace(-1, 1, 81) if name.startswith("mcc") else np.linspace(0, 1, 41)
                    writer.add_histogram(f"{prefix}/proteins/{name}", values, step, bins=bins)


def _has_logger(trainer: L.Trainer) -> bool:
    """Whether there is something to write to; the same in all processes."""
    return any(isinstance(logger, TensorBoardLogger) for logger in trainer.loggers)


def _writers(trainer: L.Trainer) -> list[Any]:
    """What writes to TensorBoard; in the first process only."""
    loggers = trainer.loggers if trainer.is_global_zero else []
    return [logger.experiment for logger in loggers if isinstance(logger, TensorBoardLogger)]


def run_hparams(trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, bool | int | float | str]:
    """The options that tell runs apart, as plain values; what a project does not have is left out."""
    budget, optimizers, hparams = find_callback(trainer, TokenBudget), optimizer_facts(trainer), pl_module.hparams
    options: dict[str, Any] = {"arm": str(trainer.loggers[0].name or "") if trainer.loggers else ""}
    options |= {"seed": run_seed(trainer), **scheme_facts(trainer)}
    if optimizers:
        options |= {"lr": optimizers[0]["lr"], "optimizer": optimizers[0]["optimizer"]}
    if "lora" in hparams:
        options["lora_r"] = (hparams["lora"] or {}).get("r", 0)
    if budget is not None:
        options["max_tokens"] = budget.max_tokens
    steps = {"accumulate_grad_batches": options.pop("accumulate_grad_batches")}
    options["trainer"] = {**steps, "precision": str(trainer.precision), "processes": trainer.world_size}
    return flat({**options, "model": dict(hparams)})


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, bool | int | float | str]:
    """Nested options as one level of plain values; lists as text, null where there is none, all else left out."""
    result: dict[str, bool | int | float | str] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            result |= flat(value, f"{prefix}{name}.")
        elif isinstance(value, PLAIN):
            is_long = type(value) is int and float(f"{value:.{DIGITS - 1}e}") != value
            result[prefix + name] = str(value) if is_long else value  # a text is shown to the last digit
        elif isinstance(value, (list, tuple)) and all(isinstance(item, PLAIN) for item in value):
            result[prefix + name] = ", ".join(map(str, value))
        elif value is None:
            result[prefix + name] = "null"
    return result


class Exhibit(NamedTuple):
    """A protein to draw."""

    length: int
    id: str
    number: int  # in its data set
    probability: Tensor  # float32 (L, L)
    labels: Tensor  # int8 (L, L)
    chain_lengths: tuple[int, ...] = ()  # of a complex


class Exhibits:
    """Keeps the protein nearest to each wanted length (of equals the shorter, then the first by id and number).

    So an evaluation of the same set chooses the same proteins every time, whatever their order.
    """

    def __init__(self, lengths: Sequence[int] = LENGTHS) -> None:
        self.lengths = tuple(lengths)
        self._nearest: dict[int, Exhibit] = {}

    def add(self, outputs: Mapping[str, Any]) -> None:
        indices = outputs.get("indices") or [-1] * len(outputs["ids"])
        chains = outputs.get("chain_of") or [None] * len(outputs["ids"])
        rows = zip(outputs["ids"], indices, outputs["probability"], outputs["labels"], chains, strict=True)
        for name, index, probability, labels, chain_of in rows:
            lengths = () if chain_of is None else tuple(chain_of.bincount().tolist())
            candidate = Exhibit(len(labels), name, int(index), probability, labels, lengths)
            for wanted in self.lengths:
                both = [self._nearest.get(wanted, candidate), candidate]
                self._nearest[wanted] = min(both, key=lambda exhibit: (abs(exhibit.length - wanted), *exhibit[:3]))

    def chosen(self) -> list[Exhibit]:
        """The proteins, each once, from short to long."""
        distinct = {(exhibit.id, exhibit.number): exhibit for exhibit in self._nearest.values()}
        return sorted(distinct.values(), key=lambda exhibit: exhibit[:3])


def draw(exhibit: Exhibit, threshold: float) -> NDArray[np.uint8]:
    """Draw the predicted map above the diagonal and the true one below: RGB, uint8 (height, width, 3)."""
    from contactlm.maps.picture import draw_picture  # not every run draws

    probability, labels = (values.detach().cpu().numpy() for values in (exhibit.probability.float(), exhibit.labels))
    how = {"chain_lengths": list(exhibit.chain_lengths)} if exhibit.chain_lengths else {}
    predicted = ContactMap(exhibit.id, "X" * exhibit.length, probability, labels, threshold, how)
    return np.asarray(draw_picture(predicted, EMS))


class PrecisionRecall:
    """Precision and recall of all pairs of all proteins with |i − j| ≥ 6, at 201 thresholds.

    Attributes:
        called: How many pairs, and how many contacts, are at or above each threshold: int64 (2, 201).
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.called = torch.zeros(2, CURVE_POINTS, dtype=torch.int64, device=device)

    def add(self, outputs: Mapping[str, Any]) -> None:
        for ranked in RankedBatch.of(outputs).maps:
            cuts = cuts_on(THRESHOLDS, ranked.near.device)
            for band in ranked.bands[1:]:  # |i − j| >= 6
                self.called += torch.stack([reaching(part, cuts) for part in band[:2]]).to(self.called.device)

    def curve(self, counts: Tensor) -> dict[str, NDArray[np.float64]]:
        """What TensorBoard shows of counts, those of this process or of all."""
        called, positive = counts.double().cpu().numpy()
        negative = called - positive
        return {
            "true_positive_counts": positive,
            "false_positive_counts": negative,
            "true_negative_counts": negative[0] - negative,
            "false_negative_counts": positive[0] - positive,
            "precision": np.divide(positive, called, out=np.ones_like(called), where=called > 0),
            "recall": positive / max(positive[0], 1.0),
        }
