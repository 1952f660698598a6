"""PredictionWriter: predicted contact maps to files, as they come."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Literal

import lightning as L
import torch

from contactlm.atomic import FileNames, remove_temporaries
from contactlm.callbacks import prediction_files as results
from contactlm.data.store import ChainStore
from contactlm.maps.contact_map import RR_PAIRS_PER_RESIDUE, ContactMap, thumbnail
from contactlm.maps.restraints import RestraintOptions
from contactlm.types import ContactLMError, DataError

log = logging.getLogger(__name__)

THREADS = 4  # Python runs one at a time; compressing and writing run in parallel
WAITING_PAIRS = 32 * 1024**2  # pairs of maps that wait to be written, at most; a map takes four bytes a pair
Written = tuple[dict[str, Any], str]  # a protein's line of the summary, and its thumbnail


class PredictionWriter(L.Callback):
    """Writes every predicted map and a summary with a line a protein.

    Works with any LightningModule whose ``predict_step`` returns a list of :class:`contactlm.ContactMap`. Threads write
    the files while the next batch is predicted; the summary keeps the order. With ``ContactDataModule``, proteins whose
    results were made from the same sequence (and structure, where it is known), weights and options are not predicted
    again; a format that is missing is written from the ``.npz``. Only one command at a time may write to a folder.

    Args:
        out: Folder of the files ``<id>.npz``, ``<id>.rr``, … and ``summary.csv``, whose column ``file`` gives their
            names without the suffix: letters that files cannot have are replaced. ``index.html`` lists all of them,
            with thumbnails of those that are predicted now.
        formats: What to write of each protein: ``npz``, ``rr`` (CASP), ``png``, ``html`` (a page), ``csv`` (the pairs),
            and on its structure ``pml`` (PyMOL), ``cxc`` (ChimeraX) and ``pdb`` (contact numbers as B-factors);
            restraints for ``boltz``, ``chai``, ``protenix``, ``haddock``, ``rosetta``, and plain ``pairs``.
        overwrite: Predict and write again what exists.
        dtype: Of the probabilities in ``.npz`` files: ``"float32"``, or ``"float16"`` for half the space.
        pairs_per_residue: Most pairs in an ``.rr`` file, in units of L; None: all that are at all probable.
        structure: A structure file, of the protein or a relative, to show maps on whose input is a sequence.
        restraints: Which pairs become restraints.

    Raises:
        ContactLMError: An unknown format, none, or one whose library is not installed; ``pairs_per_residue`` that is
            not positive; ``structure`` that is not there.
    """

    def __init__(
        self,
        out: str | Path,
        formats: Sequence[str] = results.DEFAULT_FORMATS,
        overwrite: bool = False,
        dtype: Literal["float16", "float32"] = "float32",
        pairs_per_residue: float | None = RR_PAIRS_PER_RESIDUE,
        structure: str | Path | None = None,
        restraints: RestraintOptions = RestraintOptions(),  # noqa: B008 - frozen
    ) -> None:
        self.out = Path(out).expanduser()
        self._summary = self.out / results.SUMMARY
        self.files = results.MapFiles(self.out, formats, dtype, pairs_per_residue, structure, restraints)
        self.overwrite = overwrite
        self.kept = self.completed = self.written = 0
        self._began = 0.0
        self._lines: dict[str, dict[str, str]] = {}  # of earlier runs
        self._thumbnails: dict[str, str] = {}
        self._maker: results.Maker | None = None
        self._inputs: dict[str, str] = {}
        self._threads: ThreadPoolExecutor | None = None
        self._waiting: deque[tuple[str, int, Future[Written]]] = deque()  # id, pairs, and what becomes of it

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if stage != "predict":
            return
        self._maker, self._inputs = None, {}
        self.out.mkdir(parents=True, exist_ok=True)
        self._lines = results.read_summary(self._summary)
        self.files.names = FileNames({name: line["file"] for name, line in self._lines.items() if line.get("file")})
        self.files.without, self.files.failed, self.files.outside = {}, {}, {}
        data = trainer.datamodule  # type: ignore[attr-defined]  # a connector sets it
        if hasattr(data, "leave_out"):  # it asks when the weights of a checkpoint are loaded
            data.leave_out(partial(self._finished, trainer, pl_module))
        elif trainer.is_global_zero and self._lines:  # lines of another version may have other columns
            results.write_summary(self._summary, self._lines.values())

    def _finished(self, trainer: L.Trainer, pl_module: L.LightningModule, store: ChainStore) -> set[str]:
        """The chains whose results exist and would be the same; the summary keeps no line of the others."""
        maker = self._maker = results.find_maker(trainer, pl_module, self.files.options())
        lengths = [None] * len(store.ids) if store.chain_lengths is None else store.chain_lengths
        checksums = (results.input_checksum(store.sequence_of(i), own, store.cb_of(i)) for i, own in enumerate(lengths))
        self._inputs = dict(zip(store.ids, checksums, strict=True))
        self.files.origins = getattr(trainer.datamodule, "predict_files", {})  # type: ignore[attr-defined]  # likewise
        lines = [] if self.overwrite else [self._lines[name] for name in sorted(store.ids) if name in self._lines]
        missing = {line["id"]: self.files.missing(line) for line in lines}
        there = [line["id"] for line in lines if not missing[line["id"]] or self.files.can_complete(line)]
        differing = {name: results.what_differs(self._lines[name], maker, self._inputs[name]) for name in there}
        finished = {name for name, reason in differing.items() if reason is None}
        if trainer.is_global_zero:
            reasons = {name: reason for name, reason in differing.items() if reason is not None}
            for reason, number, names in results.by_reason(reasons):
                again = f"recomputing: the existing result {reason}"
                log.warning("%s: %s: %d proteins (%s)", self.out, again, number, names)
            remove_temporaries(self.out)
            finished -= self._complete({name: missing[name] for name in sorted(finished) if missing[name]}, maker)
            others = set(store.ids) - finished
            results.write_summary(self._summary, [own for name, own in self._lines.items() if name not in others])
        finished = trainer.strategy.broadcast(finished)
        self.kept = len(finished)
        return finished

    def _complete(self, missing: Mapping[str, Sequence[str]], maker: results.Maker) -> set[str]:
        """Write the kinds that are missing from the ``.npz`` files; the proteins whose file is damaged."""
        damaged = set()
        for name, kinds in missing.items():
            try:
                saved = ContactMap.load(self.files.paths(name, "npz")[0])
            except DataError as error:
                log.warning("%s; predicting it again", error)
                damaged.add(name)
                continue
            line = self._lines[name]
            formats = [*line["formats"].split(), *self.files.write(saved, kinds)]
            line["formats"] = " ".join(dict.fromkeys(formats))
            line["options"] = results.join_options(line["options"], maker.options)
            self._thumbnails[name] = self._draw(saved)
            self.completed += 1
        return damaged

    def on_predict_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._maker = self._maker or results.find_maker(trainer, pl_module, self.files.options())
        self._threads = ThreadPoolExecutor(THREADS, "contactlm-files")

    def on_predict_batch_start(self, *_: Any) -> None:
        self._began = time.perf_counter()

    def on_predict_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Sequence[ContactMap], *_: Any
    ) -> None:
        """Have the batch's maps written; a protein's seconds are its share, by L², of the batch's."""
        seconds = time.perf_counter() - self._began
        total = sum(len(predicted) ** 2 for predicted in outputs)
        for predicted in outputs:
            pairs = len(predicted) ** 2
            work = self._work(predicted, seconds * pairs / total)
            self._take_finished(WAITING_PAIRS - pairs)
            if self._threads is not None:
                self._waiting.append((predicted.id, pairs, self._threads.submit(work)))

    def on_predict_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Wait for the last files, and count the maps of all processes."""
        self._take_finished()
        if self._threads is not None:
            self._threads.shutdown()
        own = torch.tensor(float(self.written), device=pl_module.device)
        self.written = int(trainer.strategy.reduce(own, reduce_op="sum"))

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if stage != "predict" or self._maker is None:
            return
        self.files.report()
        if trainer.is_global_zero:
            results.write_index(self.files, results.read_summary(self._summary), self._thumbnails)

    def _work(self, predicted: ContactMap, seconds: float) -> Callable[[], Written]:
        """What any thread can do for a protein; its file's name depends on those given before, and is given now."""
        if self._maker is not None:
            predicted.how = {**predicted.how, "model_checksum": self._maker.model}
        self.files.names.of(predicted.id)
        return partial(self._write_files, predicted, seconds)

    def _write_files(self, predicted: ContactMap, seconds: float) -> Written:
        formats = self.files.write(predicted, self.files.formats)
        about = {"file": self.files.names.of(predicted.id), "formats": " ".join(formats)}
        line = results.summary_line(predicted, seconds) | about
        if self._maker is not None:
            known = self._inputs.get(predicted.id)
            line["input"] = known or results.input_checksum(predicted.sequence, predicted.chain_lengths)
            line |= {"model": self._maker.model, "options": self._maker.options}
        return line, self._draw(predicted)

    def _draw(self, predicted: ContactMap) -> str:
        if len(self._thumbnails) >= results.MOST_THUMBNAILS:
            return ""
        with results.DRAWING:
            return thumbnail(predicted)

    def _take_finished(self, most: int = -1) -> None:
        """Sum up proteins in order, those that are written; wait for more while over ``most`` pairs are waiting."""
        while self._waiting and (self._waiting[0][2].done() or sum(pairs for _, pairs, _ in self._waiting) > most):
            name, _, files = self._waiting.popleft()
            try:
                line, self._thumbnails[name] = files.result()
                results.append_line(self._summary, line)
            except OSError as error:
                self._waiting.clear()
                raise ContactLMError(
                    f"out: {name} cannot be written to {self.out} ({error.strerror}); {self.written} maps were "
                    "written; run the same command again to resume"
                ) from error
            self.written += 1

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Leave no half file; after Ctrl-C, say what is done."""
        interrupted = isinstance(exception, KeyboardInterrupt)
        if self._threads is not None:
            self._threads.shutdown(cancel_futures=interrupted)
            with suppress(ContactLMError, CancelledError):  # what was not begun is left
                self._take_finished()
        if interrupted and trainer.is_global_zero:
            log.info("interrupted: %d maps written to %s; run the same command again to resume", self.written, self.out)
