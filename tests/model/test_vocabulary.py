"""Vocabularies beside published weights: IgBert's and ProtBert's, AntiBERTy's, and those that are refused."""

import json
import os
import subprocess
import sys

import pytest
import torch
from transformers import BertConfig, BertForMaskedLM

from contactlm.alphabet import CLS, EOS, LETTERS, MASK, PAD, encode
from contactlm.model.families.family import family_of
from contactlm.model.families.vocabulary import PROTBERT, read_vocabulary, tokens_of
from contactlm.model.loading import architecture_of, load_esm
from contactlm.types import ModelError
from tests.model.families import ANTIBERTY, FAMILIES, SIZES

PREFIXED = (
    "<cls>",
    "<pad>",
    "<eos>",
    "<unk>",
    "<mask>",
    "<cath>",
    "<af2>",
    *(f"▁{a}" for a in "ACDEFGHIKLMNPQRSTVWYX"),
)


def written(folder, vocabulary, kind):
    """The same vocabulary as each of the files that lie beside published weights."""
    if kind == "vocab.txt":
        (folder / kind).write_text("\n".join(vocabulary))  # as AntiBERTy's, without a line end
        return folder / kind
    numbers = {token: number for number, token in enumerate(vocabulary)}
    special = {token: numbers.pop(token) for token in vocabulary if token[0] in "[<"}
    vocab = [[token, 0.0] for token in vocabulary] if kind == "unigram" else numbers
    added = [{"id": number, "content": token, "special": True} for token, number in special.items()]
    (folder / "tokenizer.json").write_text(json.dumps({"added_tokens": added, "model": {"vocab": vocab}}))
    return folder / "tokenizer.json"


def saved(folder, size, **options):
    """A small masked language model of the stock class, as weights in pytorch_model.bin with a head of their own."""
    folder.mkdir(parents=True)
    torch.manual_seed(0)
    model = BertForMaskedLM(BertConfig(vocab_size=size, max_position_embeddings=40, **SIZES, **options))
    model.config.save_pretrained(folder)
    weights = {**model.state_dict(), "cls.species.weight": torch.zeros(6, 40), "cls.species.bias": torch.zeros(6)}
    torch.save(weights, folder / "pytorch_model.bin")
    return model


@pytest.mark.parametrize("kind", ["vocab.txt", "wordlevel", "unigram"])
@pytest.mark.parametrize(
    "vocabulary", [PROTBERT, tuple(ANTIBERTY), PREFIXED], ids=["ProtBert, IgBert", "AntiBERTy", "▁"]
)
def test_vocabularies_are_read_from_either_file(vocabulary, kind, tmp_path):
    read = read_vocabulary(written(tmp_path, vocabulary, kind))
    assert read == vocabulary
    tokens = tokens_of(read, len(read))
    own = tokens.own(torch.tensor([CLS, *encode(LETTERS), EOS, PAD, MASK])).tolist()
    spelt = [vocabulary[number].lstrip("▁") for number in own]
    known = "".join(letter if letter in "".join(vocabulary[5:]) else "?" for letter in LETTERS)
    assert "".join("?" if token.lower() in ("[unk]", "<unk>") else token for token in spelt[1:-3]) == known
    assert [token.lower()[1:-1] for token in (spelt[0], *spelt[-3:])] in (
        ["cls", "sep", "pad", "mask"],
        ["cls", "eos", "pad", "mask"],
    )


@pytest.mark.parametrize("place", ["beside", "one folder up"])
def test_weights_and_the_vocabulary_beside_them_make_a_model(place, tmp_path, caplog):
    folder = tmp_path / "trained_models" / "smooth"
    stock = saved(folder, 32)  # embeddings in a round number
    written(folder if place == "beside" else folder.parent, ANTIBERTY, "vocab.txt")
    with caplog.at_level("INFO"):
        model = load_esm(str(folder))
    lines = [record.message for record in caplog.records]
    assert sum("cls.species in the checkpoint are not used" in line for line in lines) == 1
    assert sum("5 letters not in its vocabulary (X, B, U, Z, O), read as [UNK]" in line for line in lines) == 1
    assert torch.equal(model.embeddings.word_embeddings.weight, stock.bert.embeddings.word_embeddings.weight)
    family = family_of(model.config)
    assert family.name == "BERT" and family.tokens.letters == FAMILIES["BERT"].tokens.letters
    model.save_pretrained(tmp_path / "again")  # with its vocabulary in config.json
    assert family_of(load_esm(str(tmp_path / "again")).config) is family
    assert family_of(load_esm(None, architecture_of(str(folder))).config) is family


def test_protbert_is_told_by_its_vocabulary_or_by_none(tmp_path):
    for kind in (None, "vocab.txt", "wordlevel"):
        saved(tmp_path / str(kind), len(PROTBERT))
        if kind is not None:
            written(tmp_path / kind, PROTBERT, kind)
        model = load_esm(str(tmp_path / str(kind)))
        assert family_of(model.config) is FAMILIES["ProtBert"] and not hasattr(model.config, "vocabulary")


@pytest.mark.parametrize(
    ("vocabulary", "message"),
    [
        (ANTIBERTY[:-1], "the vocabulary lacks Y; one with a token a residue"),
        ([token for token in ANTIBERTY if token != "[SEP]"], r"the vocabulary lacks \[SEP\]"),
        ([*ANTIBERTY, *(f"word{'s' * n}" for n in range(30))], "words of several letters"),
        ([*ANTIBERTY, *(f"[unused{n}]" for n in range(40))], "65 tokens in the vocabulary, but vocab_size is 64"),
        (None, "vocab_size and pad_token_id are .*put its vocab.txt or tokenizer.json next to the weights"),
    ],
)
def test_vocabularies_that_stand_for_no_residues_are_refused(vocabulary, message, tmp_path):
    saved(tmp_path / "model", 64)
    if vocabulary is not None:
        written(tmp_path / "model", vocabulary, "vocab.txt")
    with pytest.raises(ModelError, match=message) as refusal:
        load_esm(str(tmp_path / "model"))
    assert str(refusal.value).startswith(str(tmp_path / "model"))


def test_a_damaged_tokenizer_is_named(tmp_path):
    (tmp_path / "tokenizer.json").write_text('{"model": {"vocab": {"A": 0, "C": 2}}}')
    with pytest.raises(ModelError, match=r"tokenizer.json: no vocabulary can be read from it \(KeyError: 1\)"):
        read_vocabulary(tmp_path / "tokenizer.json")


@pytest.mark.slow
def test_a_vocabulary_in_the_hubs_cache_is_found(tmp_path):
    cached = tmp_path / "models--lab--antibodies"
    saved(cached / "snapshots" / "one", len(ANTIBERTY))
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("one")
    written(tmp_path, ANTIBERTY, "vocab.txt")
    code = (
        "import shutil\n"
        "from contactlm.model.loading import load_esm; from contactlm.model.families.family import family_of\n"
        "try:\n    load_esm('lab/antibodies')\nexcept Exception as error:\n    print(error)\n"
        f"shutil.copy({str(tmp_path / 'vocab.txt')!r}, {str(cached / 'snapshots' / 'one')!r})\n"
        "print(family_of(load_esm('lab/antibodies').config).name)"
    )
    offline = {**os.environ, "HF_HUB_CACHE": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    run = subprocess.run([sys.executable, "-c", code], env=offline, capture_output=True, text=True, check=True)
    assert "HF_HUB_OFFLINE forbids the download" in run.stdout
    assert run.stdout.splitlines()[-1] == "BERT"
