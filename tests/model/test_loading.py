"""Loading backbones, what can go wrong with it, and their checksums."""

from __future__ import annotations

import json
import shutil
import urllib.error

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import EsmConfig, EsmForMaskedLM

from contactlm.model import loading
from contactlm.model.backbone import ContactBackbone, backbone_checksum, load_esm
from contactlm.model.families.esm import Esm2
from contactlm.model.lora import LoraOptions, add_lora
from contactlm.types import ModelError

from .made import TINY, make_tokens, tiny_esm


@pytest.fixture
def checkpoint(tmp_path):
    """A directory saved from EsmForMaskedLM, as the published ones were."""
    torch.manual_seed(0)
    config = EsmConfig(**{**Esm2.defaults, **TINY})
    EsmForMaskedLM(config).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def edit_config(directory, **changes):
    path = directory / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def drop_weights(directory, part):
    path = directory / "model.safetensors"
    weights = {name: value for name, value in load_file(path).items() if part not in name}
    save_file(weights, path, metadata={"format": "pt"})


def test_a_masked_language_model_loads_quietly(checkpoint, capfd, recwarn):
    esm = load_esm(str(checkpoint))
    printed = capfd.readouterr()
    assert printed.out == printed.err == ""
    assert not [w for w in recwarn if "contact" in str(w.message)]
    stored = load_file(checkpoint / "model.safetensors")
    for name, value in esm.named_parameters():
        stored_name = f"esm.{name}"
        if stored_name in stored:
            assert torch.equal(value, stored[stored_name]), name
    assert torch.equal(esm.contact_head.regression.weight, stored["esm.contact_head.regression.weight"])
    assert not esm.training


def test_the_published_architecture_loads(shared, tmp_path):
    source = shared / "esm2" / "esm2_t6_8M_UR50D"
    if not source.is_dir():
        pytest.skip("no checkpoint skeletons at hand")
    directory = tmp_path / "esm2"
    shutil.copytree(source, directory, copy_function=shutil.copyfile)
    directory.chmod(0o755)
    EsmForMaskedLM(EsmConfig.from_pretrained(source)).save_pretrained(directory)
    logits = ContactBackbone(load_esm(str(directory)))(make_tokens([12]))
    assert logits.shape == (1, 12, 12) and bool(logits.isfinite().all())


def test_half_precision_checkpoints_become_float32(checkpoint):
    weights = load_file(checkpoint / "model.safetensors")
    save_file(
        {name: value.half() for name, value in weights.items()},
        checkpoint / "model.safetensors",
        metadata={"format": "pt"},
    )
    edit_config(checkpoint, dtype="float16")
    assert {p.dtype for p in load_esm(str(checkpoint)).parameters()} == {torch.float32}


def test_random_weights_follow_the_seed_alone():
    torch.manual_seed(5)
    state = torch.random.get_rng_state()
    first, again, other = load_esm(None, TINY, seed=3), load_esm(None, TINY, seed=3), load_esm(None, TINY, seed=4)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert backbone_checksum(first) == backbone_checksum(again) != backbone_checksum(other)
    assert torch.equal(first.contact_head.regression.weight, again.contact_head.regression.weight)


def test_a_checkpoint_without_contact_head_is_named(checkpoint):
    drop_weights(checkpoint, "contact_head")
    state = torch.random.get_rng_state()
    with pytest.warns(UserWarning, match=r"no contact-head weights \(contact_head.regression.bias"):
        first = load_esm(str(checkpoint), seed=1)
    with pytest.warns(UserWarning):
        again = load_esm(str(checkpoint), seed=1)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(first.contact_head.regression.weight, again.contact_head.regression.weight)


def test_what_cannot_be_loaded_is_said(checkpoint, tmp_path):
    with pytest.raises(ModelError, match="both was given"):
        load_esm("x", TINY)
    with pytest.raises(ModelError, match="neither was given"):
        load_esm(None)
    with pytest.raises(ModelError, match="no such directory"):
        load_esm(str(tmp_path / "nothing"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match=r"no config\.json"):
        load_esm(str(tmp_path / "empty"))
    shutil.copy(checkpoint / "config.json", tmp_path / "empty")
    with pytest.raises(ModelError, match="no weights"):
        load_esm(str(tmp_path / "empty"))
    (tmp_path / "empty" / "model.safetensors").write_bytes(b"no tensors" * 50_000)
    with pytest.raises(ModelError, match="do not make an ESM2 model"):
        load_esm(str(tmp_path / "empty"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "bert"}, "model_type is 'bert'"),
        ({"position_embedding_type": "absolute"}, r"lacks 1 backbone weights, such as embeddings\.position_embeddings"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type is none of a known family"),
        ({"model_type": "t5"}, "'t5': ProtT5 adds a bias of its own to every score"),
        ({"model_type": "mamba"}, "'mamba': state-space .* have no attention maps"),
        ({"model_type": "x", "auto_map": {"AutoModel": "a.B"}}, "'x': it needs code that comes with the checkpoint"),
        ({"model_type": "x"}, "no family that contacts can be read from; supported are 'esm', 'esmc', 'bert'"),
        ({"vocab_size": 50}, r"vocab_size, pad_token_id and mask_token_id are \(50, 1, 32\); those of ESM2"),
        ({"is_decoder": True}, "decoder"),
        ({"hidden_size": 60}, "do not make an ESM2 model"),
        ({"num_hidden_layers": "x"}, "do not make an ESM2 model: .*num_hidden_layers"),
        ({"rope_theta": 7}, "do not make an ESM2 model: .*rope_theta"),
        ({"dtype": "float39"}, "do not make an ESM2 model: .*float39"),
        ({"num_hidden_layers": 10**7}, "10000000 layers, .* hold .* bytes: one of them is damaged"),
        ({"hidden_dropout_prob": float("nan")}, "hidden_dropout_prob: nan, which is not finite"),
    ],
)
def test_other_models_are_refused(checkpoint, changes, message):
    edit_config(checkpoint, **changes)
    with pytest.raises(ModelError, match=message):
        load_esm(str(checkpoint))


def test_a_checkpoint_without_backbone_weights_is_refused(checkpoint):
    drop_weights(checkpoint, "layer.1.attention.self.key")
    with pytest.raises(ModelError, match=r"lacks 2 backbone weights, such as encoder\.layer\.1"):
        load_esm(str(checkpoint))


@pytest.mark.parametrize(
    ("architecture", "message"),
    [
        ({"layers": 3}, "layers: no such argument"),
        ({**TINY, "num_attention_heads": 7}, "multiple of twice"),
        ({**TINY, "num_hidden_layers": "x"}, "num_hidden_layers"),
        ({**TINY, "position_embedding_type": "relative"}, "position_embedding_type is none of a known family"),
        ({**TINY, "model_type": "mamba"}, "no attention maps"),
        ({**TINY, "model_type": "esmc", "num_attention_heads": 40}, "head_dim 1; ESM C has"),
    ],
)
def test_architectures_that_cannot_be(architecture, message):
    with pytest.raises(ModelError, match=message):
        load_esm(None, architecture)


def test_a_hub_out_of_reach_is_said_at_once(monkeypatch, tmp_path):
    asked = []

    def refuse(url, timeout):
        asked.append(url)
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setattr(loading.urllib.request, "urlopen", refuse)
    monkeypatch.setattr(loading.constants, "HF_HUB_OFFLINE", False)
    with pytest.raises(
        ModelError, match=r"someone/esm2-nowhere: not in the local cache .*Name or service.*--local-dir"
    ):
        load_esm("someone/esm2-nowhere")
    assert len(asked) == 1
    with pytest.raises(ModelError, match="Name or service"):
        load_esm("some one")
    assert asked.pop().endswith("/some%20one")  # urlopen itself raises for a blank in a URL
    monkeypatch.setattr(loading.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match="HF_HUB_OFFLINE forbids"):
        load_esm("someone/esm2-nowhere")
    assert len(asked) == 1


def test_checksum_is_of_the_base_weights(tmp_path):
    esm = tiny_esm()
    checksum = backbone_checksum(esm)
    esm.save_pretrained(tmp_path / "saved")
    assert backbone_checksum(load_esm(str(tmp_path / "saved"))) == checksum
    with torch.no_grad():
        esm.contact_head.regression.weight.add_(1)
    assert backbone_checksum(esm) == checksum
    add_lora(esm, LoraOptions(target_modules=("query", "key", "dense")))
    assert backbone_checksum(esm) == checksum
    with torch.no_grad():
        esm.encoder.layer[0].attention.self.query.base_layer.weight[0, 0] += 1e-3
    assert backbone_checksum(esm) != checksum


@pytest.mark.parametrize("changes", [{"pad_token_id": 40}, {"mask_token_id": None}])
def test_other_token_numbers_are_refused(checkpoint, changes):
    edit_config(checkpoint, **changes)
    with pytest.raises(ModelError, match=r"vocab_size, pad_token_id and mask_token_id are .*those of ESM2"):
        load_esm(str(checkpoint))


def test_weights_that_are_not_finite_are_named(checkpoint):
    path = checkpoint / "model.safetensors"
    weights = load_file(path)
    weights["esm.encoder.layer.0.intermediate.dense.bias"][0] = float("nan")
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"encoder\.layer\.0\.intermediate\.dense\.bias has values that are not"):
        load_esm(str(checkpoint))
