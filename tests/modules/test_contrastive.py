"""ContrastiveModule: embeddings, maps, what is trained, and the journeys of the command line."""

import inspect
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import contactlm
from contactlm import ContactModule, ContrastiveModule, predict_contacts
from contactlm.callbacks import ContactEvaluation, FlopsMeter, TokenBudget
from contactlm.callbacks.flops import flop_counter
from contactlm.cli.main import main
from contactlm.data.synthetic import SyntheticOptions
from contactlm.maps.contact_map import ContactMap
from contactlm.modules.export import export_adapter, export_merged
from contactlm.types import ModelError
from tests.callbacks.test_callbacks import data_module, trainer
from tests.conftest import random_sequence
from tests.model.made import make_tokens
from tests.modules.test_contact import tokens_of, trainable
from tests.runs.test_resume import Record, run

ARCHITECTURE = {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64}


def stock_similarities(module: ContrastiveModule, directory: Path, tokens: torch.Tensor) -> torch.Tensor:
    """Cosine similarities (B, L, L) of projected states of transformers' own trunk."""
    from transformers import EsmModel

    esm = EsmModel.from_pretrained(directory, attn_implementation="eager", add_pooling_layer=False).eval()
    with torch.no_grad():
        states = esm(tokens, attention_mask=(tokens != 1).long()).last_hidden_state[:, 1:-1]
        embedded = module.projection(states)
        return torch.nn.functional.cosine_similarity(embedded[:, :, None], embedded[:, None], dim=-1)


def test_similarities_are_those_of_the_stock_trunks_final_states(tiny_esm: Path) -> None:
    module = ContrastiveModule(str(tiny_esm)).eval()
    tokens = make_tokens([40, 23, 31])
    stock = stock_similarities(module, tiny_esm, tokens)
    with torch.no_grad():
        cosine = module.cosine(tokens)
    for own, expected, n in zip(cosine, stock, (40, 23, 31), strict=True):
        torch.testing.assert_close(own[:n, :n], expected[:n, :n], atol=2e-6, rtol=0)
        assert not own[n:].any() and not own[:, n:].any()
    assert float(stock[0].std()) > 0.05  # there is something to agree on


def test_a_map_is_the_rescaled_similarity(tiny_esm: Path) -> None:
    module, sequence = ContrastiveModule(str(tiny_esm)), random_sequence(0, 50)
    predicted = module.predict_map(sequence)
    assert module.training and predicted.probability.dtype == np.float32
    with torch.no_grad():
        expected = (1 + module.eval().cosine(tokens_of(sequence))[0].numpy()) / 2
    np.testing.assert_allclose(predicted.probability, expected, atol=1e-6, rtol=0)
    assert np.array_equal(predicted.probability, predicted.probability.T)
    windowed = module.predict_map(sequence, window=30)
    assert windowed.how["passes"] != predicted.how["passes"]
    assert ((windowed.probability >= 0) & (windowed.probability <= 1)).all()


def test_padding_and_a_constant_offset_change_nothing_and_a_jump_does(tiny_esm: Path) -> None:
    module = ContrastiveModule(str(tiny_esm)).double().eval()
    tokens = make_tokens([30, 18])
    positions = torch.arange(32).expand(2, 32)
    with torch.no_grad():
        start = module.contact_logits(tokens)
        alone = module.contact_logits(tokens[1:, :20])
        offset = module.contact_logits(tokens, positions=positions + 500)
        jump = module.contact_logits(tokens, positions=positions + 40 * (positions > 12))
    torch.testing.assert_close(start[1:, :18, :18], alone, atol=1e-9, rtol=0)
    # angles are computed in float32
    torch.testing.assert_close(offset, start, atol=1e-3, rtol=0)
    assert float((jump - start).abs().max()) > 1e-2


def test_what_is_trained_is_what_was_asked_for(tiny_esm: Path) -> None:
    projection = {"projection.weight", "projection.bias"}
    lora = trainable(ContrastiveModule(str(tiny_esm)))
    assert lora > projection and all("lora_" in name for name in lora - projection)
    assert {name.split(".self.")[1].split(".lora")[0] for name in lora - projection} == {"query", "key"}
    assert trainable(ContrastiveModule(str(tiny_esm), lora=None, freeze_backbone=True)) == projection
    module = ContrastiveModule(str(tiny_esm), lora=None)
    rest = {name for name, _ in module.named_parameters()} - trainable(module)
    assert rest == {"backbone.esm.contact_head.regression.weight", "backbone.esm.contact_head.regression.bias"}


@pytest.mark.parametrize("options", [{}, {"lora": None}, {"lora": {"r": 2, "target_modules": ["value", "dense"]}}])
def test_every_trainable_weight_gets_a_gradient(tiny_esm: Path, options: dict[str, Any]) -> None:
    module = ContrastiveModule(str(tiny_esm), **options)
    cosine = module.cosine(make_tokens([30, 24]))
    labels = torch.randint(0, 2, cosine.shape, dtype=torch.int8)
    module.loss(cosine, labels).backward()
    assert trainable(module) == {name for name, p in module.named_parameters() if p.grad is not None}
    held = {id(p) for group in module.configure_optimizers().param_groups for p in group["params"]}  # type: ignore[union-attr]
    assert held == {id(p) for p in module.parameters() if p.grad is not None}


def gradients(module: ContrastiveModule, tokens: torch.Tensor) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    scores = module.pair_scores(tokens, None, None)
    module.zero_grad()
    scores.square().sum().backward()
    return {name: p.grad for name, p in module.named_parameters() if p.grad is not None}


def test_activation_checkpointing_changes_no_gradient(tiny_esm: Path) -> None:
    tokens = make_tokens([30, 12])
    plain, again = (
        ContrastiveModule(str(tiny_esm), lora=None, activation_checkpointing=on).double() for on in (False, True)
    )
    runs: list[int] = []
    esm: Any = again.backbone.esm
    esm.encoder.layer[0].attention.self.query.register_forward_hook(lambda *_: runs.append(1))
    expected, found = gradients(plain, tokens), gradients(again, tokens)
    assert set(expected) == set(found) and len(runs) == 2
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-12, rtol=1e-9)


def test_bfloat16_is_finite_and_close(tiny_esm: Path) -> None:
    module, tokens = ContrastiveModule(str(tiny_esm), lora=None), make_tokens([40, 25])
    exact = module.cosine(tokens)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough, logits = module.cosine(tokens), module.contact_logits(tokens)
        found = gradients(module, tokens)
    assert rough.dtype == logits.dtype == torch.float32 and bool(logits.isfinite().all())
    assert float((rough - exact).detach().abs().max()) < 0.05
    assert all(bool(gradient.isfinite().all()) for gradient in found.values())


def test_the_projection_has_a_learning_rate_of_its_own(tiny_esm: Path) -> None:
    module = ContrastiveModule(str(tiny_esm), head_lr_factor=10)
    groups = module.configure_optimizers().param_groups  # type: ignore[union-attr]
    assert [len(group["params"]) for group in groups] == [8, 2]
    assert groups[1]["lr"] == pytest.approx(10 * groups[0]["lr"])


def test_the_first_projection_depends_on_its_seed_alone(tiny_esm: Path) -> None:
    one, two = (ContrastiveModule(str(tiny_esm), lora=None) for _ in range(2))
    other = ContrastiveModule(str(tiny_esm), lora=None, init_seed=1)
    assert torch.equal(one.projection.weight, two.projection.weight)
    assert not torch.equal(one.projection.weight, other.projection.weight)


@pytest.mark.parametrize(("B", "T"), [(1, 17), (3, 40)])
def test_flops_of_a_training_step_equal_a_closed_formula(B: int, T: int) -> None:
    module = ContrastiveModule(None, ARCHITECTURE, projection_dim=16, lora=None)
    tokens = make_tokens([T - 2] * (B - 1) + [T - 2])
    layers, d, ff, N, p = 2, 32, 64, B * T, 16
    products = layers * (4 * 2 * N * d * d + 2 * 2 * N * d * ff)
    embedded = 2 * B * (T - 2) * d * p + 2 * B * (T - 2) ** 2 * p
    attention = layers * 2 * B * T * T * d
    with flop_counter() as counter:
        loss = module.loss(module.cosine(tokens), torch.randint(0, 2, (B, T - 2, T - 2), dtype=torch.int8))
        assert counter.get_total_flops() == products + 2 * attention + embedded
        loss.backward()
    # a product's gradients are two products; fused attention computes its scores again, and four gradients
    assert counter.get_total_flops() == 3 * products + 7 * attention + 3 * embedded


@pytest.mark.slow
def test_it_learns(tmp_path: Path) -> None:
    torch.manual_seed(0)
    synthetic = SyntheticOptions(str(tmp_path / "proteins"), n_train=40, n_test=6, min_length=40, max_length=60)
    data = contactlm.ContactDataModule(
        synthetic=synthetic, crop_length=60, batch_size=8, read_workers=0, dev_fraction=0
    )
    module = ContrastiveModule(
        None, ARCHITECTURE, projection_dim=32, lora=None, optimizer=lambda p: torch.optim.Adam(p, lr=3e-3)
    )
    record, evaluation, meter = Record(), ContactEvaluation(), FlopsMeter()
    runner = trainer(tmp_path, record, evaluation, meter, max_steps=100)
    runner.fit(module, data)
    (logged,) = runner.test(module, data, verbose=False)
    first, last = np.mean(record.losses[:5]), np.mean(record.losses[-5:])
    assert last < 0.75 * first, (first, last)
    # of a predictor that knows nothing, AUPRC is about the base rate; the trivial one has just that beyond |i − j| > 5
    assert logged["test/auprc_sep6"] > 3 * logged["test/trivial_auprc_sep6"], logged["test/auprc_sep6"]
    assert meter.total > 0


def test_resuming_gives_the_unbroken_run(tmp_path: Path, tiny_esm: Path, pdb_folders: tuple[Path, Path]) -> None:
    tokens = 6 * 3 * 32
    own = ContrastiveModule
    whole, module, _, flops = run(tmp_path / "whole", tiny_esm, pdb_folders, tokens, module_class=own)
    assert len(whole.losses) == 6 and len(set(whole.losses)) == 6
    again, resumed, _, flops_2 = run(
        tmp_path / "again", tiny_esm, pdb_folders, tokens, tmp_path / "whole" / "step=3.ckpt", own
    )
    assert again.losses == whole.losses[3:] and flops_2.total == flops.total
    for name, weight in module.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], weight), name


def test_checkpoints_hold_the_projection_and_belong_to_the_class(
    tmp_path: Path, tiny_esm: Path, pdb_folders: tuple[Path, Path]
) -> None:
    paths = {}
    for cls in (ContactModule, ContrastiveModule):
        module = cls(str(tiny_esm))
        runner = trainer(tmp_path, TokenBudget(300))
        runner.fit(module, data_module(pdb_folders))
        paths[cls] = tmp_path / f"{cls.__name__}.ckpt"
        runner.save_checkpoint(paths[cls])
        assert set(torch.load(paths[cls], weights_only=True)["state_dict"]) == trainable(module)
    again = ContrastiveModule.load_from_checkpoint(paths[ContrastiveModule], map_location="cpu").eval()
    sequence = random_sequence(4, 30)
    expected = module.predict_map(sequence).probability
    np.testing.assert_array_equal(again.predict_map(sequence).probability, expected)
    np.testing.assert_array_equal(predict_contacts(sequence, paths[ContrastiveModule]).probability, expected)

    with pytest.raises(ModelError, match=r"ContrastiveModule and holds a projection.*has a contact head"):
        ContactModule.load_from_checkpoint(paths[ContrastiveModule], map_location="cpu")
    with pytest.raises(ModelError, match="written by ContactModule: load it with that class"):
        ContrastiveModule.load_from_checkpoint(paths[ContactModule], map_location="cpu")
    with pytest.raises(ModelError, match=r"holds a contact head.*has a projection"):
        trainer(tmp_path).test(
            ContrastiveModule(str(tiny_esm)), data_module(pdb_folders), ckpt_path=paths[ContactModule]
        )
    for export in (export_adapter, export_merged):
        with pytest.raises(ModelError, match="only models with a contact head can be exported"):
            export(again, tmp_path / "out")
    assert not hasattr(ContrastiveModule, "from_adapter")  # an adapter directory holds a contact head


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0.0}, "temperature: 0.0 given"),
        ({"positives": 0}, "positives: 0 given"),
        ({"negatives": -1}, "negatives: -1 given"),
        ({"projection_dim": 0}, "projection_dim: 0 given"),
        ({"train_head": True}, "train_head: no option of ContrastiveModule"),
        ({"attention": "plain"}, "attention: no option of ContrastiveModule"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        ContrastiveModule(None, ARCHITECTURE, **options)


def test_it_takes_the_options_of_contact_module() -> None:
    own = inspect.signature(ContrastiveModule.__init__).parameters
    theirs = inspect.signature(ContactModule.__init__).parameters
    assert set(own) - set(theirs) == {"projection_dim", "temperature", "positives", "negatives", "options"}
    module = ContrastiveModule(None, ARCHITECTURE, lora=None, window=100, overlap=60, threshold=0.7)
    assert module.windows.window == 100 and module.call_threshold == 0.7


@pytest.mark.slow
def test_fit_test_validate_predict_export(
    tmp_path: Path, pdb_folders: tuple[Path, Path], capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["contactlm"])
    data = [f"--data.train_dir={pdb_folders[0]}", f"--data.test_dir={pdb_folders[1]}", "--data.min_length=10"]
    data += ["--data.read_workers=0", "--trainer.accelerator=cpu"]
    model = ["--model.pretrained=null", f"--model.architecture={ARCHITECTURE}", "--model.lora=null"]
    sizes = ["--data.crop_length=30", "--data.batch_size=4", "--trainer.val_check_interval=2"]
    fit = ["fit", "--config=contrastive", *data, *model, *sizes, "--budget.max_tokens=600"]
    assert main([*fit, "--model.negatives=12"]) == 0
    printed = capsys.readouterr().out
    run_folder = tmp_path / "runs" / "contrastive" / "version_0"
    last = run_folder / "checkpoints" / "last.ckpt"
    best = next((run_folder / "checkpoints").glob("best-*.ckpt"))
    assert torch.load(last, weights_only=True)["hyper_parameters"]["negatives"] == 12

    def scores(prefix: str, text: str) -> list[str]:
        return next(line.split() for line in text.splitlines() if line.startswith(prefix))

    for command, prefix in (("test", "test"), ("validate", "dev")):
        assert main([command, f"--ckpt_path={best}", *data]) == 0  # the checkpoint names the class
        assert scores(prefix, capsys.readouterr().out) == scores(prefix, printed)
    (tmp_path / "a.fasta").write_text(f">one\n{random_sequence(0, 40)}\n")
    predict = ["predict", f"--ckpt_path={best}", "--data.predict_paths=[a.fasta]", "--trainer.accelerator=cpu"]
    assert main([*predict, "--formats=[npz]"]) == 0
    expected = ContrastiveModule.load_from_checkpoint(best, map_location="cpu").predict_map(random_sequence(0, 40))
    written = ContactMap.load(tmp_path / "predictions" / "one.npz").probability
    np.testing.assert_allclose(written, expected.probability, atol=1e-6)

    capsys.readouterr()
    for arguments, message in (
        (["export", "--ckpt_path", str(best), "--out", "exported"], "only models with a contact head can be exported"),
        (["test", "--model_class=contactlm.ContactModule", f"--ckpt_path={best}", *data], "holds a projection"),
    ):
        assert main(arguments) == 1
        assert message in capsys.readouterr().err.splitlines()[-1]
