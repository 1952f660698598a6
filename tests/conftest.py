"""Fixtures shared by the tests: tiny structure files, tiny models, and the real files where they are at hand."""

from __future__ import annotations

import contextlib
import gc
import io
import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pytest
from Bio.Data import IUPACData

from contactlm.alphabet import LETTERS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.browser import Browser

if TYPE_CHECKING:  # a test run with several workers starts them when this file is imported: torch takes seconds
    from contactlm import ContactModule

if not Path("/dev/nvidiactl").exists():  # Triton, which torch imports, reads it once
    os.environ["TRITON_INTERPRET"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"  # no test needs the hub; its client reads this once, when it is imported
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tensors are tiny here: a second thread costs more than it brings

os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # commands would compile the whole package, each anew
sys.dont_write_bytecode = False

SHARED = Path(__file__).resolve().parents[2] / "shared"
THREE_LETTERS = {
    one: three.upper() for one, three in IUPACData.protein_letters_1to3.items() if one in "ARNDCQEGHILKMFPSTWYV"
}


def pytest_collection_finish() -> None:
    """Let the garbage collector forget what was imported: it would look at a million objects again and again."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Take that back in the end, since some libraries complain when what they made outlives them.

    What is registered first is called last: after pytest's own collections.
    """
    config.add_cleanup(gc.unfreeze)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real files; tests that need it are skipped where it is not."""
    if not SHARED.is_dir():
        pytest.skip("real structure files are not at hand")
    return SHARED


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONTACTLM_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(autouse=True)
def _own_log() -> None:
    """Take back the handler and the level that commands, also those of wider fixtures, give the package's logger."""
    logger = logging.getLogger("contactlm")
    logger.handlers.clear()
    logger.propagate = True
    logger.setLevel(logging.NOTSET)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """A headless browser, one a module; tests that need it are skipped where none is installed."""
    from tests.browser import open_browser

    with open_browser(tmp_path_factory.mktemp("browser")) as opened:
        yield opened


def random_sequence(seed: int, length: int) -> str:
    letters = [letter for letter in LETTERS if letter in THREE_LETTERS]
    return "".join(np.random.default_rng(seed).choice(letters, length))


def write_pdb(path: Path, sequences: dict[str, str], seed: int = 0) -> Path:
    """Write chains with plausible backbone spacing (a compact random walk of C-alpha atoms)."""
    rng = np.random.default_rng(seed)
    lines, serial = [], 1
    for chain, sequence in sequences.items():
        position = np.zeros(3)
        for number, letter in enumerate(sequence, start=1):
            step = rng.normal(size=3) - 0.05 * position
            position = position + 3.8 * step / np.linalg.norm(step)
            for atom, shift in ((" N  ", (-1.2, 0.7, 0.1)), (" CA ", (0, 0, 0)), (" C  ", (1.1, 0.9, -0.3))):
                x, y, z = position + shift
                lines.append(
                    f"ATOM  {serial:5d} {atom} {THREE_LETTERS[letter]} {chain}{number:4d}    "
                    f"{x:8.3f}{y:8.3f}{z:8.3f}  1.00  0.00           {atom.strip()[0]}"
                )
                serial += 1
        lines.append("TER")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([*lines, "END", ""]))
    return path


@pytest.fixture(scope="session")
def tiny_esm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint directory of a tiny ESM2 with seeded random weights, as ``save_pretrained`` writes it."""
    return make_tiny_esm(tmp_path_factory.mktemp("esm") / "tiny", seed=0)


def make_tiny_esm(path: Path, seed: int) -> Path:
    import torch
    from transformers import EsmConfig, EsmForMaskedLM

    config = EsmConfig(
        vocab_size=33,
        mask_token_id=32,
        pad_token_id=1,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        position_embedding_type="rotary",
        token_dropout=True,
        emb_layer_norm_before=False,
        max_position_embeddings=1026,
        layer_norm_eps=1e-5,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        EsmForMaskedLM(config).save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def pdb_folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(train, test): folders of small PDB files, one of them unreadable."""
    root = tmp_path_factory.mktemp("pdb")
    for i in range(12):
        write_pdb(root / "train" / f"t{i:02d}.pdb", {"A": random_sequence(i, 35 + 3 * i)}, seed=i)
    for i in range(3):
        write_pdb(root / "test" / f"s{i}.pdb", {"A": random_sequence(100 + i, 40 + 9 * i)}, seed=100 + i)
    (root / "train" / "broken.pdb").write_text("<html>not found</html>\n")
    return root / "train", root / "test"


class Finished(NamedTuple):
    """What ``contactlm fit`` left of a short run: the folder it was called in, and what it printed."""

    folder: Path
    printed: str

    @property
    def run(self) -> Path:
        return self.folder / "runs" / "crop200" / "version_0"

    @property
    def best(self) -> Path:
        return next((self.run / "checkpoints").glob("best-*.ckpt"))


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny_esm: Path, pdb_folders: tuple[Path, Path]) -> Finished:
    """A run of five batches by the command line, scored on the test set. To be read, not written."""
    from contactlm.cli.main import main

    folder, printed = tmp_path_factory.mktemp("finished"), io.StringIO()
    data = {"train_dir": pdb_folders[0], "test_dir": pdb_folders[1], "read_workers": 0, "min_length": 10}
    options = [f"--data.{name}={value}" for name, value in {**data, "crop_length": 30, "batch_size": 4}.items()]
    options += [f"--model.pretrained={tiny_esm}", "--trainer.accelerator=cpu", "--trainer.val_check_interval=2"]
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.chdir(folder)
        patch.setattr("sys.argv", ["contactlm"])
        patch.setenv("CONTACTLM_CACHE", str(folder / "cache"))
        assert main(["fit", "--config=crop200", *options, "--budget.max_tokens=600"]) == 0
    return Finished(folder, printed.getvalue())


def sharpened(module: ContactModule) -> ContactModule:
    """A model whose attention is far from uniform, so that positions matter; in evaluation mode."""
    import torch

    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if "query" in name or "key" in name:
                parameter.mul_(8)
        module.head_parameters()[0].mul_(20)
    return module.eval()
