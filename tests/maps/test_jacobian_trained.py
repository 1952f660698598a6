"""On a language model that knows couplings: the Jacobian finds them, also through windows."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers import EsmForMaskedLM

from contactlm.maps import categorical_jacobian
from contactlm.maps.windows import WindowOptions
from contactlm.metrics.scores import precision_at_l, select_pairs, trivial_probability
from contactlm.modules.jacobian import ranks
from tests.benchmarks.agreement import agreement
from tests.maps.covarying import LENGTH, Family, new_model, saved_model

pytestmark = pytest.mark.slow
SEQUENCES = 5
WINDOW = round(0.6 * LENGTH)


@pytest.fixture(scope="module")
def family() -> Family:
    return Family()


@pytest.fixture(scope="module")
def sequences(family: Family) -> Tensor:
    return family.sample(SEQUENCES, torch.Generator().manual_seed(7))


@pytest.fixture(scope="module")
def model() -> EsmForMaskedLM:
    return saved_model()


def maps(model: EsmForMaskedLM, sequences: Tensor, window: int | None = None) -> list[Tensor]:
    def logits(tokens: Tensor, attention_mask: Tensor, positions: Tensor | None) -> Tensor:
        return model(tokens, attention_mask.long(), position_ids=positions).logits

    return [categorical_jacobian(logits, tokens, WindowOptions(window=window)) for tokens in sequences]


def mean_precision(scores: list[Tensor], family: Family) -> tuple[float, float]:
    """The mean over sequences of P@L, and the trivial predictor's P@L."""
    found = [precision_at_l(select_pairs(ranks(own), family.labels)) for own in scores]
    trivial = precision_at_l(select_pairs(trivial_probability(LENGTH), family.labels))
    return sum(found) / len(found), trivial


def test_it_finds_the_pairs_that_covary(model: EsmForMaskedLM, family: Family, sequences: Tensor) -> None:
    found, trivial = mean_precision(maps(model, sequences), family)
    assert found >= 0.8 and trivial < 0.15


def test_a_model_that_learnt_nothing_finds_none(family: Family, sequences: Tensor) -> None:
    found, _ = mean_precision(maps(new_model().eval(), sequences), family)
    assert found < 0.3


def test_windows_of_six_tenths_find_nearly_the_same(model: EsmForMaskedLM, family: Family, sequences: Tensor) -> None:
    """Measured by the shares of their L highest pairs, and by P@L; rank correlation is mostly that of noise."""
    whole, parts = maps(model, sequences), maps(model, sequences, WINDOW)
    shared = [agreement(one, other)["shared_top_L"] for one, other in zip(whole, parts, strict=True)]
    assert sum(shared) / len(shared) >= 0.7
    assert mean_precision(parts, family)[0] >= 0.75 * mean_precision(whole, family)[0]
