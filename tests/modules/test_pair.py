"""A pair head in a module: trained, resumed, exported, its maps in windows, its files."""

from __future__ import annotations

import csv
import random
from pathlib import Path
from types import SimpleNamespace

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from contactlm import ContactDataModule, ContactMap, ContactModule, predict_contacts
from contactlm.callbacks import ContactEvaluation, TokenBudget
from contactlm.cli.main import main
from contactlm.maps.page import page_data
from contactlm.maps.windows import WindowOptions, context_weights, plan_passes
from contactlm.model.pair_head import PairOptions
from contactlm.modules.export import export_adapter, export_merged
from contactlm.modules.memory import pass_cost, step_cost, twin
from contactlm.structure.distances import BINS, NEAR_BINS, bin_centres
from contactlm.types import ModelError
from tests.conftest import random_sequence
from tests.maps.made import full_map

PAIR = PairOptions(read_outs=3, blocks=2, channels=4)


def module(tiny_esm: Path | None, **options: object) -> ContactModule:
    """A module whose trained weights are all random, in evaluation mode."""
    made = ContactModule(None if tiny_esm is None else str(tiny_esm), **{"pair": PAIR, **options})
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.requires_grad:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return made.eval()


@pytest.mark.parametrize("border", [1, 3])
def test_every_pair_counts_in_some_window_and_passes_fit(border: int) -> None:
    draw = random.Random(border)
    for _ in range(20):
        window = draw.randint(4 * border + 2, 60)
        options = WindowOptions(window, draw.choice([None, draw.randrange(window)]), border=border)
        length = draw.randint(1, 200)
        total = torch.zeros(length, length)
        for piece in plan_passes(length, options):
            assert piece.residues <= window and piece.segments[0][0] >= 0 and piece.segments[-1][1] <= length
            rows, columns = piece.block
            of_rows, of_columns = (context_weights(side, piece, length) for side in piece.block)
            total[slice(*rows), slice(*columns)] += of_rows[:, None] * of_columns
        assert bool((total.triu() + total.triu(1).T > 0).all()), (options, length)


def local(reach: int):
    """A network whose pairs depend on the residues within reach alone."""

    def logits(tokens, mask, positions):
        kinds = torch.nn.functional.pad(tokens[:, 1:-1].double() * (mask & (tokens != 2))[:, 1:-1], (reach, reach))
        seen = kinds.unfold(1, 2 * reach + 1, 1).sin().sum(-1)
        return (seen[:, :, None] * seen[:, None]).float() / 10

    return logits


def test_what_a_cut_changes_counts_nowhere() -> None:
    """A model that sees three residues to each side gives the whole map exactly, put together from windows."""
    tokens = torch.randint(4, 24, (150,), generator=torch.Generator().manual_seed(0))
    whole = full_map(local(3), tokens, WindowOptions(None))
    parts = full_map(local(3), tokens, WindowOptions(50, border=3))
    torch.testing.assert_close(parts.probability, whole.probability, rtol=0, atol=1e-6)
    assert parts.how["border"] == 3 and parts.how["passes"]["two_segments"] > 0
    without = full_map(local(3), tokens, WindowOptions(50))
    assert (without.probability - whole.probability).abs().max() > 1e-3


def test_a_map_in_one_window_is_that_of_the_logits_and_windows_give_distances(tiny_esm: Path) -> None:
    made, sequence = module(tiny_esm), random_sequence(1, 90)
    found = made.predict_map(sequence)
    from contactlm.alphabet import encode

    tokens = torch.tensor([[0, *encode(sequence).tolist(), 2]])
    with torch.no_grad():
        expected = made.contact_logits(tokens)[0].sigmoid().numpy()
    np.testing.assert_allclose(found.probability, expected, rtol=0, atol=1e-7)
    in_windows = made.predict_map(sequence, window=40)
    for each in (found, in_windows):
        assert each.distance.dtype == np.float32 and np.array_equal(each.distance, each.distance.T)
        off = each.distance[~np.eye(90, dtype=bool)]
        assert off.min() > 2 and off.max() < 25.5 and (np.diag(each.distance) == 0).all()
    assert in_windows.how["border"] == PAIR.reach
    with pytest.raises(ModelError, match="at least 14"):
        made.predict_map(sequence, window=10)
    batch = predict_contacts([sequence, sequence[:50]], made)
    np.testing.assert_allclose(batch[0].distance, found.distance, atol=1e-3)


def test_files_keep_distances(tiny_esm: Path, tmp_path: Path) -> None:
    made = module(tiny_esm).predict_map(random_sequence(2, 40))
    read = ContactMap.load(made.save(tmp_path / "a.npz"))
    assert np.array_equal(read.distance, made.distance)
    lines = made.save(tmp_path / "a.rr").read_text().splitlines()
    pairs = [line.split() for line in lines if line[:1].isdigit()]
    assert pairs and all(len(pair) == 6 for pair in pairs)
    for i, j, _, _, _, distance in pairs[:20]:
        assert float(distance) == pytest.approx(made.distance[int(i) - 1, int(j) - 1], abs=0.006)
    assert page_data([made])["distances"][0]
    plain = ContactModule(str(tiny_esm)).predict_map(random_sequence(2, 40))
    assert plain.distance is None and page_data([plain])["distances"] == [None]
    with pytest.raises(ValueError, match="distance is"):
        ContactMap("x", "MK", np.zeros((2, 2)), distance=np.zeros((3, 3)))


def test_bins_of_distances_by_choice(tiny_esm: Path, tmp_path: Path) -> None:
    """They sum to 1, those below 8 Å to the probability, their mean is the expected distance; windows or not."""
    made, sequence = module(tiny_esm, distance_bins=True), random_sequence(1, 90)
    centres = bin_centres(torch.zeros(1)).numpy()
    for window in (None, 40):
        made.distance_bins = False
        expected = made.predict_map(sequence, window)
        assert expected.distance_bins is None
        made.distance_bins = True
        found = made.predict_map(sequence, window)
        np.testing.assert_allclose(found.probability, expected.probability, atol=1e-6)
        np.testing.assert_allclose(found.distance, expected.distance, atol=1e-4)
        bins = found.distance_bins.astype(np.float32)[~np.eye(90, dtype=bool)]
        assert found.distance_bins.dtype == np.float16 and found.distance_bins.shape == (90, 90, BINS)
        np.testing.assert_allclose(bins.sum(1), 1, atol=0.004)
        off = ~np.eye(90, dtype=bool)
        np.testing.assert_allclose(bins[:, :NEAR_BINS].sum(1), found.probability[off], atol=0.002)
        np.testing.assert_allclose(bins @ centres, found.distance[off], atol=0.05)
    read = ContactMap.load(found.save(tmp_path / "a.npz"))
    assert np.array_equal(read.distance_bins, found.distance_bins)
    made.trainer = SimpleNamespace(evaluating=True)
    assert made.of_a_pass == "distances"  # scores need no bins
    made.trainer = None
    twice = made.predict_map(f"{sequence[:30]}:{sequence[:30]}").distance_bins  # copies are alike
    assert np.array_equal(twice[:30, :30], twice[30:, 30:])


def test_an_export_is_read_back(tiny_esm: Path, tmp_path: Path) -> None:
    made, sequence = module(tiny_esm), random_sequence(3, 45)
    folder = export_adapter(made, tmp_path / "out")
    assert (folder / "pair_head.safetensors").is_file()
    expected = made.predict_map(sequence)
    for found in (ContactModule.from_adapter(folder).predict_map(sequence), predict_contacts(sequence, str(folder))):
        np.testing.assert_allclose(found.probability, expected.probability, atol=1e-6)
        np.testing.assert_allclose(found.distance, expected.distance, atol=1e-4)
    with pytest.raises(ModelError, match="pair head fits into no plain checkpoint"):
        export_merged(made, tmp_path / "merged")


def trainer(folder: Path, *callbacks: L.Callback, **options: object) -> L.Trainer:
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False, "accelerator": "cpu"}
    return L.Trainer(default_root_dir=folder, callbacks=list(callbacks), **quiet, **options)


def test_training_moves_every_part_and_resumes_to_the_bit(tiny_esm: Path, pdb_folders, tmp_path: Path) -> None:
    def data() -> ContactDataModule:
        return ContactDataModule(
            *map(str, pdb_folders), crop="two_segments", crop_length=24, batch_size=2, num_workers=0
        )

    def fresh() -> ContactModule:
        torch.manual_seed(0)  # which adapters begin from
        return ContactModule(str(tiny_esm), pair=PAIR)

    straight = fresh()
    before = {name: weight.detach().clone() for name, weight in straight.named_parameters() if weight.requires_grad}
    trainer(tmp_path / "a", max_steps=4, limit_val_batches=0).fit(straight, data())
    assert all(
        not torch.equal(before[n], w) for n, w in straight.named_parameters() if n in before and "lora_A" not in n
    )
    keep = ModelCheckpoint(tmp_path, "half", every_n_train_steps=2)  # in mid-epoch
    trainer(tmp_path / "b", keep, max_steps=2, limit_val_batches=0).fit(fresh(), data())
    rest = fresh()
    trainer(tmp_path / "c", max_steps=4, limit_val_batches=0).fit(rest, data(), ckpt_path=tmp_path / "half.ckpt")
    for ours, theirs in zip(straight.parameters(), rest.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    read = ContactModule.load_from_checkpoint(tmp_path / "half.ckpt")
    assert read.pair is not None and read.pair.options == PAIR
    with pytest.raises(ModelError, match="do not fit"):
        ContactModule.load_from_checkpoint(tmp_path / "half.ckpt", pair=None)


def test_scores_of_distances_are_logged(tiny_esm: Path, pdb_folders, tmp_path: Path) -> None:
    evaluation = ContactEvaluation(write_rows=False)
    run = trainer(tmp_path, evaluation, TokenBudget(10_000))
    (scores,) = run.test(module(tiny_esm), ContactDataModule(*map(str, pdb_folders), num_workers=0), verbose=False)
    for name in ("distance_mae", "distance_lddt"):
        assert scores[f"test/{name}"] >= 0 and f"test/trivial_{name}" in scores
        mean = np.mean([row[name] for row in evaluation.rows])
        assert scores[f"test/{name}"] == pytest.approx(mean, abs=1e-5)


@pytest.mark.slow
def test_costs_are_told_without_numbers(tiny_esm: Path) -> None:
    made = module(tiny_esm).train()
    batch = {"tokens": torch.zeros(2, 42, dtype=torch.int64), "attention_mask": torch.ones(2, 42, dtype=torch.bool)}
    batch["cb"] = torch.zeros(2, 40, 3)
    cost, plain = (step_cost(twin(each), batch) for each in (made, ContactModule(str(tiny_esm)).train()))
    assert cost.flops > plain.flops and cost.activations > plain.activations
    assert pass_cost(twin(made), 4096, 42) > pass_cost(twin(ContactModule(str(tiny_esm))), 4096, 42)
    assert not made.flops_follow_length


@pytest.mark.slow
def test_the_arm_lies_over_another(tiny_esm: Path, pdb_folders, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    train, test = pdb_folders
    command = [
        "fit",
        "--config",
        "whole1",
        "--config",
        "pair",
        f"--model.pretrained={tiny_esm}",
        "--model.pair.blocks=2",
    ]
    command += [f"--data.train_dir={train}", f"--data.test_dir={test}", "--budget.max_tokens=500"]
    assert main([*command, "--trainer.accelerator=cpu", "--data.num_workers=0"]) == 0
    run = tmp_path / "runs" / "pair" / "version_0"
    with (run / "test_scores.csv").open() as handle:
        assert "distance_lddt" in next(csv.reader(handle))
    checkpoint = next((run / "checkpoints").glob("*.ckpt"))
    (tmp_path / "a.fasta").write_text(f">a\n{random_sequence(0, 40)}\n")
    predict = ["predict", "--ckpt_path", str(checkpoint), "--data.predict_paths", "a.fasta", "--out", "maps"]
    assert main([*predict, "--trainer.accelerator=cpu", "--formats=[npz]", "--model.distance_bins=true"]) == 0
    read = ContactMap.load(tmp_path / "maps" / "a.npz")
    assert read.distance is not None and read.distance_bins is not None
