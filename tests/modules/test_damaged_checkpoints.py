"""Checkpoints that are cut, or whose values are none that were written, are named as such."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from contactlm import predict_contacts
from contactlm.modules.checkpoint import CHECKPOINT_KEY
from contactlm.types import ModelError

WHOLE = Path(__file__).parent / "before_the_rooms" / "contact.ckpt"


@pytest.mark.parametrize("kept", [0, 1, 100, 0.3, 0.7, 0.99, -1])
def test_a_cut_checkpoint_is_not_readable(tmp_path: Path, kept: float) -> None:
    data = WHOLE.read_bytes()
    (tmp_path / "a.ckpt").write_bytes(data[: int(kept * len(data)) if 0 < kept < 1 else int(kept)])
    with pytest.raises(ModelError, match=r"ckpt_path: .*a\.ckpt is not a readable checkpoint"):
        predict_contacts("MKTAYIAKQR", tmp_path / "a.ckpt")


def without(name: str) -> Callable[[dict[str, Any]], object]:
    return lambda checkpoint: checkpoint[CHECKPOINT_KEY].pop(name)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda c: c.update({CHECKPOINT_KEY: ["x"]}), "contactlm is a list"),
        (without("tuned_threshold"), "contactlm lacks tuned_threshold"),
        (without("backbone_checksum"), "contactlm lacks backbone_checksum"),
        (lambda c: c[CHECKPOINT_KEY].update(tuned_threshold="x"), "tuned_threshold is 'x'"),
        (lambda c: c[CHECKPOINT_KEY].update(tuned_threshold=float("nan")), "tuned_threshold is nan"),
        (lambda c: c[CHECKPOINT_KEY].update({"class": ["x"]}), "class is a list"),
        (lambda c: c.pop("state_dict"), "state_dict holds something else"),
        (lambda c: c.update(state_dict={"a": [1.0]}), "state_dict holds something else"),
        (lambda c: c.pop("pytorch-lightning_version"), "pytorch-lightning_version"),
        (lambda c: c.update({"pytorch-lightning_version": "x" * 10_000}), "Invalid version"),
        (lambda c: c.update(hyper_parameters=3.5), "is a damaged checkpoint"),
        (lambda c: c["hyper_parameters"].update(lora="x"), "is a damaged checkpoint"),
    ],
)
def test_values_that_are_none_are_named(tmp_path: Path, change: Callable, reason: str) -> None:
    checkpoint = torch.load(WHOLE, weights_only=True)
    change(checkpoint)
    torch.save(checkpoint, tmp_path / "a.ckpt")
    with pytest.raises(ModelError, match=reason) as caught:
        predict_contacts("MKTAYIAKQR", tmp_path / "a.ckpt")
    assert str(caught.value).startswith(f"ckpt_path: {tmp_path / 'a.ckpt'} is a damaged checkpoint (")
    assert len(str(caught.value)) < 700


def test_a_folder_of_parts_is_named_as_such(tmp_path: Path) -> None:
    (tmp_path / "last.ckpt").mkdir()
    (tmp_path / "last.ckpt" / "meta.pt").touch()
    with pytest.raises(ModelError, match=r"last\.ckpt is a checkpoint in parts, .* contactlm export --plain"):
        predict_contacts("MKTAYIAKQR", tmp_path / "last.ckpt")
