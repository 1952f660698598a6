"""Batches of whole chains by cost: every chain once, in its order, each batch within its bound."""

from pathlib import Path

import lightning as L
import numpy as np
import pytest
from torch import Tensor

from contactlm import ContactDataModule
from contactlm.data.batches import CostBound
from contactlm.data.loaders import DEVICE_PAIRS, PROCESSOR_PAIRS, ShareSampler, bound_for, most_chains, whole_loader
from contactlm.types import DataError
from tests.conftest import random_sequence
from tests.data.test_crop import store_of


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("world", [1, 3])
def test_every_chain_comes_once_within_the_bound(seed: int, world: int) -> None:
    rng = np.random.default_rng(seed)
    lengths = np.sort(rng.integers(5, 60, rng.integers(4, 40)))
    store, bound = store_of(*lengths.tolist()), CostBound("pairs", 5000)
    seen: list[int] = []
    for rank in range(world):
        batches = [batch["indices"].tolist() for batch in whole_loader(store, bound, rank, world)]
        own = [number for batch in batches for number in batch]
        assert own == list(range(rank, len(lengths), world))
        assert batches == list(ShareSampler(store, bound, rank, world))
        seen += own
        for batch, after in zip(batches, [*batches[1:], None], strict=True):
            assert len(batch) * lengths[batch].max() ** 2 <= 5000 or len(batch) == 1
            if after is not None:  # one more would have been too much
                assert (len(batch) + 1) * lengths[after[0]] ** 2 > 5000
    assert sorted(seen) == list(range(len(lengths)))


def test_a_process_without_a_chain_gets_a_batch_of_none() -> None:
    (batch,) = whole_loader(store_of(20), CostBound("pairs", 5000), 1, 2)
    assert batch["ids"] == [] and batch["tokens"].shape == (0, 3)


class Seen(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.batches: list[list[int]] = []

    def predict_step(self, batch: dict, batch_idx: int) -> None:
        self.batches.append(batch["lengths"].tolist())

    def forward(self, x: Tensor) -> Tensor:
        return x


@pytest.mark.parametrize("size", [None, 3])
def test_a_prediction_gets_batches_by_cost_unless_their_number_is_given(tmp_path: Path, size: int | None) -> None:
    lengths = [30] * 7 + [200] * 8 + [400, 600]
    fasta = tmp_path / "a.fasta"
    fasta.write_text("".join(f">p{n}\n{random_sequence(n, length)}\n" for n, length in enumerate(lengths)))
    data = ContactDataModule(
        predict_paths=[str(fasta)], eval_batch_size=size, cache_dir=str(tmp_path), read_workers=0, num_workers=0
    )
    module = Seen()
    trainer = L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    trainer.predict(module, data, return_predictions=False)
    assert [length for batch in module.batches for length in batch] == lengths
    assert [len(batch) for batch in module.batches] == ([3, 3, 3, 3, 3, 2] if size else [7, 6, 2, 1, 1])
    assert size or 6 * 200**2 <= PROCESSOR_PAIRS < 7 * 200**2
    assert most_chains(data.evaluation_size, 200) == (3 if size else PROCESSOR_PAIRS // 200**2)


def test_options_that_make_no_sense() -> None:
    with pytest.raises(DataError, match="eval_batch_size is 0"):
        ContactDataModule(eval_batch_size=0)
    assert bound_for("cuda").most == DEVICE_PAIRS and bound_for("cpu").most == PROCESSOR_PAIRS
