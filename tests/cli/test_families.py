"""Every family on the command line: train, score, predict, go on, with windows and with known structures."""

from __future__ import annotations

import csv
import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from contactlm import ContactModule, ContrastiveModule, JacobianModule, predict_contacts
from contactlm.callbacks.record import weights_facts
from contactlm.cli.main import main
from contactlm.model.backbone import load_esm
from contactlm.modules.contact import PRIOR_LOGIT
from contactlm.modules.export import export_adapter
from contactlm.types import ModelError
from tests.model.families import ARCHITECTURES, FAMILIES, architecture, small_model, stock_model
from tests.modules.test_head_fit import head_of

SEQUENCE = "MKTAYIAKQRQISFVKSHFSRQLEERLGLIEVQAPILSRVGDGTQDNLSGAEKAVQVKVKALPDAQFEVVHSLAKWKRQTLGQHDFSAGEGLYTHMKALRPDEDRLS"
QUICK = ["--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false", "--trainer.logger", "false"]
UNTRAINED = pytest.mark.filterwarnings("ignore:.*no published contact head")


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["contactlm"])


def saved(name: str, folder: Path) -> Path:
    """A checkpoint of the stock class."""
    stock_model(small_model(name), name).save_pretrained(folder / name.replace(" ", ""))
    return folder / name.replace(" ", "")


def the_run(folder: Path) -> dict:
    return json.loads(next(folder.rglob("run.json")).read_text())


@UNTRAINED
@pytest.mark.slow
@pytest.mark.parametrize("name", ["ESM C", "ESM-1v", "BERT"])
def test_an_arm_runs_with_the_backbone_alone(name: str, tmp_path: Path, pdb_folders: tuple[Path, Path]) -> None:
    backbone = saved(name, tmp_path)
    train, test = pdb_folders
    given = ["--model.pretrained", str(backbone), "--data.train_dir", str(train), "--data.test_dir", str(test)]
    shape = ["--data.crop_length", "30", "--data.batch_size", "4", "--budget.max_tokens", "400"]
    assert main(["fit", "--config", "crop200", *given, *shape, "--trainer.accelerator", "cpu"]) == 0
    run = the_run(tmp_path / "runs")
    assert run["equal"]["family"] == name and run["tokens"] == 512 and run["flops"] > 0
    checkpoint = next((tmp_path / "runs").rglob("last.ckpt"))
    module = ContactModule.load_from_checkpoint(checkpoint, weights_only=True)
    assert set(module.hparams["lora"]["target_modules"]) == set(FAMILIES[name].lora_targets)
    (tmp_path / "a.fa").write_text(f">a\n{SEQUENCE}\n")
    told = ["predict", "--ckpt_path", str(checkpoint), "--data.predict_paths", str(tmp_path / "a.fa")]
    assert main([*told, "--out", str(tmp_path / "maps"), "--trainer.accelerator", "cpu"]) == 0
    with np.load(next((tmp_path / "maps").glob("*.npz"))) as archive:
        assert archive["probability"].shape == (len(SEQUENCE), len(SEQUENCE))
    if name == "ESM C":  # the fused projection; the others' are tested beside what writes them
        assert main(["export", "--ckpt_path", str(checkpoint), "--out", str(tmp_path / "adapter")]) == 0
        assert main(["plan", "--config", "crop200", *given, *shape]) == 0


@pytest.mark.parametrize("name", ["ESM C", pytest.param("ProtBert", marks=pytest.mark.slow)])
def test_a_head_is_trained_from_zero(name: str, tmp_path: Path, pdb_folders: tuple[Path, Path]) -> None:
    backbone = saved(name, tmp_path)
    before = ContactModule(str(backbone)).head_parameters()
    assert not any(parameter.any() for parameter in before)
    given = ["--model.pretrained", str(backbone), "--data.train_dir", str(pdb_folders[0])]
    shape = ["--data.crop_length", "30", "--data.batch_size", "4", "--budget.max_tokens", "400"]
    assert main(["fit", "--config", "headonly", *given, *shape, "--trainer.accelerator", "cpu"]) == 0
    module = ContactModule.load_from_checkpoint(next((tmp_path / "runs").rglob("last.ckpt")), weights_only=True)
    weight, bias = module.head_parameters()
    assert bool((weight != 0).any()) and float(bias) == pytest.approx(PRIOR_LOGIT, abs=0.1)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_weights_that_no_one_has_trained_are_called_random(name: str, tmp_path: Path) -> None:
    load_esm(None, architecture(name)).save_pretrained(tmp_path / "model")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = ContactModule(str(tmp_path / "model"))
    assert weights_facts(module)["weights"] == "random"
    norm = next(layer for layer in module.modules() if isinstance(layer, torch.nn.LayerNorm))
    norm.weight.data[0] = 2
    assert weights_facts(module)["weights"] == "pretrained" and module.family.name == name


def test_a_head_that_reads_nothing_is_told(tmp_path: Path) -> None:
    backbone = saved("ESM C", tmp_path)
    with pytest.warns(UserWarning, match="the contact head of this ESM C reads no attention map"):
        predicted = predict_contacts(SEQUENCE, backbone)
    assert np.ptp(predicted.probability) == 0


@UNTRAINED
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_windows_keep_within_reach_and_say_so(name: str, tmp_path: Path) -> None:
    small_model(name).save_pretrained(tmp_path / "model")
    module = ContactModule(str(tmp_path / "model"), lora=None).eval()
    reach = module.reach
    whole = module.predict_map(SEQUENCE, window=None)
    assert whole.how["family"] == name and np.isfinite(whole.probability).all()
    if reach is None:
        assert module.windows.window == 1022 and "positions" not in whole.how
        return
    assert module.windows.window == reach == whole.how["window"] == 56
    assert whole.how["positions"] == "learned, jumps between segments shortened to 56 residues"
    assert module.predict_map(SEQUENCE[:50]).how["positions"] == "learned"
    narrow = module.predict_map(SEQUENCE[:56], window=20)
    assert narrow.how["window"] == 20 and narrow.how["positions"] == "learned"
    many = predict_contacts([SEQUENCE, SEQUENCE[:30]], module)
    np.testing.assert_allclose(many[0].probability, module.predict_map(SEQUENCE).probability, atol=1e-5)


@UNTRAINED
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_maps_see_the_familys_own_tokens(name: str, tmp_path: Path) -> None:
    small_model(name).save_pretrained(tmp_path / "model")
    module = ContactModule(str(tmp_path / "model"), lora=None).eval()
    known, letters = FAMILIES[name].tokens, SEQUENCE[:20]
    residues = [known.letters[letter] for letter in letters] if known.letters else None
    if residues is None:
        from contactlm.alphabet import encode

        residues = encode(letters).tolist()
    tokens = torch.tensor([[known.cls, *residues, known.eos]])
    with torch.no_grad():
        expected = module.contact_logits(tokens)[0].sigmoid().numpy()
    np.testing.assert_allclose(module.predict_map(letters).probability, expected, atol=1e-6)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_residue_embeddings_are_learned_with_any_family(name: str) -> None:
    module = ContrastiveModule(None, architecture=architecture(name), lora=None, projection_dim=8)
    tokens = module.own_tokens(torch.tensor([[0, *range(4, 24), 2], [0, *range(4, 14), 2, *[1] * 10]]))
    logits = module.contact_logits(tokens)
    for made in (module.predict_map(SEQUENCE), *predict_contacts([SEQUENCE, SEQUENCE[:30]], module)):
        assert np.isfinite(made.probability).all() and made.how["family"] == name
    with pytest.raises(ModelError, match="only models with a contact head can be exported"):
        export_adapter(module, Path("adapter"))
    assert logits.shape == (2, 20, 20) and not logits[1, 10:].any() and logits[1, :10, :10].std() > 0
    logits.sum().backward()
    assert module.projection.weight.grad.abs().max() > 0


@UNTRAINED
@pytest.mark.parametrize(
    "name",
    ["ESM-1v", "ESM C", "ProtBert", *(pytest.param(name, marks=pytest.mark.slow) for name in ("ESM-1b", "SaProt"))],
)
def test_known_structures_are_read_with_any_family(name: str, tmp_path: Path, pdb_folders: tuple[Path, Path]) -> None:
    pytest.importorskip("pyhmmer")
    from contactlm.modules.retrieval import RetrievalModule

    backbone, index = saved(name, tmp_path), tmp_path / "db"
    assert (
        main(["index", "build", "--structures", str(pdb_folders[0]), "--out", str(index)]) == 3
    )  # one of the files is unreadable
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = RetrievalModule(str(backbone), index=str(index), decoder_width=16).eval()
    database = module.evidence.database
    sequence = database.store.sequence_of(0)
    predicted = module.predict_map(sequence)
    assert predicted.how["hits"] and np.isfinite(predicted.probability).all()
    plain = ContactModule(str(backbone), lora=None).eval().predict_map(sequence)
    np.testing.assert_allclose(predicted.probability, plain.probability, atol=1e-5)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_jacobian_reads_every_family(name: str) -> None:
    made = JacobianModule(None, architecture=architecture(name)).eval().predict_map(SEQUENCE[:12])
    assert made.how["family"] == name and np.isfinite(made.probability).all()


@UNTRAINED
def test_a_benchmark_takes_backbones_of_all_families_at_once(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    backbones = [str(saved(name, tmp_path)) for name in ARCHITECTURES]
    given = ["--model.pretrained", *backbones, "--out", str(tmp_path / "out"), "--cache_dir", str(tmp_path / "cache")]
    with pytest.warns(UserWarning, match="reads no attention map"):  # ESM C's and ProtBert's
        assert main(["benchmark", "smoke", *given]) == 0
    assert "8 chains asked, 8 found" in capsys.readouterr().out
    assert {len(own) for own in auprc_of(tmp_path / "out").values()} == {8}
    assert auprc_of(tmp_path / "out").keys() >= {Path(backbone).name for backbone in backbones}


def auprc_of(out: Path) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for row in csv.DictReader((out / "scores_smoke.csv").open()):
        found.setdefault(row["predictor"], []).append(float(row["auprc_sep6"]))
    return found


def test_a_benchmark_takes_a_fitted_head(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    backbone = str(saved("ESM C", tmp_path))
    where = ["--out", str(tmp_path / "out"), "--cache_dir", str(tmp_path / "cache")]
    scores = []
    for seed in range(2):
        head = head_of(Path(backbone), tmp_path / "head.safetensors", seed)
        assert main(["benchmark", "smoke", "--model.pretrained", backbone, "--model.head", str(head), *where]) == 0
        scores.append(auprc_of(tmp_path / "out")["ESMC"])
    assert scores[0] != scores[1]  # one head's kept scores are not another's
    assert (
        main(["benchmark", "smoke", "--model.pretrained", backbone, backbone + "/", "--model.head", "h", *where]) == 1
    )
    assert "goes on one backbone; give one --model.pretrained" in capsys.readouterr().err


@pytest.mark.parametrize("module_class", [ContactModule, ContrastiveModule])
def test_a_pass_for_the_sake_of_other_processes_has_the_familys_tokens(module_class: type) -> None:
    module = module_class(None, architecture=architecture("ProtBert"), lora=None)
    shown: list[list[list[int]]] = []
    module.backbone.register_forward_pre_hook(lambda _, given: shown.append(given[0].tolist()))
    module.idle_pass()
    known = FAMILIES["ProtBert"].tokens
    assert shown == [[[known.cls, known.letters["X"], known.eos]]]


@pytest.mark.parametrize("name", ["ESM-1b", "ESM C", "ProtBert"])
def test_checkpointed_layers_give_the_same_gradients(name: str) -> None:
    found = []
    for checkpointed in (False, True):
        module = ContactModule(
            None, architecture=architecture(name), lora=None, activation_checkpointing=checkpointed
        ).train()
        module.head_parameters()[0].data.fill_(0.5)
        tokens = module.own_tokens(torch.tensor([[0, *range(4, 24), 2]]))
        (module.contact_logits(tokens) ** 2).sum().backward()
        found.append({key: p.grad for key, p in module.named_parameters() if p.grad is not None})
    assert found[0].keys() == found[1].keys()
    for key, gradient in found[0].items():
        torch.testing.assert_close(found[1][key], gradient)
