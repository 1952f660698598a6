"""An error for want of memory ends a command with one message that names the batch and what lowers it."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils.data import DataLoader

from contactlm import ContactModule
from contactlm.callbacks.memory import MemoryAdvice, is_out_of_memory, memory_advice
from contactlm.cli.main import main
from contactlm.model.loading import architecture_of
from contactlm.modules.memory import resized, size_text, step_cost
from tests.callbacks.test_callbacks import ForeignModule, data_module, trainer
from tests.conftest import random_sequence
from tests.modules.test_memory import made_batch


def ask_for_too_much() -> Any:
    return torch.empty(2**60)


def real_errors() -> list[BaseException]:
    errors: list[BaseException] = [torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")]
    errors += [MemoryError(), RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate(handle)")]
    with pytest.raises(RuntimeError) as error:
        ask_for_too_much()
    return [*errors, error.value]


def test_errors_for_want_of_memory_are_told_from_others() -> None:
    for error in real_errors():
        assert is_out_of_memory(error), error
        advice = memory_advice(error)
        assert advice is not None and "data.batch_size" in advice
    for other in (RuntimeError("shapes do not match"), ValueError("out of memory"), KeyboardInterrupt()):
        assert not is_out_of_memory(other) and memory_advice(other) is None


@pytest.fixture
def arguments(
    tmp_path: Path, tiny_esm: Path, pdb_folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> list[str]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["contactlm"])
    dirs = [f"--data.train_dir={pdb_folders[0]}", f"--data.test_dir={pdb_folders[1]}"]
    more = ["--data.min_length=10", "--data.read_workers=0", "--data.crop_length=30", "--data.batch_size=4"]
    return [*dirs, *more, f"--model.pretrained={tiny_esm}", "--trainer.accelerator=cpu"]


def message_of(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> str:
    assert main(arguments) == 1
    error = capsys.readouterr().err
    assert "Traceback" not in error
    return error.splitlines()[-1]


OPTIONS = ("data.batch_size", "data.crop_length", "accumulate_grad_batches", "activation_checkpointing", "bf16-mixed")


@pytest.mark.parametrize("kind", ["cpu", "cuda", "backward"])
def test_training(
    kind: str, arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    intact = ContactModule.loss

    def starved(self: ContactModule, logits: Tensor, labels: Tensor) -> Tensor:
        loss = intact(self, logits, labels)
        if kind == "backward":
            logits.register_hook(lambda _: ask_for_too_much())
            return loss
        if kind == "cuda":
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
        return ask_for_too_much()

    monkeypatch.setattr(ContactModule, "loss", starved)
    message = message_of(capsys, ["fit", *arguments])
    assert message.startswith("contactlm: error: out of memory while training on a batch of B x T = 4 x 32 tokens")
    assert all(option in message for option in OPTIONS)
    assert "Tried to allocate 20.00 GiB" in message if kind == "cuda" else "4611686018427387904 bytes" in message


@pytest.mark.slow
def test_the_message_says_what_would_fit(
    tmp_path: Path, tiny_esm: Path, pdb_folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Starved(ContactModule):
        def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
            if torch.is_grad_enabled() and not isinstance(logits, FakeTensor):
                raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
            return super().loss(logits, labels)

    def note(memory: float | None) -> str:
        monkeypatch.setattr("contactlm.modules.memory.memory_for", lambda _: memory)
        module = Starved(str(tiny_esm))
        with pytest.raises(torch.cuda.OutOfMemoryError) as error:
            trainer(tmp_path, MemoryAdvice()).fit(module, data_module(pdb_folders))
        assert next(module.parameters()).device.type == "cpu"  # the module itself is as it was
        return getattr(error.value, "__notes__", [""])[0]

    batch, sizes = made_batch(4, 32), architecture_of(str(tiny_esm))
    costs = {
        way: [
            step_cost(partial(ContactModule, None, sizes, **options), resized(batch, rows)).total for rows in (2, 3, 4)
        ]
        for way, options in (("", {}), ("checkpointed", {"activation_checkpointing": True}))
    }
    two_fit = note((costs[""][0] + costs[""][1]) / 2)
    assert f"the step takes {size_text(costs[''][2])} (weights " in two_fit and "activations" in two_fit
    assert "what would fit: data.batch_size 2, or " in two_fit and "data.crop_length" in two_fit
    assert "with model.activation_checkpointing true" in two_fit
    assert (costs["checkpointed"][2] < costs[""][1]) == ("the batch as it is with model.act" in two_fit)
    assert "no batch of this model" in note(1000) and "what would fit" not in note(None)
    assert "other memory use is not included" in note(1e15)


def test_scoring_and_predicting(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ContactModule, "contact_logits", lambda *_: ask_for_too_much())
    message = message_of(capsys, ["test", *arguments])
    assert message.startswith("contactlm: error: out of memory while scoring a batch of B x T = ")
    assert "model.window" in message and "data.eval_batch_size" in message and "crop_length" not in message
    Path("a.fasta").write_text(f">one\n{random_sequence(0, 40)}\n")
    message = message_of(capsys, ["predict", *arguments, "--data.predict_paths=[a.fasta]"])
    assert message.startswith("contactlm: error: out of memory while predicting a batch of B x T = 1 x 42 tokens")
    assert "model.window" in message


def test_before_any_batch(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("contactlm.modules.language_model.load_esm", lambda *_, **__: ask_for_too_much())
    assert message_of(capsys, ["fit", *arguments]).startswith("contactlm: error: out of memory (")


def test_other_errors_keep_their_traceback(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("a defect")

    monkeypatch.setattr(ContactModule, "loss", broken)
    with pytest.raises(RuntimeError, match="a defect"):
        main(["fit", *arguments])


def test_libraries_get_the_error_itself_with_a_note(
    tmp_path: Path, tiny_esm: Path, pdb_folders: tuple[Path, Path]
) -> None:
    class Starved(ContactModule):
        def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
            return ask_for_too_much()

    with pytest.raises(RuntimeError, match="can't allocate memory") as error:
        trainer(tmp_path, MemoryAdvice(), precision="bf16-mixed").fit(Starved(str(tiny_esm)), data_module(pdb_folders))
    (note,) = getattr(error.value, "__notes__", [])
    assert "4 x 32 tokens" in note and "precision bf16-mixed" in note


def test_a_foreign_batch_is_told_by_its_shapes(tmp_path: Path) -> None:
    class Starved(ForeignModule):
        def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
            return ask_for_too_much()

    with pytest.raises(RuntimeError, match="can't allocate memory") as error:
        trainer(tmp_path, MemoryAdvice()).fit(Starved(), DataLoader([torch.ones(4)] * 6, batch_size=2))  # type: ignore[arg-type]
    assert "a batch of tensors (2, 4)" in getattr(error.value, "__notes__", [""])[0]
