"""Checkpoints of every family by their published sizes, their tokens, and how far their positions reach."""

from __future__ import annotations

import json
import re
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import BertForMaskedLM, BertTokenizer, EsmcForMaskedLM, EsmForMaskedLM
from transformers.models.esmc.tokenization_esmc import EsmcTokenizer

from contactlm.alphabet import CLS, EOS, LETTERS, MASK, PAD, encode
from contactlm.model.backbone import ContactBackbone, backbone_checksum, load_esm
from contactlm.model.families import esmc
from contactlm.model.families.esm import VOCABULARY as SAPROT
from contactlm.model.families.family import Family, family_of
from contactlm.model.families.vocabulary import PROTBERT
from contactlm.model.loading import architecture_of
from contactlm.model.trunk import within_reach
from contactlm.types import ModelError

from .families import FAMILIES, architecture, family_tokens, small_model

ESM = {
    "model_type": "esm",
    "vocab_size": 33,
    "pad_token_id": 1,
    "mask_token_id": 32,
    "max_position_embeddings": 1026,
    "token_dropout": True,
    "emb_layer_norm_before": False,
    "attention_probs_dropout_prob": 0.0,
    "hidden_dropout_prob": 0.0,
    "layer_norm_eps": 1e-5,
    "num_hidden_layers": 33,
    "hidden_size": 1280,
    "num_attention_heads": 20,
    "intermediate_size": 5120,
}
BERT = {
    "model_type": "bert",
    "vocab_size": 30,
    "pad_token_id": 0,
    "max_position_embeddings": 40000,
    "type_vocab_size": 2,
    "attention_probs_dropout_prob": 0.0,
    "hidden_dropout_prob": 0.0,
    "layer_norm_eps": 1e-12,
    "num_hidden_layers": 30,
    "hidden_size": 1024,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
}
# What the config.json files on the hub say; parameters in millions, without the head that predicts masked residues.
PUBLISHED = {
    "facebook/esm2_t33_650M_UR50D": ("ESM2", {**ESM, "position_embedding_type": "rotary"}, 650.0),
    "facebook/esm1b_t33_650M_UR50S": (
        "ESM-1b",
        {**ESM, "position_embedding_type": "absolute", "emb_layer_norm_before": True},
        651.0,
    ),
    "facebook/esm1v_t33_650M_UR90S_1": ("ESM-1v", {**ESM, "position_embedding_type": "absolute"}, 651.0),
    "westlake-repl/SaProt_650M_AF2": (
        "SaProt",
        {**ESM, "position_embedding_type": "rotary", "vocab_size": 446, "mask_token_id": 4},
        650.0,
    ),
    "Rostlab/prot_bert": ("ProtBert", BERT, 419.0),
    "biohub/ESMC-300M": (
        "ESM C",
        {
            "model_type": "esmc",
            "hidden_size": 960,
            "num_hidden_layers": 30,
            "num_attention_heads": 15,
            "intermediate_size": 2560,
        },
        332.0,
    ),
    "biohub/ESMC-600M": (
        "ESM C",
        {
            "model_type": "esmc",
            "hidden_size": 1152,
            "num_hidden_layers": 36,
            "num_attention_heads": 18,
            "intermediate_size": 3072,
        },
        574.0,
    ),
}
STOCK = {"esm": EsmForMaskedLM, "bert": BertForMaskedLM, "esmc": EsmcForMaskedLM}


@pytest.mark.parametrize("published", PUBLISHED)
def test_published_names_and_shapes_are_those_of_the_stock_class(published):
    name, values, millions = PUBLISHED[published]
    family = family_of(values, published)
    assert family.name == name
    config = family.config_class.from_dict(values)
    family.check(published, config)
    with torch.device("meta"):
        stock = STOCK[values["model_type"]](config).base_model.state_dict()
        ours = family.model_class(config, **family.model_options).state_dict()
    shapes = {key: weight.shape for key, weight in ours.items() if not key.startswith("contact_head")}
    assert shapes == {key: w.shape for key, w in stock.items() if not key.startswith(("contact_head", "pooler"))}
    maps = values["num_hidden_layers"] * values["num_attention_heads"]
    assert ours["contact_head.regression.weight"].shape == (1, maps)
    assert sum(weight.numel() for weight in ours.values()) / 1e6 == pytest.approx(millions, rel=0.01)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_masked_language_model_of_the_stock_class_loads(name, tmp_path):
    config = load_esm(None, architecture(name)).config
    torch.manual_seed(1)
    stock = STOCK[config.model_type](config)
    stock.save_pretrained(tmp_path / "model")
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        model = load_esm(str(tmp_path / "model"))
    base = stock.base_model.state_dict()
    for key, weight in model.state_dict().items():
        if key in base:
            assert torch.equal(weight, base[key]), key
    weight, bias = model.contact_head.parameters()
    untrained = [w for w in told if "no published contact head" in str(w.message)]
    if name in ("ESM C", "ProtBert", "BERT"):
        assert not weight.any() and not bias.any() and not untrained
    else:
        assert weight.any() and bool(untrained) is (name in ("ESM-1v", "SaProt"))


@pytest.mark.parametrize("name", FAMILIES)
def test_what_is_saved_is_loaded(name, tmp_path):
    model = small_model(name)
    model.save_pretrained(tmp_path / "model")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        again = load_esm(str(tmp_path / "model"))
    assert backbone_checksum(model) == backbone_checksum(again)
    tokens = family_tokens(name, [14, 9])
    assert torch.equal(ContactBackbone(model)(tokens), ContactBackbone(again)(tokens))


@pytest.mark.parametrize("name", FAMILIES)
def test_a_missing_weight_is_named(name, tmp_path):
    from safetensors.torch import save_file

    model = small_model(name)
    model.save_pretrained(tmp_path / "model")
    path = tmp_path / "model" / "model.safetensors"
    weights = load_file(path)
    dropped = next(key for key in weights if ("layer" in key and "query" in key) or "q_proj" in key)
    save_file({k: w for k, w in weights.items() if k != dropped}, path, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=f"lacks 1 backbone weights, such as {dropped}"):
        load_esm(str(tmp_path / "model"))


@pytest.mark.parametrize("name", FAMILIES)
def test_random_backbones_have_no_head_where_none_is_published(name):
    weight, bias = load_esm(None, architecture(name)).contact_head.parameters()
    assert weight.shape == (1, 15) and bias.shape == (1,)
    assert bool(weight.any()) is FAMILIES[name].published_head


def own_numbers(name, sequence):
    tokens = torch.tensor([CLS, *encode(sequence).tolist(), EOS, PAD, MASK])
    return FAMILIES[name].tokens.own(tokens).tolist()


def test_tokens_are_those_of_the_familys_own_tokenizer(tmp_path):
    expected = EsmcTokenizer()(LETTERS)["input_ids"]
    assert own_numbers("ESM C", LETTERS)[:-2] == expected
    (tmp_path / "vocab.txt").write_text("\n".join(PROTBERT) + "\n")
    tokenizer = BertTokenizer(str(tmp_path / "vocab.txt"), do_lower_case=False)
    written = " ".join(LETTERS.translate(str.maketrans("UZOB", "XXXX")))
    assert own_numbers("ProtBert", LETTERS)[:-2] == tokenizer(written)["input_ids"]
    assert own_numbers("ProtBert", "M")[-2:] == [tokenizer.pad_token_id, tokenizer.mask_token_id]
    assert own_numbers("ESM2", "MKX") == [CLS, *encode("MKX").tolist(), EOS, PAD, MASK]


def test_saprot_reads_residues_without_structure():
    assert len(SAPROT) == 446 and len(set(SAPROT)) == 446
    numbers = own_numbers("SaProt", "ACYXBUZO")
    assert [SAPROT[n] for n in numbers] == ["<cls>", "A#", "C#", "Y#", *["##"] * 5, "<eos>", "<pad>", "<mask>"]
    assert SAPROT[5:8] == ("Ap", "Ay", "An") and SAPROT[25] == "A#"


@pytest.mark.parametrize(("name", "tokens"), [("ESM-1b", 58), ("ESM-1v", 58), ("ProtBert", 58)])
def test_learned_positions_end(name, tokens):
    backbone = ContactBackbone(small_model(name))
    assert FAMILIES[name].reach(backbone.esm.config) == tokens
    assert backbone(family_tokens(name, [tokens - 2])).isfinite().all()
    with pytest.raises(
        ModelError, match=f"59 tokens in one pass, but this {name} has learned positions for 58: 56 res"
    ):
        backbone(family_tokens(name, [tokens - 1]))


def test_rotary_families_reach_everywhere():
    reaches = {f.name: f.reach(load_esm(None, architecture(f.name)).config) for f in FAMILIES.values()}
    assert [name for name, reach in reaches.items() if reach is None] == ["SaProt", "ESM2", "ESM C"]


def test_positions_are_brought_within_reach():
    def brought(row, reach):
        positions = torch.tensor([row])
        return within_reach(positions, torch.ones_like(positions).bool(), reach)[0].tolist()

    assert brought([0, 1, 2, 30, 31], 32) == [0, 1, 2, 30, 31]  # it fits
    assert brought([5, 6, 7, 35, 36], 32) == [0, 1, 2, 30, 31]  # moved as a whole
    assert brought([0, 1, 2, 30, 31], 20) == [0, 1, 2, 18, 19]  # the jump is shortened
    assert brought([4, 5, 6, 34, 35], 20) == [0, 1, 2, 18, 19]  # both
    assert brought([0, 1, 2, 30, 31], 5) == [0, 1, 2, 3, 4]
    assert brought([0, 10, 11, 30, 31], 20)[-1] <= 19
    padded = torch.tensor([[0, 1, 40, 41, 0, 0]])
    mask = torch.tensor([[True, True, True, True, False, False]])
    assert within_reach(padded, mask, 20)[0].tolist() == [0, 1, 18, 19, 0, 0]


@pytest.mark.parametrize("seed", range(20))
def test_positions_within_reach_ascend_and_shorten_no_step(seed):
    generator = torch.Generator().manual_seed(seed)
    steps = torch.randint(1, 6, (3, 24), generator=generator) ** 3
    positions = steps.cumsum(1) - steps[:, :1] + torch.randint(0, 50, (3, 1), generator=generator)
    reach = int(torch.randint(24, 200, (1,), generator=generator))
    brought = within_reach(positions, torch.ones_like(positions).bool(), reach)
    assert (brought.diff(dim=1) >= 1).all() and brought.min() >= 0 and brought.max() < reach
    assert (brought.diff(dim=1) <= positions.diff(dim=1)).all()


def test_decoders_and_foreign_vocabularies_are_refused(tmp_path):
    config = load_esm(None, architecture("ProtBert")).config
    BertForMaskedLM(config).save_pretrained(tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    values = json.loads(path.read_text())
    for changes, message in (
        ({"is_decoder": True}, "a decoder; only plain ProtBert encoders"),
        ({"vocab_size": 28996}, r"vocab_size and pad_token_id are \(28996, 0\); those of ProtBert are \(30, 0\)"),
    ):
        path.write_text(json.dumps({**values, **changes}))
        with pytest.raises(ModelError, match=message):
            load_esm(str(tmp_path / "model"))


@pytest.mark.parametrize(("name", "option"), [("ESM C", "attention_dropout"), ("BERT", "attention_probs_dropout_prob")])
def test_dropout_on_attention_maps_is_set_to_0_and_told(name, option, caplog):
    noisy, still = (load_esm(None, {**architecture(name), option: p}) for p in (0.1, 0.0))
    with caplog.at_level("INFO"):
        backbone = ContactBackbone(noisy).train()
    assert [r.message for r in caplog.records if option in r.message] == [
        f"{option} of the model's config.json is 0.1; 0 is taken, for maps are read here"
    ]
    assert getattr(noisy.config, option) == 0
    tokens = family_tokens(name, [9, 7])
    assert torch.equal(backbone(tokens), ContactBackbone(still).train()(tokens))


@pytest.mark.parametrize("name", FAMILIES)
def test_a_configuration_alone_tells_sizes_and_kind(name, tmp_path):
    config = load_esm(None, architecture(name)).config
    config.save_pretrained(tmp_path)
    again = load_esm(None, architecture_of(str(tmp_path)))
    assert family_of(again.config) is FAMILIES[name]
    assert again.state_dict().keys() == small_model(name).state_dict().keys()
    assert {k: w.shape for k, w in again.state_dict().items()} == {
        k: w.shape for k, w in small_model(name).state_dict().items()
    }


def test_the_recipe_for_a_family_names_what_it_takes():
    text = (Path(__file__).parents[2] / ".github" / "CONTRIBUTING.md").read_text()
    recipe = text[text.index("**A family of language models.**") : text.index("**A loss, a kind of label")]
    assert {f"`{name}`" for name in Family.__abstractmethods__} <= set(re.findall(r"`\w+`", recipe))
    said = re.search(r"ESM C\b[^;]*?\b(\d+) lines", recipe)
    assert said and int(said[1]) == pytest.approx(len(Path(esmc.__file__).read_text().splitlines()), rel=0.1)
