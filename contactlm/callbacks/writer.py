"""PredictionWriter: predicted contact maps to files, as they come."""

from __future__ import annotations

import csv
import logging
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import lightning as L
import numpy as np
import torch

from contactlm.atomic import atomic_path, file_name, file_names, remove_temporaries
from contactlm.maps.contact_map import ContactMap, write_npz
from contactlm.structure.assembly import residue_positions
from contactlm.types import ContactLMError

log = logging.getLogger(__name__)

Format = Literal["npz", "rr", "png"]
SUMMARY = "summary.csv"
SCORES = ("mcc", "mcc_sep6", "mcc_long", "p_at_L_long", "p_at_L5_long", "auprc_sep6")
COLUMNS = ("id", "length", "threshold", "contacts_sep6", "seconds", *SCORES)


class PredictionWriter(L.Callback):
    """Writes every predicted map and a summary with a line a protein.

    Works with any LightningModule whose ``predict_step`` returns a list of :class:`contactlm.ContactMap`. With
    ``ContactDataModule``, proteins whose files exist already are not predicted again. One process at a time writes to
    a folder: what killed runs left half written there is removed.

    Args:
        out: Folder of the files ``<id>.npz``, ``<id>.rr``, ``<id>.png`` and ``summary.csv``.
        formats: What to write of each protein.
        overwrite: Predict and write again what exists.
        dtype: Of the probabilities in ``.npz`` files: ``"float32"``, or ``"float16"`` for half the space.

    Raises:
        ContactLMError: An unknown format, or none.
    """

    def __init__(
        self,
        out: str | Path,
        formats: Sequence[Format] = ("npz", "rr", "png"),
        overwrite: bool = False,
        dtype: Literal["float16", "float32"] = "float32",
    ) -> None:
        unknown = [name for name in formats if name not in ("npz", "rr", "png")]
        if unknown or not formats:
            raise ContactLMError(f"formats: {list(formats)} given; choose from npz, rr, png")
        self.out = Path(out).expanduser()
        self.formats = tuple(formats)
        self.overwrite = overwrite
        self.dtype = dtype
        self.kept = 0
        self.written = 0
        self._began = 0.0
        self._names: dict[str, str] = {}

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Leave out what an earlier, perhaps interrupted, run has written."""
        data = trainer.datamodule  # type: ignore[attr-defined]  # a connector sets it
        if stage != "predict" or not hasattr(data, "leave_out"):
            return
        ids = data.chains["predict"].ids
        self._names = file_names(ids)
        try:
            self.out.mkdir(parents=True, exist_ok=True)
            lines = read_summary(self.out / SUMMARY)
            finished = set() if self.overwrite else {name for name in ids if name in lines and self._is_written(name)}
            again = set(ids) - finished
            if trainer.is_global_zero:
                remove_temporaries(self.out)
                _write_summary(self.out / SUMMARY, [line for name, line in lines.items() if name not in again])
        except (OSError, UnicodeDecodeError) as error:
            raise ContactLMError(
                f"out: {self.out} cannot be written ({getattr(error, 'strerror', error)}); give another folder"
            ) from error
        self.kept = len(finished)
        data.leave_out(finished)

    def _is_written(self, name: str) -> bool:
        return all(self._path(name, kind).is_file() for kind in self.formats)

    def _path(self, name: str, kind: str) -> Path:
        return self.out / f"{self._names.get(name) or file_name(name)}.{kind}"

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
        try:
            for kind in self.formats:
                path = self._path(predicted.id, kind)
                write_npz(predicted, path, self.dtype) if kind == "npz" else predicted.save(path)
            self._append(summary_line(predicted, seconds))
        except OSError as error:
            raise ContactLMError(
                f"out: {predicted.id} cannot be written to {self.out} ({error.strerror}); {self.written} maps were "
                "written, and the same command goes on from there"
            ) from error
        self.written += 1

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
