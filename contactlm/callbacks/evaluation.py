"""ContactEvaluation: protein-wise scores of full-length maps on dev and test, and reliability diagrams."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import lightning as L
import torch

from contactlm.atomic import atomic_path, write_csv
from contactlm.metrics import ContactScores
from contactlm.metrics.calibration import Calibration
from contactlm.metrics.calibration_scores import CONFIDENCE, SCORED, CalibrationScores
from contactlm.metrics.distances import DistanceScores
from contactlm.metrics.part_scores import ComplexScores, HitScores, training_stratum
from contactlm.metrics.protein_states import RankedBatch
from contactlm.metrics.scores import MAIN_NAMES, means_by, nan_mean
from contactlm.retrieval.nearest import NearestChain
from contactlm.runs.checkpoint_io import outlast_full_disk
from contactlm.runs.directory import run_directory
from contactlm.types import ContactLMError

log = logging.getLogger(__name__)

_OF_OTHERS = ("trivial_", "copy_")  # scores of predictors that are not the module
_OF_PROBABILITIES = ("mcc", "ece_", "brier_", "log_loss_", "confidence_")  # parts of names of what ranks have not
STATES = ("as predicted", "calibrated")
COLORS = ("#0072B2", "#D55E00")
FEW_PAIRS = 100  # in a bin of a reliability diagram, below which its point says little
PANELS = {"sep6": "all pairs, |i − j| ≥ 6 (sep6)", "short": "short, |i − j| 6–11", "medium": "medium, |i − j| 12–23"}
PANELS["long"] = "long, |i − j| ≥ 24"


class ContactEvaluation(L.Callback):
    """Scores whole proteins and logs the scores as ``dev/…`` and ``test/…``.

    The module's validation and test steps return a dictionary with ``ids``, ``probability`` (one (L, L) map in [0, 1]
    a protein), ``labels`` (int8 (L, L), 1 / 0 / −1) and, to tell proteins of one name apart, ``indices``. Maps and
    labels may lie on an accelerator: counting stays there.

    Every score is the mean over proteins; see :mod:`contactlm.metrics.scores` for names and meaning. The trivial
    predictor "contact iff |i − j| ≤ 2" is logged as ``trivial_…``. The threshold with the best dev ``mcc_sep6`` is
    logged as ``dev/tuned_threshold``, used for ``test/mcc_sep6_tuned`` and its like, and put into the module's
    attribute ``tuned_threshold``, if it has one. More is logged where there is more to know:

    - Complexes, whose steps also return ``chain_of`` (the chain number of each residue, one (L,) a protein): pairs
      between chains count as long-range ones; ``intra_…`` and ``inter_…`` score pairs within and between chains.
    - The main scores by identity to the training set, where the data module knows it (its ``identity`` by role):
      ``test/mcc_sep6@id<30``, ``…@id30-50``, ``…@id>=50``, with the numbers of proteins as ``proteins@…``.
    - Copying, where steps also return ``copied`` (one (L, L) map a protein, carried over from relatives of known
      structure) and ``nearest`` (pair identity and coverage of the best hit, or NaN): ``copy_…``, and the scores of
      both by that identity: ``test/mcc_sep6@nohit``, ``…@hit<30``, ``…@hit30-50``, ``…@hit>=50``.
    - Distances, where steps also return ``distance`` (expected ones, one (L, L) a protein) and ``cb`` (true C-betas):
      ``distance_mae`` over pairs truly below 22 Å, ``distance_lddt``, and what sequence separation alone predicts as
      ``trivial_…``.
    - How far probabilities can be believed, over pairs at least 6 apart and by range: ``ece_…`` (expected calibration
      error), ``brier_…`` and ``log_loss_…``. A calibration is fitted on every look at dev and put into the module's
      attribute ``calibration``, if it has one. A test adds scores of calibrated probabilities as ``…_calibrated`` and
      writes ``reliability.csv`` and ``reliability.png`` to the run directory. ``test/confidence_error`` and ``…_bias``
      compare predicted long-range precisions with those that came.

    A module whose attribute ``gives_ranks`` is true gets scores of ranks alone: nothing is tuned or calibrated.

    Args:
        threshold: A pair is called a contact when its probability is above it.
        calibration: ``"platt"``: slope and bias of the log-odds, per range of sequence separation. None: fit none,
            and ignore the one of a checkpoint.
        copy_nearest: Also score, on the test set, copying the contacts of the nearest training chain (by alignment),
            where the training chains are known, as they are after ``fit``. It aligns every test chain with all.
        write_rows: Write each protein's scores to ``test_scores.csv`` in the run directory.
    """

    def __init__(
        self,
        threshold: float = 0.5,
        write_rows: bool = True,
        calibration: Literal["platt"] | None = "platt",
        copy_nearest: bool = False,
    ) -> None:
        if calibration not in (None, "platt"):
            raise ContactLMError(f"calibration is {calibration!r}; give platt, or null for none")
        self.threshold, self.calibration, self.write_rows = threshold, calibration, write_rows
        self.copy_nearest = copy_nearest
        self._forget(torch.device("cpu"))

    @property
    def rows(self) -> list[dict[str, Any]]:
        """Every protein's scores of the last evaluation."""
        rows = self._hits.with_columns(self._complexes.with_columns(self._scores.rows))
        rows = self._distances.with_columns(rows)
        return self._reliability[1].with_columns(rows) if len(self._reliability) == 2 else rows

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if self.calibration is None and hasattr(pl_module, "applies_calibration"):
            pl_module.applies_calibration = False  # type: ignore[assignment]  # modules take any attribute

    def _forget(self, device: torch.device, tuned: float | None = None, fitted: Calibration | None = None) -> None:
        """Begin anew, on the module's device: NCCL gathers nothing on the CPU."""
        self._scores = ContactScores(self.threshold, tuned).to(device)
        self._complexes = ComplexScores(self.threshold, tuned, device)
        self._hits = HitScores(self.threshold, device)
        self._nearest: NearestChain | None = None
        self._distances = DistanceScores().to(device)
        # of probabilities as they are; and calibrated, where that can be
        kinds = [None] if fitted is None or self.calibration is None else [None, fitted]
        self._reliability = [CalibrationScores(kind).to(device) for kind in kinds]

    def on_validation_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._forget(pl_module.device)

    def on_test_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        tuned, fitted = (getattr(pl_module, name, None) for name in ("tuned_threshold", "calibration"))
        self._forget(pl_module.device, tuned, fitted)
        if self.copy_nearest:
            self._nearest = _training_chains(trainer)

    def on_validation_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, *_: Any, **__: Any
    ) -> None:
        """Add the batch's proteins; their pairs are chosen and put in order once for all scores."""
        probability, labels, ids = (outputs[name] for name in ("probability", "labels", "ids"))
        if self._nearest is not None and "copied" not in outputs:
            outputs = {**outputs, **self._copied(trainer, self._nearest, outputs)}
        indices, chain_of, copied = (outputs.get(name) for name in ("indices", "chain_of", "copied"))
        ranked = RankedBatch.of(outputs)
        self._scores.update(probability, labels, ids, indices, chain_of, ranked=ranked.maps)
        self._complexes.update(probability, labels, ids, indices, chain_of)
        of_copied = None if copied is None else ranked.rank(copied, labels)
        self._hits.update(copied, labels, ids, indices, chain_of, outputs.get("nearest", ()), of_copied)
        self._distances.update(outputs.get("distance", ()), outputs.get("cb", ()), indices, chain_of)
        for scores in self._reliability:
            scores.update(probability, labels, ids, indices, chain_of, ranked.maps)

    on_test_batch_end = on_validation_batch_end

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        scores = self._scores.compute()
        if not trainer.sanity_checking and not getattr(pl_module, "gives_ranks", False):
            scores["tuned_threshold"], scores["mcc_sep6_tuned"] = self._scores.tune_threshold()
            if hasattr(pl_module, "tuned_threshold"):
                pl_module.tuned_threshold = scores["tuned_threshold"]  # type: ignore[assignment]  # modules take any attribute
            if hasattr(pl_module, "calibration"):
                fitted = None if self.calibration is None else self._reliability[0].fit()
                pl_module.calibration = fitted  # type: ignore[assignment]  # likewise
        self._log(pl_module, "dev", scores | self._of_parts(trainer, "dev"))

    def on_test_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        scores = self._scores.compute()
        if self._scores.tuned_threshold is not None:
            scores["tuned_threshold"] = self._scores.tuned_threshold
        self._log(pl_module, "test", scores | self._of_parts(trainer, "test"))
        folder = run_directory(trainer)  # the processes agree on it: all must ask
        if self.write_rows and trainer.is_global_zero and folder is not None:
            if not getattr(pl_module, "gives_ranks", False):
                _write_reliability(Path(folder), self._reliability)
            path = Path(folder) / "test_scores.csv"
            with outlast_full_disk(path):
                rows = [_meaningful(pl_module, row) for row in self.rows]
                write_csv(path, rows, () if rows else ("id",))

    @staticmethod
    def _copied(trainer: L.Trainer, nearest: NearestChain, outputs: Any) -> dict[str, Any]:
        store = trainer.datamodule.chains["test"]  # type: ignore[attr-defined]  # a connector sets it
        found = [nearest.copy(store.sequence_of(index)) for index in outputs["indices"]]
        copied = [torch.from_numpy(own).to(outputs["labels"][0].device) for own, _ in found]
        return {"copied": copied, "nearest": [near for _, near in found]}

    def _of_parts(self, trainer: L.Trainer, role: str) -> dict[str, float]:
        """Scores of complexes, of copying, of probabilities as they are and calibrated, and of strata."""
        plain, *calibrated = self._reliability
        scores = self._complexes.compute() | self._hits.compute() | plain.compute() | self._distances.compute()
        for each in calibrated:
            scores |= {f"{name}_calibrated": value for name, value in each.compute().items()}
            scores |= {"mcc_sep6_calibrated": nan_mean(each.mcc_rows()), **each.confidence_scores()}
        return scores | self._by_identity(trainer, role) | self._hits.by_stratum(self.rows)

    def _by_identity(self, trainer: L.Trainer, role: str) -> dict[str, float]:
        """Main scores of proteins in each stratum of identity to the training set that has any."""
        known = getattr(trainer.datamodule, "identity", {}).get(role)  # type: ignore[attr-defined]  # a connector sets it
        if known is None:
            return {}
        strata: dict[str, list[dict[str, Any]]] = {}
        for row in self._scores.rows:
            strata.setdefault(training_stratum(float(known[row["index"]])), []).append(row)
        return means_by(strata, MAIN_NAMES)

    def _log(self, pl_module: L.LightningModule, prefix: str, scores: dict[str, float]) -> None:
        # the scores are of all processes already: every process logs the same, so that checkpoints can watch them
        for name, value in _meaningful(pl_module, scores).items():
            pl_module.log(f"{prefix}/{name}", value, prog_bar=name == "mcc_sep6", rank_zero_only=False, sync_dist=False)


def _training_chains(trainer: L.Trainer) -> NearestChain | None:
    """The chains to copy from; None, and a line, where there are none or the entries are complexes."""
    store = getattr(trainer.datamodule, "chains", {}).get("train")  # type: ignore[attr-defined]  # a connector sets it
    if store is not None and store.chain_lengths is None:
        return NearestChain(store)
    if trainer.is_global_zero:
        what = "the training chains are not known" if store is None else "entries of several chains are not copied"
        log.info("evaluation.copy_nearest: %s: no scores of copying", what)
    return None


def _meaningful(module: L.LightningModule, scores: dict[str, Any]) -> dict[str, Any]:
    """Scores that need no probabilities, of a module that gives ranks; all of any other."""
    if not getattr(module, "gives_ranks", False):
        return scores
    of_ranks = [n for n in scores if n.startswith(_OF_OTHERS) or not any(part in n for part in _OF_PROBABILITIES)]
    return {name: scores[name] for name in of_ranks}


def _write_reliability(folder: Path, scores: Sequence[CalibrationScores]) -> None:
    """Write ``reliability.csv`` and ``reliability.png``; nothing where there is no pair to judge."""
    states = zip(STATES, scores, strict=False)
    rows = [{"probabilities": state, **row} for state, each in states for row in each.reliability()]
    if not rows:
        return
    table, figure = folder / "reliability.csv", folder / "reliability.png"
    with outlast_full_disk(table):
        write_csv(table, rows)
    with outlast_full_disk(figure), atomic_path(figure) as temporary:
        _figure(rows, scores[-1].confidence_rows()).savefig(temporary, format="png")


def _figure(rows: Sequence[dict[str, Any]], proteins: Sequence[dict[str, float]]) -> Any:
    """Draw a panel a range, and one of predicted precisions where there are any."""
    from matplotlib.figure import Figure  # slow to import, and most commands draw nothing

    known = [row for row in proteins if not math.isnan(row[CONFIDENCE] + row["p_at_L_long"])]
    scored = [name for name in SCORED if any(row["range"] == name for row in rows)]
    figure = Figure(figsize=(3 * (len(scored) + bool(known)), 3.4), layout="constrained", dpi=110)
    axes = figure.subplots(1, len(scored) + bool(known), squeeze=False)[0]
    for ax, name in zip(axes, scored, strict=False):
        for color, state in zip(COLORS, STATES, strict=True):
            own = [row for row in rows if (row["range"], row["probabilities"]) == (name, state)]
            x, y = ([row[name] for row in own] for name in ("mean_probability", "contacts"))
            sure = [value if row["pairs"] >= FEW_PAIRS else math.nan for value, row in zip(y, own, strict=True)]
            line: dict[str, Any] = {"marker": "o", "markersize": 4, "linewidth": 1, "color": color}
            ax.plot(x, y, alpha=0.3, fillstyle="none", **line)
            ax.plot(x, sure, label=state, **line)
        ax.set(title=PANELS[name], xlabel="mean probability")
    axes[0].set_ylabel("share of contacts")
    axes[0].legend(fontsize="small", title=f"faint: bins of < {FEW_PAIRS} pairs", title_fontsize="x-small")
    if known:
        axes[-1].plot([row[CONFIDENCE] for row in known], [row["p_at_L_long"] for row in known], "o", markersize=3)
        axes[-1].set(title="each protein's long-range P@L", xlabel="predicted long-range P@L", ylabel="long-range P@L")
    for ax in axes:
        ax.plot([0, 1], [0, 1], color="grey", linewidth=0.8, linestyle="--", zorder=0)
        ax.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
    return figure
