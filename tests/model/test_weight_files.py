"""fair-esm's own files, which fair-esm makes and reads here, and those of the esm package."""

import warnings
from argparse import Namespace

import esm as fair
import pytest
import torch
from transformers import EsmcConfig, EsmcForMaskedLM

from contactlm import ContactModule
from contactlm.model.backbone import backbone_checksum
from contactlm.model.encoder import load_language_model_head
from contactlm.model.loading import architecture_of, load_esm
from contactlm.model.weight_files import model_folder
from contactlm.types import ModelError

SEQUENCES = [("a", "MKTAYIAKQRQISFVKSHFSRQ"), ("b", "GSHMLEDPVWXC")]
OPTIONS = {"encoder_layers": 3, "encoder_embed_dim": 40, "encoder_attention_heads": 4, "token_dropout": True}
V1 = Namespace(
    **{**OPTIONS, "arch": "roberta_large", "encoder_ffn_embed_dim": 160, "max_positions": 60, "layers": 3, "extra": [1]}
)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CONTACTLM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))


def made_by_fair_esm(kind):
    torch.manual_seed(3)
    alphabet = fair.Alphabet.from_architecture("ESM-1b")
    if kind == "esm2":
        model = fair.ESM2(3, 40, 4, alphabet)
    else:
        named = {name.removeprefix("encoder_"): value for name, value in vars(V1).items()}
        model = fair.ProteinBertModel(Namespace(**named, emb_layer_norm_before=kind == "esm1b"), alphabet)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.add_(torch.randn_like(weight), alpha=0.05 if "embed" in name else 0.2)
    return model.eval(), alphabet


def saved_as_published(folder, kind):
    """As the published files are: prefixes before the names, options, and the contact head in a file beside."""
    model, alphabet = made_by_fair_esm(kind)
    path = folder / f"{kind}_t3_tiny_UR50D.pt"
    path.parent.mkdir(parents=True, exist_ok=True)
    state = model.state_dict()
    head = {name: state.pop(name) for name in [name for name in state if name.startswith("contact_head")]}
    prefixed = {f"encoder.{'' if n.startswith('lm_head') else 'sentence_encoder.'}{n}": w for n, w in state.items()}
    about = {"cfg": {"_name": None, "model": Namespace(**OPTIONS)}} if kind == "esm2" else {"args": V1}
    torch.save({**about, "model": prefixed}, path)
    if kind != "esm1v":
        torch.save({"model": head}, path.with_name(f"{path.stem}-contact-regression.pt"))
    with torch.serialization.safe_globals([Namespace]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model, alphabet = fair.pretrained.load_model_and_alphabet_local(path)  # the file is one
    return path, model.eval(), alphabet


@pytest.mark.parametrize(("kind", "family"), [("esm2", "ESM2"), ("esm1b", "ESM-1b"), ("esm1v", "ESM-1v")])
def test_contacts_of_fair_esms_files_are_fair_esms_own(kind, family, tmp_path):
    path, theirs, alphabet = saved_as_published(tmp_path, kind)
    module = ContactModule(str(path), lora=None).eval()
    assert module.family.name == family
    assert module.head_lr_factor == (10 if kind == "esm1v" else 1)
    if kind == "esm1v":  # a head of zeros there and random numbers here would say nothing
        with torch.no_grad():
            for ours, own in zip(module.head_parameters(), theirs.contact_head.parameters(), strict=True):
                ours.copy_(own)
    tokens = alphabet.get_batch_converter()(SEQUENCES)[2]
    with torch.no_grad():
        expected, found = theirs.predict_contacts(tokens), module.contact_logits(tokens).sigmoid()
    assert expected[0].std() > 0.005
    for n, (_, sequence) in enumerate(SEQUENCES):
        inside = slice(0, len(sequence))
        torch.testing.assert_close(found[n, inside, inside], expected[n, inside, inside], atol=1e-5, rtol=0)


def test_masked_residues_are_predicted_as_by_fair_esm(tmp_path):
    path, theirs, alphabet = saved_as_published(tmp_path, "esm2")
    head = load_language_model_head(load_esm(str(path)), str(path))
    tokens = alphabet.get_batch_converter()(SEQUENCES[:1])[2]
    with torch.no_grad():
        told = theirs(tokens, repr_layers=[3])
        logits = torch.nn.functional.linear(head.transform(told["representations"][3]), head.weight, head.bias)
    torch.testing.assert_close(logits, told["logits"], atol=1e-5, rtol=1e-5)


def test_a_file_in_torch_hubs_cache_is_found_by_its_name(tmp_path):
    path, *_ = saved_as_published(tmp_path / "torch" / "hub" / "checkpoints", "esm2")
    by_name = load_esm(path.stem)
    assert backbone_checksum(by_name) == backbone_checksum(load_esm(str(path)))
    assert architecture_of(path.stem)["num_attention_heads"] == 4
    folder = model_folder(path)
    assert model_folder(path) == folder and len(list(folder.parent.iterdir())) == 1
    path.with_name(f"{path.stem}-contact-regression.pt").unlink()
    with pytest.warns(UserWarning, match="no contact-head weights"):
        assert not load_esm(path.stem).head_is_trained


def test_esm_c_of_the_esm_package_is_that_of_transformers(tmp_path):
    torch.manual_seed(0)
    sizes = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 96}
    stock = EsmcForMaskedLM(EsmcConfig(vocab_size=64, **sizes))
    weights = {"embed.weight": stock.esmc.embed_tokens.weight, "transformer.norm.weight": stock.esmc.norm.weight}
    for n, layer in enumerate(stock.esmc.layers):
        own, mlp, at = layer.self_attn, layer.mlp, f"transformer.blocks.{n}"
        weights |= {
            f"{at}.attn.layernorm_qkv.0.weight": layer.input_layernorm.weight,
            f"{at}.attn.layernorm_qkv.0.bias": layer.input_layernorm.bias,
            f"{at}.attn.layernorm_qkv.1.weight": torch.cat([p.weight for p in (own.q_proj, own.k_proj, own.v_proj)]),
            f"{at}.attn.q_ln.weight": own.q_norm.weight,
            f"{at}.attn.k_ln.weight": own.k_norm.weight,
            f"{at}.attn.out_proj.weight": own.o_proj.weight,
            f"{at}.attn.rotary.inv_freq": torch.ones(32),
            f"{at}.ffn.0.weight": layer.post_attention_layernorm.weight,
            f"{at}.ffn.0.bias": layer.post_attention_layernorm.bias,
            f"{at}.ffn.1.weight": torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight]),
            f"{at}.ffn.3.weight": mlp.down_proj.weight,
        }
    head = {"0": stock.lm_head.dense, "2": stock.lm_head.layer_norm, "3": stock.lm_head.decoder}
    weights |= {f"sequence_head.{n}.{k}": w for n, part in head.items() for k, w in part.state_dict().items()}
    torch.save({name: weight.detach() for name, weight in weights.items()}, tmp_path / "esmc_tiny.pth")
    model = load_esm(str(tmp_path / "esmc_tiny.pth"))
    assert not model.head_is_trained
    for name, weight in stock.esmc.state_dict().items():
        assert torch.equal(model.state_dict()[name], weight), name
    found = load_language_model_head(model, str(tmp_path / "esmc_tiny.pth"))
    assert torch.equal(found.weight, stock.lm_head.decoder.weight)


class Foreign:
    """What a file may run code with."""


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"args": Namespace(arch="msa_transformer"), "model": {}}, "arch 'msa_transformer'; of fair-esm's, ESM2"),
        ({"cfg": {"model": Namespace()}, "model": {"trunk.weight": torch.zeros(1)}}, "no ESM2, ESM-1b or ESM-1v"),
        ({"state": torch.zeros(2)}, "neither fair-esm's ESM2"),
        (Foreign(), "cannot be read as weights alone: it is damaged, or holds Python objects"),
    ],
)
def test_other_files_are_refused(value, message, tmp_path):
    path = tmp_path / "other.pt"
    torch.save(value, path)
    with pytest.raises(ModelError, match=message):
        load_esm(str(path))
    with pytest.raises(ModelError, match="no such file"):
        load_esm(str(tmp_path / "nowhere.pt"))
