"""Contact heads fitted to attention maps, in a file, on a model, in checkpoints and exports."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import save_file

from contactlm import ContactModule, ContrastiveModule, predict_contacts
from contactlm.cli.main import main
from contactlm.data.store import ChainStore
from contactlm.model.backbone import ContactBackbone, backbone_checksum
from contactlm.model.contact_head import logits_of_heads, pair_features, read_head, write_head
from contactlm.modules import head_fit
from contactlm.modules.export import export_adapter, export_merged
from contactlm.modules.head_fit import HeadFitOptions, fit_head
from contactlm.types import DataError, ModelError
from tests.data.test_store import make_chain
from tests.model.families import ARCHITECTURES, FAMILIES, family_tokens, logits_of_maps, small_model, stock_model

pytest.importorskip("sklearn")


@pytest.fixture
def esmc(tmp_path: Path) -> Path:
    """A checkpoint of a small ESM C, as its stock class writes it."""
    stock_model(small_model("ESM C"), "ESM C").save_pretrained(tmp_path / "esmc")
    return tmp_path / "esmc"


def head_of(esmc: Path, path: Path, seed: int = 0) -> Path:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(1, 15, generator=generator)
    checksum = ContactModule(str(esmc), lora=None).backbone_checksum
    about = {"family": "ESM C", "backbone": str(esmc), "backbone_checksum": checksum}
    write_head(path, weight, torch.tensor([-2.5]), about)
    return path


def store_of(lengths: list[int]) -> ChainStore:
    return ChainStore.from_chains([make_chain(f"c{n}_A", length, n) for n, length in enumerate(lengths)])


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_features_and_many_heads_are_those_of_stored_maps(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("contactlm.model.contact_head._HELD_ENTRIES", 2 * 25**2)  # two heads at a time
    model, tokens = small_model(name), family_tokens(name, [23])
    stock, backbone = stock_model(model, name), ContactBackbone(model)
    attentions = stock(tokens, output_attentions=True).attentions
    residues = torch.ones_like(tokens).bool()
    residues[:, [0, -1]] = False
    rows, columns = torch.triu_indices(23, 23, 6)
    features = pair_features(backbone, tokens, rows, columns)
    assert features.shape == (len(rows), 15)
    for head, unit in enumerate(torch.eye(15)):
        expected = logits_of_maps(attentions, unit, 0, residues)[0, rows, columns]
        torch.testing.assert_close(features[:, head], expected.detach(), rtol=0, atol=1e-5)
    weights, biases = torch.randn(3, 15), torch.randn(3)
    many = logits_of_heads(backbone, tokens, weights, biases)
    for logits, weight, bias in zip(many, weights, biases, strict=True):
        torch.testing.assert_close(
            logits, logits_of_maps(attentions, weight, bias, residues)[0].detach(), rtol=0, atol=3e-5
        )


def test_a_planted_head_is_found_and_the_bias_does_not_know_of_the_sampling(monkeypatch: pytest.MonkeyPatch) -> None:
    """Labels drawn from a head that reads two maps; a tenth of the pairs without contact is kept."""
    store, backbone = store_of([150] * 6), ContactBackbone(small_model("ESM2")).eval()
    weight, bias = torch.zeros(15), -3.0
    weight[[4, 11]] = torch.tensor([60.0, -45.0])

    def planted(store: ChainStore, index: int, options: HeadFitOptions) -> tuple[torch.Tensor, ...]:
        rows, columns = torch.triu_indices(150, 150, options.min_separation)
        tokens = head_fit.residue_tokens(backbone, store, index)
        logits = pair_features(backbone, tokens, rows, columns) @ weight + bias
        drawn = torch.rand(len(rows), generator=torch.Generator().manual_seed(index)) < logits.sigmoid()
        return rows, columns, drawn

    monkeypatch.setattr(head_fit, "_known_pairs", planted)
    options = HeadFitOptions(negatives=2, max_pairs=10**6, strengths=[1.0, 0.01])
    (pairs, contacts), (head, sparse) = head_fit._fit(backbone, store, range(6), options)
    assert pairs == pytest.approx(3 * contacts, rel=0.05)
    assert head.weight.abs().topk(2).indices.sort().values.tolist() == [4, 11]
    torch.testing.assert_close(head.weight[[4, 11]], weight[[4, 11]], rtol=0.15, atol=0)
    assert head.bias == pytest.approx(bias, abs=0.25)  # log f is -1.7 here
    assert set(sparse.weight.nonzero().flatten().tolist()) <= {4, 11}


def test_a_mean_of_the_best_maps_finds_those_that_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    """Contacts drawn from the sum of three maps: these come first, alike, with a bias that gives probabilities."""
    store, backbone = store_of([120] * 6), ContactBackbone(small_model("ESM2")).eval()
    weight = torch.zeros(15)
    weight[[2, 7, 12]] = 60.0

    def planted(store: ChainStore, index: int, options: HeadFitOptions) -> tuple[torch.Tensor, ...]:
        rows, columns = torch.triu_indices(120, 120, options.min_separation)
        tokens = head_fit.residue_tokens(backbone, store, index)
        logits = pair_features(backbone, tokens, rows, columns) @ weight - 3.0
        drawn = torch.rand(len(rows), generator=torch.Generator().manual_seed(index)) < logits.sigmoid()
        return rows, columns, drawn

    monkeypatch.setattr(head_fit, "_known_pairs", planted)
    _, heads = head_fit._fit(backbone, store, range(6), HeadFitOptions(method="top", max_pairs=10**6))
    assert [int(head.weight.count_nonzero()) for head in heads] == [1, 2, 3, 5, 8, 13]
    assert heads[2].weight.nonzero().flatten().tolist() == [2, 7, 12]
    torch.testing.assert_close(heads[2].weight, weight, rtol=0.2, atol=1e-6)
    assert heads[2].bias == pytest.approx(-3.0, abs=0.25)


def test_the_number_of_maps_is_chosen_on_the_fitting_chains() -> None:
    store, backbone = store_of([60] * 5), ContactBackbone(small_model("ESM2")).eval()
    store = replace(store, cb=store.cb * 12)
    fit = fit_head(backbone, store, store.select([3, 4]), HeadFitOptions(method="top", chains=3))
    assert set(fit.scores) == {1, 2, 3, 5, 8, 13} and fit.scores[fit.strength] == max(fit.scores.values())
    assert fit.head.weight.count_nonzero() == fit.strength and fit.held_out == 2


def test_what_cannot_be_fitted_is_said() -> None:
    backbone = ContactBackbone(small_model("ESM2")).eval()
    store = store_of([40, 41])
    with pytest.raises(DataError, match="no train chain of at most 12 residues"):
        fit_head(backbone, store, store, HeadFitOptions(max_length=12))
    with pytest.raises(DataError, match=r"chain_ids: z_A: no such training chain \(there are c0_A"):
        fit_head(backbone, store, store, HeadFitOptions(), ["z_A"])
    with pytest.raises(DataError, match="max_pairs 1: no contact head can be fitted"):
        fit_head(backbone, store, store, HeadFitOptions(max_pairs=1))
    learned = ContactBackbone(small_model("ESM-1b")).eval()
    with pytest.raises(DataError, match="no train chain of at most 56 residues"):
        fit_head(learned, store_of([57]), store, HeadFitOptions())
    for options, message in (({"chains": 0}, "chains: 0 given"), ({"strengths": [0.0]}, "strengths")):
        with pytest.raises(ModelError, match=message):
            HeadFitOptions(**options)


def test_the_library_is_named_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "sklearn.linear_model", None)
    with pytest.raises(ImportError, match=r'pip install "contactlm\[head\]"'):
        head_fit.make_solver(1.0)


def test_the_command_fits_a_head_that_predict_takes(
    esmc: Path, pdb_folders: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "head.safetensors"
    given = ["--model.pretrained", str(esmc), "--data.train_dir", str(pdb_folders[0]), "--out", str(out)]
    assert main(["head", "fit", *given, "--chains", "5", "--data.dev_fraction", "0.3"]) == 0
    said = capsys.readouterr().out
    assert "ESM C: 5 chains" in said and "of 15, bias" in said
    weight, bias, about = read_head(out)
    assert weight.shape == (1, 15) and bias.shape == (1,) and about["family"] == "ESM C" and len(about["chains"]) == 5
    module = ContactModule(str(esmc), lora=None, head=str(out))
    assert torch.equal(module.head_parameters()[0], weight)
    named = about["chains"][:3]
    assert main(["head", "fit", *given, "--chain_ids", *named, "--data.dev_fraction", "0.3"]) == 0
    assert read_head(out)[2]["chains"] == named


def test_a_head_goes_on_its_own_backbone_only(esmc: Path, tmp_path: Path, tiny_esm: Path) -> None:
    head = head_of(esmc, tmp_path / "head.safetensors")
    with pytest.raises(ModelError, match="weighs 15 attention maps of ESM C, but the backbone is ESM2 with 8"):
        ContactModule(str(tiny_esm), head=str(head))
    stock_model(small_model("ESM C", seed=5), "ESM C").save_pretrained(tmp_path / "other")
    with pytest.raises(ModelError, match=r"was fitted to .*esmc .*but this backbone's weights have the checksum"):
        ContactModule(str(tmp_path / "other"), head=str(head))
    with pytest.raises(ModelError, match="does not exist; make one with `contactlm head fit`"):
        ContactModule(str(esmc), head=str(tmp_path / "none"))
    save_file({"weight": torch.zeros(1, 15)}, tmp_path / "odd.safetensors")
    with pytest.raises(ModelError, match="is no contact head that"):
        ContactModule(str(esmc), head=str(tmp_path / "odd.safetensors"))
    with pytest.raises(ModelError, match="head: no option of ContrastiveModule"):
        ContrastiveModule(str(esmc), head=str(head))


@pytest.mark.parametrize("options", [{}, {"lora": None, "freeze_backbone": True}, {"train_head": False}])
def test_a_fitted_head_travels_in_checkpoints(esmc: Path, tmp_path: Path, options: dict) -> None:
    from tests.modules.test_export import save_checkpoint

    module = ContactModule(str(esmc), head=str(head_of(esmc, tmp_path / "head.safetensors")), **options)
    path = save_checkpoint(module, tmp_path / "with.ckpt")
    again = ContactModule.load_from_checkpoint(path, weights_only=True)
    weight, bias = read_head(tmp_path / "head.safetensors")[:2]
    for loaded in (again, ContactModule.load_from_checkpoint(save_checkpoint(again, tmp_path / "again.ckpt"))):
        assert [p.tolist() for p in loaded.head_parameters()] == [weight.tolist(), bias.tolist()]
    mine, theirs = (predict_contacts("MKTAYIAKQRQISF", m).probability for m in (module, path))
    np.testing.assert_array_equal(mine, theirs)


@pytest.mark.parametrize("name", ["ESM C", "ProtBert", "SaProt", "ESM-1b", "ESM-1v"])
def test_exports_of_every_family_are_read_back(name: str, tmp_path: Path) -> None:
    small_model(name).save_pretrained(tmp_path / "model")
    module = ContactModule(str(tmp_path / "model"))
    generator = torch.Generator().manual_seed(0)
    for parameter in module.parameters():
        if parameter.requires_grad:
            parameter.data.normal_(0, 0.2, generator=generator)
    expected = module.predict_map("MKTAYIAKQRQISFVKSHFS").probability
    export_adapter(module, tmp_path / "adapter")
    export_merged(module, tmp_path / "merged")
    for made in ("adapter", "merged"):
        found = predict_contacts("MKTAYIAKQRQISFVKSHFS", tmp_path / made).probability
        np.testing.assert_allclose(found, expected, atol=1e-5)
        assert name in (tmp_path / made / "README.md").read_text()
    family = FAMILIES[name]
    assert json.loads((tmp_path / "merged" / "config.json").read_text())["architectures"] == [
        family.stock_class.__name__
    ]
    adapted = PeftModel.from_pretrained(family.stock_class.from_pretrained(tmp_path / "model"), tmp_path / "adapter")
    stock = family.stock_class.from_pretrained(tmp_path / "merged")
    tokens = family_tokens(name, [19])
    with torch.no_grad():
        states = [model.eval()(input_ids=tokens).last_hidden_state for model in (adapted, stock)]
    torch.testing.assert_close(*states, rtol=0, atol=1e-4)
    weights = stock.state_dict()
    merged = ContactModule(str(tmp_path / "merged"), lora=None).backbone.esm
    assert backbone_checksum(merged) != module.backbone_checksum
    for key, weight in merged.state_dict().items():
        assert key not in weights or torch.equal(weights[key], weight), key
