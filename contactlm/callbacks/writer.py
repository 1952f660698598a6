"""PredictionWriter: predicted contact maps to files, as they come."""

from __future__ import annotations

import csv
import logging
import math
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal

import lightning as L
import numpy as np
import torch

from contactlm.atomic import FileNames, atomic_path, remove_temporaries
from contactlm.callbacks.origin import Maker, find_maker, input_checksum, tell_reasons, what_differs
from contactlm.data.store import ChainStore
from contactlm.maps.contact_map import RR_PAIRS_PER_RESIDUE, WRITERS, ContactMap, write_npz, write_rr
from contactlm.metrics.calibration_scores import CONFIDENCE
from contactlm.structure.assembly import residue_positions
from contactlm.types import ContactLMError

log = logging.getLogger(__name__)

FORMATS = tuple(suffix.removeprefix(".") for suffix in WRITERS)
SUMMARY = "summary.csv"
SCORES = ("mcc", "mcc_sep6", "mcc_long", "p_at_L_long", "p_at_L5_long", "auprc_sep6")
COLUMNS = (
    "id",
    "file",
    "length",
    "threshold",
    "contacts_sep6",
    "seconds",
    *SCORES,
    CONFIDENCE,
    "input",
    "model",
    "options",
)


class PredictionWriter(L.Callback):
    """Writes every predicted map and a summary with a line a protein.

    Works with any LightningModule whose ``predict_step`` returns a list of :class:`contactlm.ContactMap`. With
    ``ContactDataModule``, proteins whose results exist already are not predicted again, if these were made from the
    same sequence (and structure, where it is known), the same weights and the same options: the summary's columns
    ``input`` and ``model`` (checksums) and ``options`` tell. What differs is computed again, and said. One process at
    a time writes to a folder: what killed runs left half written there is removed.

    Args:
        out: Folder of the files ``<id>.npz``, ``<id>.rr``, ``<id>.png`` and ``summary.csv``, whose column ``file``
            gives their names without the suffix: letters that files cannot have are replaced.
        formats: What to write of each protein.
        overwrite: Predict and write again what exists.
        dtype: Of the probabilities in ``.npz`` files: ``"float32"``, or ``"float16"`` for half the space.
        pairs_per_residue: Most pairs in an ``.rr`` file, in units of L; None: all that are at all probable.

    Raises:
        ContactLMError: An unknown format, or none; or ``pairs_per_residue`` that is not positive.
    """

    def __init__(
        self,
        out: str | Path,
        formats: Sequence[str] = FORMATS,
        overwrite: bool = False,
        dtype: Literal["float16", "float32"] = "float32",
        pairs_per_residue: float | None = RR_PAIRS_PER_RESIDUE,
    ) -> None:
        unknown = [name for name in formats if name not in FORMATS]
        if unknown or not formats:
            raise ContactLMError(f"formats: {list(formats)} given; choose from {', '.join(FORMATS)}")
        if pairs_per_residue is not None and not 0 < pairs_per_residue < math.inf:
            raise ContactLMError(f"pairs_per_residue: {pairs_per_residue} given; it must be positive (null: all pairs)")
        self.out = Path(out).expanduser()
        self.formats = tuple(formats)
        self.overwrite = overwrite
        self.dtype = dtype
        self.pairs_per_residue = pairs_per_residue
        self.kept = 0
        self.written = 0
        self._began = 0.0
        self._lines: dict[str, dict[str, str]] = {}  # of earlier runs
        self._names = FileNames()
        self._maker: Maker | None = None
        self._inputs: dict[str, str] = {}

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """See what an earlier, perhaps interrupted, run has written."""
        if stage != "predict":
            return
        self._maker, self._inputs = None, {}
        with self._as_an_error():
            self.out.mkdir(parents=True, exist_ok=True)
            self._lines = read_summary(self.out / SUMMARY)
        self._names = FileNames({name: line["file"] for name, line in self._lines.items() if line.get("file")})
        data = trainer.datamodule  # type: ignore[attr-defined]  # a connector sets it
        if hasattr(data, "leave_out"):  # it asks when the weights of a checkpoint are loaded
            data.leave_out(partial(self._finished, trainer, pl_module))
        elif trainer.is_global_zero and self._lines:  # lines of another version may have other columns
            with self._as_an_error():
                _write_summary(self.out / SUMMARY, self._lines.values())

    def _finished(self, trainer: L.Trainer, pl_module: L.LightningModule, store: ChainStore) -> set[str]:
        """The chains whose results exist and would be the same; the summary keeps no line of the others."""
        maker = self._made_by(trainer, pl_module)
        self._inputs = {name: _input_of(store, i) for i, name in enumerate(store.ids)}
        there = {name for name in store.ids if name in self._lines and not self.overwrite and self._is_written(name)}
        differing = {name: what_differs(self._lines[name], maker, self._inputs[name]) for name in sorted(there)}
        finished = {name for name, reason in differing.items() if reason is None}
        if trainer.is_global_zero:
            for sentence in tell_reasons({name: reason for name, reason in differing.items() if reason is not None}):
                log.warning("%s: %s", self.out, sentence)
            again = set(store.ids) - finished
            with self._as_an_error():
                remove_temporaries(self.out)
                _write_summary(self.out / SUMMARY, [line for name, line in self._lines.items() if name not in again])
        self.kept = len(finished)
        return finished

    @contextmanager
    def _as_an_error(self) -> Iterator[None]:
        try:
            yield
        except (OSError, UnicodeDecodeError) as error:
            raise ContactLMError(
                f"out: {self.out} cannot be written ({getattr(error, 'strerror', error)}); give another folder"
            ) from error

    def _made_by(self, trainer: L.Trainer, pl_module: L.LightningModule) -> Maker:
        if self._maker is None:
            options: dict[str, Any] = {"dtype": self.dtype} if "npz" in self.formats else {}
            options |= {"pairs_per_residue": str(self.pairs_per_residue)} if "rr" in self.formats else {}
            self._maker = find_maker(trainer, pl_module, options)
        return self._maker

    def _is_written(self, name: str) -> bool:
        return all(self._path(name, kind).is_file() for kind in self.formats)

    def _path(self, name: str, kind: str) -> Path:
        return self.out / f"{self._names.of(name)}.{kind}"

    def on_predict_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Know what predicts, whatever the data module."""
        self._made_by(trainer, pl_module)

    def on_predict_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Start the clock."""
        self._began = time.perf_counter()

    def on_predict_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Write the batch's maps; a protein's seconds are its share, by L², of the batch's."""
        seconds = time.perf_counter() - self._began
        total = sum(len(predicted) ** 2 for predicted in outputs)
        for predicted in outputs:
            self.write(predicted, seconds * len(predicted) ** 2 / total)

    def on_predict_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Count the maps of all processes."""
        own = torch.tensor(float(self.written), device=pl_module.device)
        self.written = int(trainer.strategy.reduce(own, reduce_op="sum"))

    def write(self, predicted: ContactMap, seconds: float) -> None:
        """Write the files of one protein, then its line in the summary.

        Raises:
            ContactLMError: They cannot be written: the disk is full, say.
        """
        if self._maker is not None:
            predicted.how = {**predicted.how, "model_checksum": self._maker.model}
        try:
            for kind in self.formats:
                self._save(predicted, kind)
            self._append(self._line(predicted, seconds))
        except OSError as error:
            raise ContactLMError(
                f"out: {predicted.id} cannot be written to {self.out} ({error.strerror}); {self.written} maps were "
                "written, and the same command goes on from there"
            ) from error
        self.written += 1

    def _save(self, predicted: ContactMap, kind: str) -> None:
        path = self._path(predicted.id, kind)
        if kind == "npz":
            write_npz(predicted, path, self.dtype)
        elif kind == "rr":
            write_rr(predicted, path, pairs_per_residue=self.pairs_per_residue)
        else:
            predicted.save(path)

    def _line(self, predicted: ContactMap, seconds: float) -> dict[str, Any]:
        line = {**summary_line(predicted, seconds), "file": self._names.of(predicted.id)}
        if self._maker is not None:
            line |= {"model": self._maker.model, "options": self._maker.options}
            known = self._inputs.get(predicted.id)
            line["input"] = known or input_checksum(predicted.sequence, predicted.chain_lengths)
        return line

    def _append(self, line: dict[str, Any]) -> None:
        path = self.out / SUMMARY
        path.parent.mkdir(parents=True, exist_ok=True)
        is_new = not path.exists()
        with path.open("a", newline="", encoding="utf-8") as handle:
            writer = csv.DictWriter(handle, COLUMNS, restval="")
            if is_new:
                writer.writeheader()
            writer.writerow(line)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """After Ctrl-C, say what is done."""
        if isinstance(exception, KeyboardInterrupt) and trainer.is_global_zero:
            log.info("interrupted: %d maps written to %s; the same command goes on from there", self.written, self.out)


def _input_of(store: ChainStore, index: int) -> str:
    lengths = None if store.chain_lengths is None else store.chain_lengths[index]
    return input_checksum(store.sequence_of(index), lengths, store.cb_of(index))


def summary_line(predicted: ContactMap, seconds: float) -> dict[str, Any]:
    """One protein's line: length, pairs above the threshold, seconds, and scores when truth is known.

    The pairs are those at |i − j| ≥ 6 or of different chains.
    """
    L = len(predicted)
    called = predicted.probability > predicted.threshold
    positions = residue_positions(predicted.chain_lengths)
    line: dict[str, Any] = {
        "id": predicted.id,
        "length": L,
        "threshold": f"{predicted.threshold:.3f}",
        "contacts_sep6": int(called[np.triu(positions - positions[:, None] >= 6)].sum()),
        "seconds": f"{seconds:.3f}",
    }
    if CONFIDENCE in predicted.how:
        line[CONFIDENCE] = f"{predicted.how[CONFIDENCE]:.4f}"
    if predicted.labels is not None:
        scores = predicted.scores()
        line |= {name: f"{scores[name]:.4f}" for name in SCORES}
    return line


def read_summary(path: Path) -> dict[str, dict[str, str]]:
    """Read the complete lines of a summary, by id; a line torn by a killed run is left out."""
    if not path.is_file():
        return {}
    with path.open(newline="", encoding="utf-8") as handle:
        text = handle.read()
    complete = text[: text.rfind("\n") + 1].splitlines()
    rows = csv.DictReader(complete)
    return {row["id"]: row for row in rows if row.get("id") and None not in row.values()}


def _write_summary(path: Path, lines: Iterable[dict[str, str]]) -> None:
    with atomic_path(path) as temporary, temporary.open("x", newline="", encoding="utf-8") as handle:
        writer = csv.DictWriter(handle, COLUMNS, restval="", extrasaction="ignore")
        writer.writeheader()
        writer.writerows(lines)
