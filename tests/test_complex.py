"""Complexes through the model: positions that jump between chains, in one pass and in windows, and end to end."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from contactlm import ContactDataModule, ContactModule
from contactlm.alphabet import encode
from contactlm.cli.main import main
from contactlm.maps.contact_map import ContactMap
from contactlm.maps.full_map import full_maps
from contactlm.maps.windows import WindowOptions
from contactlm.types import CHAIN_JUMP, DataError, ModelError, residue_positions
from tests.conftest import random_sequence, sharpened, write_pdb
from tests.maps.made import full_map

LENGTHS = (18, 7, 20)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(train, test): files of two chains each; one test file has a single chain."""
    root = tmp_path_factory.mktemp("complexes")
    for i in range(8):
        chains = {"A": random_sequence(i, 24 + i), "B": random_sequence(100 + i, 18)}
        write_pdb(root / "train" / f"c{i}.pdb", chains, seed=i)
    write_pdb(root / "test" / "two.pdb", {"A": random_sequence(70, 22), "B": random_sequence(71, 26)}, seed=70)
    write_pdb(root / "test" / "one.pdb", {"A": random_sequence(72, 30)}, seed=72)
    return root / "train", root / "test"


@pytest.fixture(scope="module")
def module(tiny_esm: Path) -> ContactModule:
    """A tiny model whose attention is far from uniform, so that positions matter."""
    return sharpened(ContactModule(str(tiny_esm), lora=None, freeze_backbone=True))


def direct(module: ContactModule, tokens: Tensor, positions: Tensor) -> Tensor:
    """Probabilities of one pass at the given positions of residues."""
    given = torch.cat([torch.tensor([0]), tokens.long(), torch.tensor([2])])[None]
    own = torch.cat([positions[:1] - 1, positions, positions[-1:] + 1])[None]
    with torch.no_grad():
        return module.contact_logits(given, None, own)[0].sigmoid()


def test_the_map_of_a_complex_is_that_of_a_pass_at_its_positions(module: ContactModule) -> None:
    sequence = random_sequence(0, sum(LENGTHS))
    tokens, positions = torch.from_numpy(encode(sequence)), torch.from_numpy(residue_positions(LENGTHS))
    expected = direct(module, tokens, positions)
    got = full_map(module.contact_logits, tokens, positions=positions).probability
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)
    far = full_map(module.contact_logits, tokens, positions=positions + 5000).probability
    assert torch.equal(far, got)  # only differences count
    without = full_map(module.contact_logits, tokens).probability
    assert (without - got).abs().max() > 1e-3
    by_name = module.predict_map(sequence, chain_lengths=LENGTHS)
    np.testing.assert_array_equal(by_name.probability, got.numpy())
    assert by_name.how["chain_lengths"] == list(LENGTHS)
    single = module.predict_map(sequence, chain_lengths=[sum(LENGTHS)]).probability
    np.testing.assert_array_equal(single, without.numpy())


def test_complexes_and_chains_share_batches(module: ContactModule) -> None:
    chains = [torch.from_numpy(encode(random_sequence(k, 45))) for k in range(3)]
    positions = [None, torch.from_numpy(residue_positions(LENGTHS)), None]
    together = full_maps(module.contact_logits, chains, positions=positions)
    for tokens, own, got in zip(chains, positions, together, strict=True):
        alone = full_map(module.contact_logits, tokens, positions=own)
        torch.testing.assert_close(got.probability, alone.probability, rtol=0, atol=1e-5)


@pytest.mark.parametrize("window", [10, 16, 31])
def test_windows_see_the_jump(window: int) -> None:
    """A model that sees distances only: any window that forgot the jump would put a wrong value somewhere."""

    def distances(tokens: Tensor, attention_mask: Tensor, positions: Tensor | None) -> Tensor:
        assert positions is not None and (positions[:, 0] == 0).all()
        inner = positions[:, 1:-1].double()
        return torch.sin(0.37 * (inner[:, :, None] - inner[:, None, :]).abs()).float()

    positions = torch.from_numpy(residue_positions(LENGTHS))
    got = full_map(distances, torch.arange(45) % 20 + 4, WindowOptions(window), positions=positions)
    assert got.how["passes"]["window"] > 1
    apart = (positions[:, None] - positions).abs()
    assert apart[17, 18] == 1 + CHAIN_JUMP
    torch.testing.assert_close(got.probability, torch.sin(0.37 * apart.double()).sigmoid().float(), rtol=0, atol=2e-6)


@pytest.mark.parametrize(
    ("positions", "message"),
    [
        (torch.arange(44), r"chain 0: positions are torch.int64 \(44,\)"),
        (torch.arange(45.0), "positions are torch.float32"),
        (torch.tensor([*range(40), 39, *range(50, 54)]), "position 39 follows 39 at index 40"),
    ],
)
def test_positions_that_do_not_fit_are_refused(module: ContactModule, positions: Tensor, message: str) -> None:
    with pytest.raises(DataError, match=message):
        full_map(module.contact_logits, torch.full((45,), 5), positions=positions)


def test_chains_of_another_length_are_refused(module: ContactModule) -> None:
    with pytest.raises(ModelError, match="45 residues in all, but the sequence has 44"):
        module.predict_map(random_sequence(0, 44), chain_lengths=LENGTHS)


def test_a_training_crop_sees_the_jump(module: ContactModule, folders: tuple[Path, Path]) -> None:
    data = ContactDataModule(str(folders[0]), assembly="complex", crop_length=35, read_workers=0, min_length=10)
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    spans = (batch["chain_of"].diff(dim=1) == 1).any(1)
    assert spans.any()
    with torch.no_grad():
        logits = module.contact_logits(batch["tokens"], batch["attention_mask"], batch["positions"])
    for row in spans.nonzero().flatten().tolist():
        expected = direct(module, batch["tokens"][row, 1:36], batch["positions"][row, 1:36])
        torch.testing.assert_close(logits[row].sigmoid(), expected, rtol=0, atol=1e-5)


def test_maps_of_complexes_are_written_and_scored_by_chain(tmp_path: Path) -> None:
    probability = np.full((8, 8), 0.9, dtype=np.float32)
    labels = np.ones((8, 8), dtype=np.int8)
    np.fill_diagonal(labels, -1)
    labels[0, 7] = labels[7, 0] = 0
    made = ContactMap("x", "MKGAMKGA", probability, labels, 0.5, {"chain_lengths": [4, 4]})
    made.save(tmp_path / "x.rr")
    listed = {tuple(line.split()[:2]) for line in (tmp_path / "x.rr").read_text().splitlines() if " 0 8 " in line}
    assert listed == {(str(i), str(j)) for i in range(1, 5) for j in range(5, 9)}
    assert made.scores()["auprc_sep6"] == pytest.approx(15 / 16)
    again = ContactMap("x", "MKGAMKGA", probability, labels)
    assert again.scores()["auprc_sep6"] == pytest.approx(2 / 3)  # of one chain: three pairs are far enough apart


@pytest.mark.slow
def test_fit_test_and_predict_on_complexes(
    tmp_path: Path, tiny_esm: Path, folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["contactlm"])
    data = [f"--data.train_dir={folders[0]}", f"--data.test_dir={folders[1]}", "--data.assembly=complex"]
    data += ["--data.read_workers=0", "--data.min_length=10", "--trainer.accelerator=cpu"]
    fit = ["fit", *data, "--data.crop_length=30", "--data.batch_size=4", f"--model.pretrained={tiny_esm}"]
    assert main([*fit, "--trainer.fast_dev_run=true"]) == 0
    capsys.readouterr()
    assert main([*fit, "--config=crop200", "--budget.max_tokens=300", "--trainer.val_check_interval=2"]) == 0
    printed = capsys.readouterr().out
    for role in ("dev", "test"):
        names = [line.split()[1] for line in printed.splitlines() if line.startswith(role)]
        assert {"intra_mcc_sep6", "inter_mcc"} <= set(names)
    run = tmp_path / "runs" / "crop200" / "version_0"
    logged = list(csv.DictReader((run / "metrics.csv").open()))
    for name in ("dev/intra_mcc_sep6", "dev/inter_mcc", "dev/inter_auprc", "test/inter_p_at_L"):
        assert any(row.get(name) for row in logged), name
    rows = {row["id"]: row for row in csv.DictReader((run / "test_scores.csv").open())}
    assert set(rows) == {"two", "one_A"}
    assert rows["two"]["inter_mcc"] and rows["two"]["intra_mcc_sep6"] and not rows["one_A"]["inter_mcc"]

    best = next((run / "checkpoints").glob("best-*.ckpt"))
    command = ["predict", f"--ckpt_path={best}", f"--data.predict_paths=[{folders[1]}]", "--out=maps"]
    assert main([*command, "--data.assembly=complex", "--data.read_workers=0", "--trainer.accelerator=cpu"]) == 0
    two = ContactMap.load(tmp_path / "maps" / "two.npz")
    assert (len(two), two.chain_lengths) == (48, [22, 26])
    expected = ContactModule.load_from_checkpoint(best).predict_map(two.sequence, chain_lengths=(22, 26))
    np.testing.assert_allclose(two.probability, expected.probability, atol=1e-5)
