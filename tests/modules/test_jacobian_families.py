"""The categorical Jacobian of every family with a masked-language-model head: the double loop on the stock class."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers.models.esm import modeling_esm

from contactlm import JacobianModule
from contactlm.alphabet import CLS, EOS, LETTERS, encode
from contactlm.maps.jacobian import AMINO_ACIDS
from contactlm.maps.windows import WindowOptions
from contactlm.types import ModelError
from tests.maps.test_jacobian import published
from tests.model.families import ARCHITECTURES, FAMILIES, architecture, exact_rotary, small_model, stock_model

EVERY = pytest.mark.parametrize("name", ARCHITECTURES)
pytestmark = pytest.mark.filterwarnings("ignore:.*no published contact head")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONTACTLM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(modeling_esm, "apply_rotary_pos_emb", exact_rotary)


def stock_masked_lm(name: str, folder: Path):
    """The stock class, every weight of its head away from its first value, and where it is saved."""
    model, family = small_model(name), FAMILIES[name]
    config = copy.deepcopy(model.config)
    config._attn_implementation = "eager"
    whole = family.masked_lm_class(config)
    own = whole.base_model.state_dict()
    whole.base_model.load_state_dict({key: w for key, w in model.state_dict().items() if key in own})
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for key, weight in whole.named_parameters():
            if not key.startswith(whole.base_model_prefix):
                weight.add_(torch.empty_like(weight).normal_(0, 0.3, generator=generator))
    whole.save_pretrained(folder / "model")
    return whole.double().eval(), folder / "model"


def referee(name: str, whole):
    """Tokens of the ESM alphabet in, logits (B, T, 33) out: the twenty amino acids' at their places, else 0."""
    known = FAMILIES[name].tokens
    columns = [known.letters[letter] for letter in "LAGVSERTIDPKQNFYMHWC"] if known.letters else list(AMINO_ACIDS)

    def logits(row, mask, positions):
        with torch.no_grad():
            found = whole(input_ids=known.own(row), attention_mask=mask.long()).logits
        every = torch.zeros(*row.shape, 33, dtype=found.dtype)
        every[..., 4:24] = found[..., columns]
        return every

    return logits


def scores_of(module: JacobianModule, tokens: torch.Tensor) -> torch.Tensor:
    return next(iter(module.chain_maps(["a"], [tokens], module.windows, None))).scores


@EVERY
def test_scores_are_those_of_the_double_loop_on_the_stock_class(name: str, tmp_path: Path) -> None:
    whole, path = stock_masked_lm(name, tmp_path)
    tokens = torch.from_numpy(encode("MKXUBZOAC")).long()
    expected = published(referee(name, whole), tokens)
    module = JacobianModule(str(path)).double().eval()
    np.testing.assert_allclose(scores_of(module, tokens).numpy(), expected, rtol=0, atol=1e-10)
    assert expected.std() > 1e-3


@EVERY
def test_float32_is_near_it(name: str, tmp_path: Path) -> None:
    whole, path = stock_masked_lm(name, tmp_path)
    tokens = torch.from_numpy(encode("MKTAYIA")).long()
    expected = published(referee(name, whole), tokens)
    found = scores_of(JacobianModule(str(path)).eval(), tokens)
    np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=2e-5 * np.abs(expected).max())


@EVERY
def test_contact_logits_take_the_familys_own_tokens(name: str, tmp_path: Path) -> None:
    _, path = stock_masked_lm(name, tmp_path)
    module = JacobianModule(str(path)).eval()
    tokens = module.own_tokens(torch.tensor([[CLS, *encode("MKTAYIAX").tolist(), EOS]]))
    expected = torch.from_numpy(module.predict_map("MKTAYIAX").probability)
    off = ~torch.eye(8, dtype=torch.bool)
    torch.testing.assert_close(module.contact_logits(tokens)[0].sigmoid()[off], expected[off], rtol=0, atol=2e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ESM-1b", "ProtBert"])
def test_windows_keep_within_the_reach_of_learned_positions(name: str, tmp_path: Path) -> None:
    _, path = stock_masked_lm(name, tmp_path)
    module = JacobianModule(str(path)).eval()
    made = module.predict_map(3 * LETTERS)
    assert made.how["window"] == 56 and made.how["passes"]["two_segments"] > 0
    assert made.how["positions"] == "learned, jumps between segments shortened to 56 residues"
    assert np.isfinite(made.probability).all()
    with pytest.raises(ModelError, match="learned positions for 58"):
        list(module.chain_maps(["a"], [torch.full((57,), 5)], WindowOptions(None), None))


@EVERY
def test_a_random_head_is_as_the_stock_class_begins(name: str) -> None:
    first, again = (JacobianModule(None, architecture(name), init_seed=3).backbone for _ in range(2))
    assert torch.equal(first.letters.weight, again.letters.weight)
    own = FAMILIES[name].tokens.own(torch.tensor(AMINO_ACIDS))
    embedded = first.esm.get_input_embeddings().weight[own]
    assert torch.equal(first.letters.weight, embedded) is (name != "ESM C")  # which has a decoder of its own
    transform = first.transform.dense if "BERT" in name.upper() else first.transform[0]
    assert transform.weight.std() > 0


@pytest.mark.parametrize(("name", "lost"), [("ESM C", "lm_head.decoder.bias"), ("ProtBert", "cls.predictions.bias")])
def test_a_missing_head_is_named(name: str, lost: str, tmp_path: Path) -> None:
    stock_model(small_model(name), name).save_pretrained(tmp_path / "bare")
    wanted = FAMILIES[name].masked_lm_class.__name__
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(ModelError, match=rf"bare: no language-model head \({lost}, .*saved from {wanted}"):
            JacobianModule(str(tmp_path / "bare"))


@EVERY
def test_numbers_of_the_esm_alphabet_come_back(name: str) -> None:
    known = FAMILIES[name].tokens
    tokens = torch.tensor([[CLS, *encode(LETTERS).tolist(), 32, EOS, 1, 1]])
    again = known.common(known.own(tokens))
    assert torch.equal(known.own(again), known.own(tokens))  # the same to the family
    assert torch.equal(again[0, 1:21], tokens[0, 1:21]) and again[0, -4:].tolist() == [32, EOS, 1, 1]


def test_a_structure_letter_is_refused() -> None:
    module = JacobianModule(None, architecture("SaProt")).eval()
    with pytest.raises(ModelError, match="tokens: 5 stands for no letter of the ESM alphabet"):
        module.contact_logits(torch.tensor([[0, 25, 5, 2]]))
