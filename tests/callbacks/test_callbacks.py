from pathlib import Path

import lightning as L
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from contactlm import ContactDataModule, ContactModule
from contactlm.callbacks import ContactEvaluation, FlopsMeter, TokenBudget
from contactlm.types import ContactLMError


def trainer(path: Path, *callbacks: L.Callback, **options: object) -> L.Trainer:
    defaults: dict[str, object] = {
        "max_epochs": -1,
        "min_epochs": 0,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "accelerator": "cpu",
        "num_sanity_val_steps": 1,
        "default_root_dir": path,
    }
    return L.Trainer(callbacks=list(callbacks), **(defaults | options))  # type: ignore[arg-type]


def data_module(folders: tuple[Path, Path], **options: object) -> ContactDataModule:
    defaults: dict[str, object] = {"crop_length": 30, "batch_size": 4, "read_workers": 0, "min_length": 10}
    return ContactDataModule(str(folders[0]), str(folders[1]), **(defaults | options))  # type: ignore[arg-type]


class CountBatches(L.Callback):
    def __init__(self) -> None:
        self.tokens: list[int] = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        self.tokens.append(batch["tokens"].numel())


@pytest.mark.parametrize("max_tokens", [1, 128, 129, 500])
def test_budget_is_exact_to_the_batch(tmp_path: Path, pdb_folders, tiny_esm: Path, max_tokens: int) -> None:
    budget, seen = TokenBudget(max_tokens), CountBatches()
    trainer(tmp_path, budget, seen).fit(ContactModule(str(tiny_esm)), data_module(pdb_folders))
    assert set(seen.tokens) == {4 * 32}
    assert len(seen.tokens) == -(-max_tokens // 128)  # no batch starts once the budget is spent
    assert budget.tokens == sum(seen.tokens)
    assert budget.residues == len(seen.tokens) * 4 * 30


def test_a_spent_budget_stays_spent_and_a_larger_one_goes_on(tmp_path: Path, pdb_folders, tiny_esm: Path) -> None:
    first = trainer(tmp_path, TokenBudget(300))
    first.fit(ContactModule(str(tiny_esm)), data_module(pdb_folders))
    first.save_checkpoint(tmp_path / "a.ckpt")
    for max_tokens, batches in ((300, 0), (600, 2)):
        budget, seen = TokenBudget(max_tokens), CountBatches()
        again = trainer(tmp_path, budget, seen)
        again.fit(ContactModule(str(tiny_esm)), data_module(pdb_folders), ckpt_path=tmp_path / "a.ckpt")
        assert len(seen.tokens) == batches
        assert budget.tokens == 128 * (3 + batches)


def test_the_learning_rate_finder_does_not_count(tmp_path: Path, pdb_folders, tiny_esm: Path) -> None:
    from lightning.pytorch.tuner import Tuner

    budget = TokenBudget(10_000)
    runner = trainer(tmp_path, budget, max_epochs=5)
    module = ContactModule(str(tiny_esm))
    module.lr = 1e-4  # type: ignore[assignment]
    Tuner(runner).lr_find(module, data_module(pdb_folders), num_training=5, update_attr=False)
    assert budget.tokens == 0


def test_a_budget_that_is_not_positive_is_refused() -> None:
    with pytest.raises(ContactLMError, match="max_tokens is 0"):
        TokenBudget(0)
    with pytest.raises(ContactLMError, match="look_every is 5; it must be above 0 and at most 1"):
        TokenBudget(100, look_every=5)


class Looks(L.Callback):
    """Notes after which batches the dev set was looked at."""

    def __init__(self) -> None:
        self.after: list[int] = []

    def on_validation_end(self, trainer, pl_module) -> None:
        if not trainer.sanity_checking:
            self.after.append(trainer.fit_loop.total_batch_idx + 1)


@pytest.mark.parametrize(
    ("budget", "options", "looks"),
    [
        # Ten batches of 128 tokens, three an epoch.
        ({"look_every": 0.25}, {}, [3, 5, 8, 10]),
        ({"look_every": 0.25}, {"accumulate_grad_batches": 3}, [3, 6, 9, 10]),  # and with the step at a budget's end
        ({"look_every": 1.0}, {}, [10]),
        ({}, {}, list(range(1, 11))),
        ({"look_every": 0.5}, {"max_steps": 6}, [3, 6]),  # what ends first counts
        ({"look_every": 0.5}, {"max_epochs": 2}, [3, 6]),
        (
            {"look_every": 0.5},
            {"val_check_interval": 4, "check_val_every_n_epoch": None},
            [4, 8, 10],
        ),  # its user's choice
        ({"look_every": 0.5}, {"check_val_every_n_epoch": 2}, [6, 10]),
        ({"look_every": None}, {}, [3, 6, 9, 10]),
        ({"look_every": 0.5, "max_tokens": None}, {"max_epochs": 2}, [3, 6]),
        ({"look_every": 0.5}, {"fast_dev_run": 2}, [2]),
    ],
)
def test_looks_at_dev_are_spaced_by_share_of_the_run(tmp_path: Path, budget, options, looks: list[int]) -> None:
    loader = DataLoader(torch.ones(96, 4), batch_size=32)
    seen = Looks()
    counted = TokenBudget(**({"max_tokens": 1280, "count": lambda batch: (batch.numel(), 0)} | budget))
    trainer(tmp_path, counted, seen, **options).fit(ForeignModule(), loader, DataLoader(torch.ones(2, 4)))
    assert seen.after == looks


def closed_form_flops(B: int, T: int, module: ContactModule, r: int) -> int:
    """FLOPs of one training step with LoRA of rank r on query and key, the backbone frozen, the head trained.

    A product of (m, k) and (k, n) costs 2 m k n. The last layer needs queries and keys only. The first layer's input
    needs no gradient. Streamed attention computes its scores again in the backward pass.
    """
    config = module.backbone.esm.config
    d, ff, H, layers = (
        config.hidden_size,
        config.intermediate_size,
        config.num_attention_heads,
        config.num_hidden_layers,
    )
    N, pairs, inner, residue_pairs = B * T, B * T * T, layers - 1, B * (T - 2) ** 2
    dense, low_rank, maps = 2 * N * d * d, 2 * N * d * r, 2 * pairs * d
    query_and_key = layers * 2 * (dense + 2 * low_rank)
    value_output_feed_forward = inner * (2 * dense + 2 * 2 * N * d * ff)
    # scores, context; the heads' weighted sum of maps, and their column sums
    attention = layers * maps + inner * maps + layers * 2 * (2 * pairs * H)
    average_product = 2 * residue_pairs * layers * H
    forward = query_and_key + value_output_feed_forward + attention + average_product

    low_rank_backward = layers * 2 * 3 * low_rank + inner * 2 * low_rank  # dB, dA and the inputs' gradients
    dense_backward = inner * 2 * dense  # queries and keys
    dense_backward += (inner - 1) * dense + inner * (dense + 2 * 2 * N * d * ff)  # value, output, feed-forward
    attention_backward = layers * maps  # scores again
    attention_backward += (inner - 1) * maps  # dV
    attention_backward += layers * 2 * pairs * H  # the head's weights
    attention_backward += inner * (maps + 2 * 2 * pairs * H) + 2 * 2 * pairs * H  # dP: context and margins
    attention_backward += layers * 2 * maps  # dQ, dK
    return forward + low_rank_backward + dense_backward + attention_backward + 2 * average_product


@pytest.mark.parametrize(("B", "T"), [(1, 17), (4, 32), (3, 60)])
def test_flops_of_a_training_step_equal_a_closed_formula(tiny_esm: Path, B: int, T: int) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    module = ContactModule(str(tiny_esm))
    tokens = torch.randint(4, 24, (B, T))
    tokens[:, 0], tokens[:, -1] = 0, 2
    with FlopCounterMode(display=False) as counter:
        module.contact_logits(tokens).sum().backward()
    assert counter.get_total_flops() == closed_form_flops(B, T, module, r=8)


def test_flops_meter_counts_a_shape_once_and_adds_it_every_time(tmp_path: Path, pdb_folders, tiny_esm: Path) -> None:
    meter, budget = FlopsMeter(), TokenBudget(5 * 128)
    module = ContactModule(str(tiny_esm))
    trainer(tmp_path, meter, budget).fit(module, data_module(pdb_folders))
    assert list(meter.by_shape.values()) == [closed_form_flops(4, 32, module, r=8)]
    assert meter.total == 5 * closed_form_flops(4, 32, module, r=8)
    again = FlopsMeter()
    again.load_state_dict(meter.state_dict())
    assert (again.total, again.by_shape) == (meter.total, meter.by_shape)


def test_evaluation_scores_every_protein_once_from_full_maps(tmp_path: Path, pdb_folders, tiny_esm: Path) -> None:
    from contactlm.metrics.scores import score_protein
    from contactlm.structure.contacts import contact_labels

    module, data, evaluation = ContactModule(str(tiny_esm), window=25), data_module(pdb_folders), ContactEvaluation()
    (logged,) = trainer(tmp_path, evaluation).test(module, data, verbose=False)
    store = data.chains["test"]
    assert sorted(row["id"] for row in evaluation.rows) == sorted(store.ids)
    expected = []
    for i in range(len(store)):
        predicted = module.predict_map(store.sequence_of(i), window=25)
        labels = contact_labels(torch.tensor(store.cb_of(i))[None])[0]
        expected.append(score_protein(torch.tensor(predicted.probability), labels))
    for name in ("mcc", "mcc_sep6", "auprc_sep6"):
        mean = sum(scores[name] for scores in expected) / len(expected)
        assert logged[f"test/{name}"] == pytest.approx(mean, abs=1e-5)


class ForeignModule(L.LightningModule):
    """A module that knows nothing of this package but what its callbacks read."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 1)

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return self.layer(batch).mean()

    def validation_step(self, batch: Tensor, batch_idx: int) -> dict[str, object]:
        labels = torch.zeros(30, 30, dtype=torch.int8)
        labels[2, 20] = labels[20, 2] = 1
        return {"ids": [f"p{batch_idx}"], "probability": [labels.float()], "labels": [labels]}

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_callbacks_work_in_a_foreign_project(tmp_path: Path) -> None:
    loader = DataLoader(torch.ones(6, 4), batch_size=2)
    budget, meter = TokenBudget(40, count=lambda batch: (batch.numel(), 0)), FlopsMeter()
    runner = trainer(tmp_path, budget, meter, ContactEvaluation())
    runner.fit(ForeignModule(), loader, loader)
    assert budget.tokens == 40
    assert meter.total == 5 * (2 * 2 * 4 + 2 * 2 * 4)  # forward, and the weight's gradient
    assert float(runner.callback_metrics["dev/mcc_sep6"]) == 1.0


def test_scores_are_logged_by_identity_to_the_training_set(tmp_path: Path, pdb_folders, tiny_esm: Path) -> None:
    import numpy as np

    module, data, evaluation = ContactModule(str(tiny_esm)), data_module(pdb_folders), ContactEvaluation()
    data.identity["test"] = np.array([0.0, 0.42, 0.9], dtype=np.float32)  # in the order of the test chains
    (logged,) = trainer(tmp_path, evaluation).test(module, data, verbose=False)
    rows = {row["id"]: row for row in evaluation.rows}
    for name, stratum in zip(data.chains["test"].ids, ("id<30", "id30-50", "id>=50"), strict=True):
        assert logged[f"test/proteins@{stratum}"] == 1
        assert logged[f"test/auprc_sep6@{stratum}"] == pytest.approx(rows[name]["auprc_sep6"], abs=1e-6)
