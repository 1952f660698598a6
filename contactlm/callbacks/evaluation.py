"""ContactEvaluation: protein-wise scores of full-length maps on dev and test, and reliability diagrams."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import lightning as L

from contactlm.atomic import atomic_path, write_csv
from contactlm.metrics import ContactScores
from contactlm.metrics.calibration import Calibration
from contactlm.metrics.calibration_scores import CONFIDENCE, SCORED, CalibrationScores
from contactlm.metrics.complex_scores import ComplexScores
from contactlm.metrics.hit_scores import HitScores
from contactlm.metrics.ranked_batch import RankedBatch
from contactlm.metrics.scores import MAIN_NAMES, means_by, nan_mean
from contactlm.metrics.strata import training_stratum
from contactlm.runs.checkpoint_io import outlast_full_disk
from contactlm.runs.directory import run_directory
from contactlm.types import ContactLMError

_OF_OTHERS = ("trivial_", "copy_")  # scores of predictors that are not the module
_OF_PROBABILITIES = ("mcc", "ece_", "brier_", "log_loss_", "confidence_")  # parts of names of what ranks have not
STATES = ("as predicted", "calibrated")


class ContactEvaluation(L.Callback):
    """Scores whole proteins and logs the scores as ``dev/…`` and ``test/…``.

    The module's validation and test steps return a dictionary with ``ids``, ``probability`` (one (L, L) map in [0, 1]
    a protein), ``labels`` (int8 (L, L), 1 / 0 / −1) and, to tell proteins of one name apart, ``indices``. Any
    LightningModule that does so can use this callback; :class:`contactlm.ContactModule` does. Maps and labels may lie
    on an accelerator: what is counted stays there until the evaluation is over, but for one question a batch, whether
    its values are probabilities.

    Every score is the mean over proteins; see :mod:`contactlm.metrics.scores` for names and meaning. The trivial
    predictor "contact iff |i − j| ≤ 2" is logged beside them as ``trivial_…``. The threshold with the best dev
    ``mcc_sep6`` is logged as ``dev/tuned_threshold`` and used for ``test/mcc_sep6_tuned`` and its like. It is put into
    the module's attribute ``tuned_threshold``, if it has one, which :class:`contactlm.ContactModule` saves in
    its checkpoints.

    Steps that also return ``chain_of`` (the chain number of each residue, one (L,) a protein) score complexes. Pairs
    between chains then count as long-range ones in the scores above. Where complexes have several chains, the scores
    of their pairs within and between chains are logged apart, as ``intra_…`` and ``inter_…``: see the module
    ``contactlm.metrics.complex_scores``.

    With a data module that knows how near each protein is to the training set (its ``identity`` by role, as
    ``ContactDataModule`` has it), the main scores are also logged by identity: ``test/mcc_sep6@id<30`` for proteins
    without a training relative of 30 % identity, ``…@id30-50``, ``…@id>=50``, and ``proteins@…`` with their numbers.

    Steps that also return ``copied`` (one (L, L) map a protein, the contacts carried over from its relatives of known
    structure) and ``nearest`` (pair identity and coverage of its best hit, NaN where there is none), as those of the
    retrieval module do, have the main scores of copying logged as ``copy_…``, and both by that identity:
    ``test/mcc_sep6@nohit``, ``…@hit<30``, ``…@hit30-50``, ``…@hit>=50``.

    Of a module whose attribute ``gives_ranks`` is true, nothing is tuned or calibrated, and no score at a
    threshold or of probabilities is logged.

    Probabilities are judged as well, over all pairs at least 6 residues apart: ``ece_sep6`` (expected calibration
    error), ``brier_sep6`` and ``log_loss_sep6``, and the same for ``short``, ``medium`` and ``long``. A calibration is
    fitted on every look at dev and put into the module's attribute ``calibration``, if it has one; it is saved in
    checkpoints and exports, and ``predict`` applies it. Scores go on being those of the probabilities as they are; in a
    test, those of calibrated ones stand beside them as ``test/ece_sep6_calibrated`` and so on, and
    ``test/mcc_sep6_calibrated`` is at the threshold 0.5. The run directory gets ``reliability.csv`` and
    ``reliability.png``. ``test/confidence_error`` and ``…_bias`` tell how far the precision that is predicted of each
    protein (``predicted_p_at_L_long``) is from its ``p_at_L_long``.

    Args:
        threshold: A pair is called a contact when its probability is above it.
        calibration: ``"platt"``: slope and bias of the log-odds, per range of sequence separation. None: none is
            fitted, and one that a checkpoint brings is not applied.
        write_rows: Write each protein's scores to ``test_scores.csv`` in the run directory.
    """

    def __init__(
        self, threshold: float = 0.5, write_rows: bool = True, calibration: Literal["platt"] | None = "platt"
    ) -> None:
        if calibration not in (None, "platt"):
            raise ContactLMError(f"calibration is {calibration!r}; give platt, or null for none")
        self.threshold, self.calibration = threshold, calibration
        self.write_rows = write_rows
        self._scores, self._complexes, self._hits = (
            ContactScores(threshold),
            ComplexScores(threshold),
            HitScores(threshold),
        )
        self._reliability: list[CalibrationScores] = []  # as they are; and calibrated, where that can be

    @property
    def rows(self) -> list[dict[str, Any]]:
        """Every protein's scores of the last evaluation."""
        rows = self._hits.with_columns(self._complexes.with_columns(self._scores.rows))
        return self._reliability[1].with_columns(rows) if len(self._reliability) == 2 else rows

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Without calibration, do not apply one that a checkpoint brings."""
        if self.calibration is None and hasattr(pl_module, "applies_calibration"):
            pl_module.applies_calibration = False  # type: ignore[assignment]  # modules take any attribute

    def _forget(self, pl_module: L.LightningModule, tuned: float | None, fitted: Calibration | None = None) -> None:
        # on the module's device: NCCL gathers nothing on the CPU
        self._scores = ContactScores(self.threshold, tuned).to(pl_module.device)
        self._complexes = ComplexScores(self.threshold, tuned, pl_module.device)
        self._hits = HitScores(self.threshold, pl_module.device)
        kinds = [None] if fitted is None or self.calibration is None else [None, fitted]
        self._reliability = [CalibrationScores(kind).to(pl_module.device) for kind in kinds]

    def on_validation_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Forget the proteins of the evaluation before."""
        self._forget(pl_module, None)

    def on_test_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Forget the proteins of the evaluation before."""
        tuned, fitted = (getattr(pl_module, name, None) for name in ("tuned_threshold", "calibration"))
        self._forget(pl_module, tuned, fitted)

    def on_validation_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, *_: Any, **__: Any
    ) -> None:
        """Add the batch's proteins; their pairs are chosen and put in order once for all scores."""
        probability, labels, ids = (outputs[name] for name in ("probability", "labels", "ids"))
        indices, chain_of, copied = (outputs.get(name) for name in ("indices", "chain_of", "copied"))
        ranked = RankedBatch.of(outputs)
        self._scores.update(probability, labels, ids, indices, chain_of, ranked=ranked.maps)
        self._complexes.update(probability, labels, ids, indices, chain_of)
        of_copied = None if copied is None else ranked.rank(copied, labels)
        self._hits.update(copied, labels, ids, indices, chain_of, outputs.get("nearest", ()), of_copied)
        for scores in self._reliability:
            scores.update(probability, labels, ids, indices, chain_of, ranked.maps)

    on_test_batch_end = on_validation_batch_end

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log the dev scores and tune the threshold."""
        scores = self._scores.compute()
        if not trainer.sanity_checking and not getattr(pl_module, "gives_ranks", False):
            scores["tuned_threshold"], scores["mcc_sep6_tuned"] = self._scores.tune_threshold()
            if hasattr(pl_module, "tuned_threshold"):
                pl_module.tuned_threshold = scores["tuned_threshold"]  # type: ignore[assignment]  # modules take any attribute
            if hasattr(pl_module, "calibration"):
                fitted = None if self.calibration is None else self._reliability[0].fit(self.calibration)
                pl_module.calibration = fitted  # type: ignore[assignment]  # likewise
        self._log(pl_module, "dev", scores | self._of_parts(trainer, "dev"))

    def on_test_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log the test scores; write each protein's."""
        scores = self._scores.compute()
        if self._scores.tuned_threshold is not None:
            scores["tuned_threshold"] = self._scores.tuned_threshold
        if len(self._reliability) == 2:
            scores["mcc_sep6_calibrated"] = nan_mean(self._reliability[1].mcc_rows())
        self._log(pl_module, "test", scores | self._of_parts(trainer, "test"))
        folder = run_directory(trainer)  # the processes agree on it: all must ask
        if self.write_rows and trainer.is_global_zero and folder is not None:
            if not getattr(pl_module, "gives_ranks", False):
                _write_reliability(Path(folder), self._reliability)
            path = Path(folder) / "test_scores.csv"
            with outlast_full_disk(path):
                rows = [_meaningful(pl_module, row) for row in self.rows]
                write_csv(path, rows, () if rows else ("id",))

    def _of_parts(self, trainer: L.Trainer, role: str) -> dict[str, float]:
        """Scores of complexes, of copying, and of strata."""
        parts = self._complexes.compute() | self._hits.compute() | self._of_probabilities()
        return parts | self._by_identity(trainer, role) | self._hits.by_stratum(self.rows)

    def _of_probabilities(self) -> dict[str, float]:
        """How far probabilities can be believed, as they are and calibrated."""
        plain, *calibrated = self._reliability
        scores = plain.compute()
        for each in calibrated:
            scores |= {f"{name}_calibrated": value for name, value in each.compute().items()}
            scores |= each.confidence_scores()
        return scores

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


def _meaningful(module: L.LightningModule, scores: dict[str, Any]) -> dict[str, Any]:
    """Scores that need no probabilities, of a module that gives ranks; all of any other."""
    if not getattr(module, "gives_ranks", False):
        return scores
    return {
        name: value
        for name, value in scores.items()
        if name.startswith(_OF_OTHERS) or not any(part in name for part in _OF_PROBABILITIES)
    }


def _write_reliability(folder: Path, scores: Sequence[CalibrationScores]) -> None:
    """Write ``reliability.csv`` and ``reliability.png``; nothing where there is no pair to judge."""
    rows = [
        {"probabilities": state, **row}
        for state, each in zip(STATES, scores, strict=False)
        for row in each.reliability()
    ]
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

    told = [row for row in proteins if not math.isnan(row[CONFIDENCE])]
    figure = Figure(figsize=(3 * (len(SCORED) + bool(told)), 3.2), layout="constrained", dpi=110)
    axes = figure.subplots(1, len(SCORED) + bool(told), squeeze=False)[0]
    for ax, name in zip(axes, SCORED, strict=False):
        for state in STATES:
            own = [row for row in rows if (row["range"], row["probabilities"]) == (name, state)]
            points = [row["mean_probability"] for row in own], [row["contacts"] for row in own]
            if own:
                ax.plot(*points, marker="o", markersize=3, label=state)
        ax.set(title=name, xlabel="mean probability")
    axes[0].set_ylabel("share of contacts")
    axes[0].legend(fontsize="small")
    if told:
        axes[-1].plot([row[CONFIDENCE] for row in told], [row["p_at_L_long"] for row in told], "o", markersize=3)
        axes[-1].set(title="proteins", xlabel="predicted long-range P@L", ylabel="long-range P@L")
    for ax in axes:
        ax.plot([0, 1], [0, 1], color="grey", linewidth=0.8, linestyle="--", zorder=0)
        ax.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
    return figure
