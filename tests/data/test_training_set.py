"""The training sequences that a run keeps beside its checkpoints, and what a test elsewhere makes of them."""

from __future__ import annotations

import gzip
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from Bio import SeqIO

from contactlm import ContactModule
from contactlm.callbacks import ContactEvaluation, TokenBudget
from contactlm.callbacks.checkpoint import SafeCheckpoint
from contactlm.data.datamodule import ContactDataModule
from contactlm.data.packed.store import open_packed
from contactlm.data.store import ChainStore, chain_sequences, join_chains
from contactlm.data.training_set import NAME, describe_chains, keep_training, kept_training
from contactlm.types import Chain
from tests.callbacks.test_callbacks import trainer
from tests.conftest import random_sequence
from tests.data.packed.made import pack, serving, write_folder
from tests.data.test_leakage import families  # noqa: F401 - a fixture

Folders = tuple[Path, Path]


def store_of(sequences: dict[str, str], files: list[int] | None = None) -> ChainStore:
    chains = []
    for name, sequence in sequences.items():
        nothing = np.zeros((len(sequence), 3), np.float32)
        chains.append(Chain(name, sequence, nothing, nothing, np.ones(len(sequence), np.bool_)))
    return ChainStore.from_chains(chains, {"file_of_chain": files or list(range(len(chains)))})


ODD_IDS = [
    "1abc_A",
    "1ABC_a",
    "my protein (2)_A",
    " _ ",
    "a;b,c|d",
    "50%_%41",
    "1/2_B",
    "Ä_β",
    "nl\n>x_A",
    "caf\udce9_A",
]


def test_what_is_kept_is_read_back(tmp_path: Path) -> None:
    store = store_of({name: random_sequence(i, 20 + i) + "XUOBZ" for i, name in enumerate(ODD_IDS)})
    assert keep_training(store, tmp_path / "new") == tmp_path / "new" / NAME
    kept = kept_training(tmp_path / "new" / "best.ckpt")
    assert kept is not None and kept.about == describe_chains(store.ids, store.lengths)
    assert kept.sequences == chain_sequences(store)[0]
    written = (tmp_path / "new" / NAME).read_bytes()
    keep_training(store, tmp_path / "new")
    assert (tmp_path / "new" / NAME).read_bytes() == written


def test_chains_of_complexes_belong_together(tmp_path: Path) -> None:
    ids = ["1a_A", "1a_B", "2b_A", "3c_A", "3c_B", "3c_C"]
    sequences = {name: random_sequence(i, 25 + i) for i, name in enumerate(ids)}
    store = join_chains(store_of(sequences, [0, 0, 1, 2, 2, 2]))
    keep_training(store.select([2, 0, 1]), tmp_path)
    kept = kept_training(tmp_path / "x.ckpt")
    assert kept is not None and kept.about == describe_chains(store.ids, store.lengths)
    assert sorted(kept.sequences) == sorted(sequences.values())


def test_other_programs_read_it_and_it_is_small(tmp_path: Path) -> None:
    sequences = {f"{i:04d}_A": random_sequence(i, 250) for i in range(1000)}
    path = keep_training(store_of(sequences), tmp_path)
    assert path is not None and path.stat().st_size < 300_000
    with gzip.open(path, "rt") as handle:
        assert {record.id: str(record.seq) for record in SeqIO.parse(handle, "fasta")} == sequences


@pytest.mark.parametrize(
    "content", [b"", b"no gzip", gzip.compress(b">a\n", mtime=0), gzip.compress(b">a 2/2\nACD\n", mtime=0)]
)
def test_a_damaged_file_is_told_and_not_used(tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / NAME).write_bytes(content)
    assert kept_training(tmp_path / "x.ckpt") is None and "ignored: no scores" in caplog.text
    keep_training(store_of({"a": random_sequence(0, 900)}), tmp_path)
    (tmp_path / NAME).write_bytes((tmp_path / NAME).read_bytes()[:-20])
    assert kept_training(tmp_path / "x.ckpt") is None
    assert kept_training(tmp_path / "elsewhere" / "x.ckpt") is None


def test_a_remote_set_is_not_fetched_for_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pack(write_folder(tmp_path / "in"), tmp_path / "packed")
    with serving(tmp_path / "packed") as server, caplog.at_level(logging.INFO, logger="contactlm"):
        store, _ = open_packed(server.url, tmp_path / "cache", "seqres", "train_dir")
        asked = dict(server.asked)
        assert keep_training(store, tmp_path) is None and dict(server.asked) == asked
    assert f"{NAME} is not written" in caplog.text
    local, _ = open_packed(str(tmp_path / "packed"), tmp_path / "cache", "seqres", "train_dir")
    keep_training(local, tmp_path)
    kept = kept_training(tmp_path / "x.ckpt")
    assert kept is not None and len(kept.sequences) == len(local)


def module(folders: Folders, train: bool, **options: Any) -> ContactDataModule:
    options = {"read_workers": 0, "dev_fraction": 0.2, "crop_length": 30, **options}
    return ContactDataModule(str(folders[0]) if train else None, str(folders[1]), **options)


def scores_of(runner: Any, tiny_esm: Path, data: ContactDataModule, checkpoint: Path | str) -> dict[str, float]:
    (logged,) = runner.test(ContactModule(str(tiny_esm)), data, ckpt_path=checkpoint, verbose=False)
    return logged


def by_identity(logged: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in logged.items() if "@id" in name}


@pytest.mark.slow
def test_a_test_set_alone_is_scored_by_identity(
    families: Folders,  # noqa: F811
    tmp_path: Path,
    tiny_esm: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    saver = SafeCheckpoint(dirpath=tmp_path / "kept", monitor=None, stop_on_signals=False)
    runner = trainer(tmp_path, TokenBudget(200), ContactEvaluation(write_rows=False), saver, enable_checkpointing=True)
    data = module(families, train=True)
    runner.fit(ContactModule(str(tiny_esm)), data)
    last = tmp_path / "kept" / "last.ckpt"
    expected = by_identity(scores_of(runner, tiny_esm, data, last))
    assert expected and len({name.partition("@")[2] for name in expected}) > 1
    monkeypatch.setenv("CONTACTLM_CACHE", str(tmp_path / "another machine"))
    alone = trainer(tmp_path, ContactEvaluation(write_rows=False))
    caplog.clear()
    with caplog.at_level(logging.INFO, logger="contactlm"):
        assert by_identity(scores_of(alone, tiny_esm, module(families, train=False), last)) == expected
    assert "test chains with a training relative" in caplog.text
    assert not by_identity(scores_of(alone, tiny_esm, module(families, train=False, leak_report="never"), last))
    caplog.clear()
    keep_training(data.chains["train"].select(range(5)), tmp_path / "kept")  # of another run
    assert not by_identity(scores_of(alone, tiny_esm, module(families, train=False), last))
    assert "lists other chains than it was trained on" in caplog.text
    (tmp_path / "kept" / NAME).unlink()
    assert not by_identity(scores_of(alone, tiny_esm, module(families, train=False), last))
