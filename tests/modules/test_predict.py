"""predict_contacts: one sequence, a list, an iterator; on which device, and in which batches."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from contactlm import ContactModule, predict_contacts
from contactlm.modules import predict
from tests.conftest import random_sequence, sharpened

SEQUENCES = [random_sequence(n, length) for n, length in enumerate([20, 70, 21, 33, 70, 5])]


@pytest.fixture
def model(tiny_esm: Path) -> ContactModule:
    return sharpened(ContactModule(str(tiny_esm), window=40))


def test_a_list_is_what_its_sequences_are_one_by_one(model: ContactModule) -> None:
    model.train()
    maps = predict_contacts(SEQUENCES, model)
    assert model.training and [one.id for one in maps] == [f"query_{n}" for n in range(1, 7)]
    for sequence, one in zip(SEQUENCES, maps, strict=True):
        alone = model.predict_map(sequence)
        assert one.sequence == sequence and one.how == alone.how and one.how["window"] == 40
        np.testing.assert_allclose(one.probability, alone.probability, atol=1e-6)
    assert predict_contacts([], model) == []
    assert predict_contacts(SEQUENCES[1], model, window=None).how["passes"]["whole"] == 1


def test_sequences_of_like_length_share_a_pass(model: ContactModule, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes, original = list[torch.Size](), model.contact_logits
    monkeypatch.setattr(
        model, "contact_logits", lambda tokens, *more: (shapes.append(tokens.shape), original(tokens, *more))[1]
    )
    predict_contacts([random_sequence(n, 30) for n in range(50)], model)
    assert shapes == [(50, 32)]


def test_an_iterator_is_taken_as_it_goes(model: ContactModule, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predict, "HELD_PAIRS", 4 * 30**2)
    taken: list[int] = []

    def endless() -> Iterator[str]:
        n = 0
        while True:
            taken.append(n)
            yield random_sequence(n, 30)
            n += 1

    maps = predict_contacts(endless(), model)
    assert taken == []
    for n in range(9):
        one = next(maps)
        assert (one.id, one.sequence) == (f"query_{n + 1}", random_sequence(n, 30))
        assert len(taken) == 4 * (n // 4 + 1)
        assert not model.training


def test_a_gpu_is_used_where_there_is_one(model: ContactModule, monkeypatch: pytest.MonkeyPatch) -> None:
    moved: list[str] = []

    def to(self: ContactModule, device: Any) -> ContactModule:
        moved.append(str(device))
        self._device = torch.device(device)  # Lightning's note of it
        return self

    monkeypatch.setattr(ContactModule, "to", to)
    monkeypatch.setattr("torch.accelerator.is_available", lambda: True)
    monkeypatch.setattr("torch.accelerator.current_accelerator", lambda: torch.device("meta"))
    monkeypatch.setattr(model, "chain_maps", lambda *_: iter([]))
    with pytest.raises(ValueError, match="zip"):  # no map came
        predict_contacts(SEQUENCES[:1], model)
    assert moved == ["meta", "cpu"]  # there, and back
    monkeypatch.undo()
    assert predict._device_of(model, "auto").type == "cpu" and predict._device_of(model, "cuda:1").index == 1


def test_a_bad_letter_is_named_with_its_sequence(model: ContactModule) -> None:
    with pytest.raises(ValueError, match=r"query_2: .*position 2"):
        predict_contacts(["MKV", "M*K"], model)
