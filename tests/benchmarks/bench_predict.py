"""What predictions take: predict_contacts over ``contactlm predict`` without files; its files written beside or after.

Usage: python tests/benchmarks/bench_predict.py [NUMBER_OF_SEQUENCES] [tiny|8M] [FORMATS_OF_FILES ...]

Without formats the first comparison, in processor time. With formats (``npz rr``) the command with its files: written
by other threads while the next batch is predicted, over written by the same thread after each batch of eight chains;
in both times. All on one thread of a CPU, apart from those that write.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import lightning as L
import numpy as np
import torch

from contactlm import ContactDataModule, ContactModule, predict_contacts
from contactlm.callbacks import PredictionWriter

SIZES = {
    "tiny": {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64},
    "8M": {"num_hidden_layers": 6, "hidden_size": 320, "num_attention_heads": 20, "intermediate_size": 1280},
}
LENGTH, ROUNDS = 150, 3


def made_sequences(number: int) -> list[str]:
    """Random ones."""
    rng = np.random.default_rng(0)
    return ["".join(rng.choice(list("ACDEFGHIKLMNPQRSTVWY"), LENGTH)) for _ in range(number)]


def write_fasta(folder: Path, sequences: list[str]) -> Path:
    """A FASTA file of some sequences."""
    fasta = folder / "a.fasta"
    fasta.write_text("".join(f">p{n}\n{sequence}\n" for n, sequence in enumerate(sequences)))
    return fasta


def main(number: int, size: str, formats: list[str]) -> None:
    """Take turns, and print the seconds of each and the median of their ratios."""
    torch.set_num_threads(1)
    if formats:
        with_files(number, size, formats)
        return
    sequences = made_sequences(number)
    model = ContactModule(None, architecture=SIZES[size], lora=None)
    with tempfile.TemporaryDirectory() as folder:
        fasta = write_fasta(Path(folder), sequences)
        ratios = []
        for _ in range(ROUNDS):
            seconds = []
            for run in (lambda: command(model, fasta, folder), lambda: predict_contacts(sequences, model, "cpu")):
                began = time.process_time()
                run()
                seconds.append(time.process_time() - began)
            ratios.append(seconds[1] / seconds[0])
            print(
                f"{size}, {number} x {LENGTH}: command {seconds[0]:.2f} s, predict_contacts {seconds[1]:.2f} s",
                flush=True,
            )
    print(f"{size}: median ratio {statistics.median(ratios):.3f} of processor time")


def command(
    model: ContactModule, fasta: Path, cache: str, writer: PredictionWriter | None = None, size: int | None = None
) -> None:
    """What the command does, apart from its files unless there is a writer."""
    data = ContactDataModule(predict_paths=[str(fasta)], cache_dir=cache, read_workers=0, eval_batch_size=size)
    callbacks: list[L.Callback] = [] if writer is None else [writer]
    trainer = L.Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False, callbacks=callbacks
    )
    trainer.predict(model, datamodule=data, return_predictions=False)


class AfterEachBatch(PredictionWriter):
    """Writes in the thread that predicts."""

    def on_predict_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start no thread."""
        self._made_by(trainer, pl_module)


def with_files(number: int, size: str, formats: list[str]) -> None:
    """Take turns, and print the seconds of each and the medians of their ratios."""
    ratios = []
    model = ContactModule(None, architecture=SIZES[size], lora=None)
    with tempfile.TemporaryDirectory() as folder:
        fasta = write_fasta(Path(folder), made_sequences(number))
        for n in range(ROUNDS):
            seconds = []
            for kind, chains in ((AfterEachBatch, 8), (PredictionWriter, None)):
                wall, processor = time.perf_counter(), time.process_time()
                command(model, fasta, folder, kind(Path(folder) / f"{kind.__name__}{n}", formats), chains)
                seconds.append((time.perf_counter() - wall, time.process_time() - processor))
            ratios.append([beside / after for after, beside in zip(*seconds, strict=True)])
            told = " and ".join(f"{wall:.1f} s ({processor:.1f} s of a processor)" for wall, processor in seconds)
            print(f"{size}, {number} x {LENGTH}, {' '.join(formats)}: {told}", flush=True)
    wall, processor = (statistics.median(column) for column in zip(*ratios, strict=True))
    print(f"{size}: written beside over after: {wall:.2f} of the time, {processor:.2f} of processor time")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("number", nargs="?", type=int, default=1000, help="Sequences.")
    parser.add_argument("size", nargs="?", choices=SIZES, default="tiny", help="Of the model.")
    parser.add_argument("formats", nargs="*", help="Of files to write.")
    main(**vars(parser.parse_args()))
