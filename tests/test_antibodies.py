"""Published weights on real structures: AntiBERTy's wheel, and the antibody domains that come with the package."""

from __future__ import annotations

import csv
import gzip
import hashlib
import json
import re
import warnings
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from transformers import BertForMaskedLM, BertModel, BertTokenizer

from contactlm import ContactMap, ContactModule, predict_contacts, read_chains
from contactlm.cli.main import main
from contactlm.data.store import ChainStore
from contactlm.model.encoder import MaskedLanguageModel, load_language_model_head
from contactlm.model.loading import load_esm, located
from contactlm.modules.export import export_adapter, export_merged
from contactlm.retrieval.nearest import NearestChain
from contactlm.shipped import config_folder
from contactlm.structure.contacts import contact_labels
from contactlm.structure.numbered import find_residues
from tests.model.families import logits_of_maps

FOLDER = config_folder() / "antibodies"
AMINO_ACIDS = "ACDEFGHIKLMNPQRSTVWY"
needs_weights = pytest.mark.skipif(
    find_spec("antiberty") is None, reason='the wheel antiberty is not installed: pip install -e ".[antibodies]"'
)


def domains(role: str, number: int) -> list:
    files = sorted((FOLDER / role).glob("*.pdb.gz"))
    return [chain for path in files[:: len(files) // number][:number] for chain in read_chains(path)]


@pytest.fixture(scope="module")
def sequences() -> list[str]:
    return [chain.sequence.replace("X", "A") for chain in domains("test", 10)]


def read_out(module: ContactModule, seed: int = 0) -> ContactModule:
    """With a contact head and adapters that are not zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.empty_like(parameter).normal_(0, 0.1, generator=generator))
    return module.eval()


def test_structures_are_those_of_the_manifest() -> None:
    with (FOLDER / "MANIFEST.csv").open(newline="") as handle:
        rows = {row["path"]: row for row in csv.DictReader(handle)}
    found = {f"{path.parent.name}/{path.name}": path for path in FOLDER.glob("*/*.pdb.gz")}
    assert found.keys() == rows.keys() and len(found) == 129
    assert sum(name.startswith("train") for name in found) == 101
    for name, path in found.items():
        assert hashlib.sha256(gzip.decompress(path.read_bytes())).hexdigest().startswith(rows[name]["sha256"])
    assert sum(path.stat().st_size for path in found.values()) < 2_000_000
    entries = {role: {Path(name).name[:4] for name in found if name.startswith(role)} for role in ("train", "test")}
    assert not entries["train"] & entries["test"]


def test_insertion_codes_of_kabat_numbering_are_shown_everywhere(tmp_path: Path) -> None:
    path = FOLDER / "train" / "1bgx_H.pdb.gz"
    (chain,) = read_chains(path)
    residues = find_residues(path, chain.sequence)
    at = {number: n for n, number in enumerate(residues.numbers)}
    assert {"52", "52A", "82", "82A", "82B"} <= at.keys() and len(at) == len(chain)
    assert [at["52A"] - at["52"], at["82B"] - at["82"], at["83"] - at["82"]] == [1, 2, 3]
    probability = np.zeros((len(chain), len(chain)), np.float32)
    probability[at["52A"], at["82B"]] = probability[at["82B"], at["52A"]] = 0.9
    shown = ContactMap(chain.id, chain.sequence, probability).on_structure(path)
    texts = {suffix: shown.save(tmp_path / f"x{suffix}").read_text() for suffix in (".pml", ".cxc", ".csv", ".html")}
    assert re.search(r"resi 52A and name CA\).*resi 82B and name CA\)", texts[".pml"])
    assert "#1/H:52A@CA #1/H:82B@CA" in texts[".cxc"]
    assert {"number_i": "52A", "number_j": "82B"}.items() <= next(csv.DictReader(texts[".csv"].splitlines())).items()
    assert '"52A"' in texts[".html"] and '"82B"' in texts[".html"]


def test_copying_the_nearest_chain() -> None:
    known = domains("train", 6)
    nearest = NearestChain(ChainStore.from_chains(known))
    for chain in known:
        copied, (identity, coverage) = nearest.copy(chain.sequence)
        labels = contact_labels(torch.tensor(chain.cb)[None])[0].numpy()
        assert ((copied > 0.5) == (labels == 1))[labels >= 0].all() and coverage == 1
        assert identity == 1
    query = known[2].sequence
    shorter, (identity, coverage) = nearest.copy(f"{query[4:30]}A{query[30:70]}")
    assert shorter.shape == (67, 67) and identity > 0.9 and coverage == pytest.approx(66 / 67)
    nothing, near = nearest.copy("X" * 12)
    assert np.isnan(near).all() and (nothing > 0.5).sum() == 12 + 2 * (11 + 10)


def test_a_wheel_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("contactlm.model.loading.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r'antiberty cannot be imported .*pip install "contactlm\[antibodies\]"'):
        ContactModule("antiberty")
    assert located("someone/model") == "someone/model" and located("esm2_t6_8M_UR50D") == "esm2_t6_8M_UR50D"
    monkeypatch.undo()
    assert located("torch") == "torch"  # a package without weights


@needs_weights
def test_logits_are_those_of_stored_maps(sequences: list[str]) -> None:
    module = read_out(ContactModule("antiberty", lora=None, freeze_backbone=True))
    folder = located("antiberty")
    stock = BertModel.from_pretrained(folder, attn_implementation="eager", add_pooling_layer=False).eval()
    tokenizer = BertTokenizer(str(Path(folder).parent / "vocab.txt"), do_lower_case=False)
    tokens = tokenizer([" ".join(sequence) for sequence in sequences[:4]], return_tensors="pt", padding=True)
    mask = tokens["attention_mask"].bool()
    inside = mask & (tokens["input_ids"] != tokenizer.sep_token_id)
    with torch.no_grad():
        maps = stock(tokens["input_ids"], attention_mask=mask.long(), output_attentions=True).attentions
        expected = logits_of_maps(maps, *module.head_parameters(), inside)
        found = module.contact_logits(tokens["input_ids"])
    assert expected.std() > 0.01
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


@pytest.mark.slow
@needs_weights
def test_masked_residues_are_put_back(sequences: list[str]) -> None:
    """As the published model does: vocabulary and weights are right."""
    esm = load_esm("antiberty")
    module = ContactModule("antiberty", lora=None)
    known = module.family.tokens
    letters = [known.letters[letter] for letter in AMINO_ACIDS]
    model = MaskedLanguageModel(esm, load_language_model_head(esm, "antiberty"), letters).eval()
    right = []
    for sequence in sequences:
        tokens = torch.tensor([known.cls, *(known.letters[letter] for letter in sequence), known.eos])
        at = torch.arange(1, len(sequence) + 1, 10)
        masked = tokens.repeat(len(at), 1)
        masked[torch.arange(len(at)), at] = known.mask
        with torch.no_grad():
            told = model(masked)[torch.arange(len(at)), at].argmax(-1)
        right += [AMINO_ACIDS[n] == sequence[i - 1] for n, i in zip(told.tolist(), at.tolist(), strict=True)]
    assert sum(right) / len(right) > 0.8


@needs_weights
def test_what_is_left_out_is_told(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        module = ContactModule("antiberty")
    told = "\n".join(record.message for record in caplog.records)
    assert "cls.chain, cls.graft, cls.species in the checkpoint" in told
    assert "5 letters not in its vocabulary (X, B, U, Z, O), read as [UNK]" in told
    assert "attention_probs_dropout_prob of the model's config.json is 0.1; 0 is taken" in told
    assert module.family.name == "BERT" and module.windows.window == 510 and module.head_lr_factor == 10


@pytest.mark.slow
@needs_weights
def test_exports_are_read_back(sequences: list[str], tmp_path: Path) -> None:
    module = read_out(ContactModule("antiberty"))
    expected = module.predict_map(sequences[0]).probability
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adapter = ContactModule.from_adapter(export_adapter(module, tmp_path / "adapter")).eval()
        merged = export_merged(module, tmp_path / "merged")
    np.testing.assert_allclose(adapter.predict_map(sequences[0]).probability, expected, atol=1e-5)
    found = predict_contacts(sequences[0], model=str(merged))
    np.testing.assert_allclose(found.probability, expected, atol=1e-5)
    tokenizer = BertTokenizer(str(merged / "vocab.txt"), do_lower_case=False)
    assert tokenizer.convert_tokens_to_ids(["A", "Y", "[SEP]"]) == [5, 24, 3]
    assert isinstance(BertForMaskedLM.from_pretrained(merged), BertForMaskedLM)  # its vocabulary does not disturb
    assert json.loads((merged / "config.json").read_text())["vocabulary"][5] == "A"


@needs_weights
@pytest.mark.slow
def test_the_config_runs_to_its_scores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["contactlm"])
    monkeypatch.setenv("CONTACTLM_CACHE", str(tmp_path / "cache"))
    assert main(["fit", "--config", "antibodies", "--budget.max_tokens", "1500", "--trainer.accelerator", "cpu"]) == 0
    told, run = capsys.readouterr().out, tmp_path / "runs" / "antibodies" / "version_0"
    assert re.search(r"test  mcc_sep6 .*\(trivial 0.000, copying hits 0.88\d\)", told)
    assert re.search(r"^next +contactlm predict --ckpt_path \S+ --data.predict_paths my.fasta$", told, re.MULTILINE)
    page = Path(re.search(r"^map +(\S+\.html)", told, re.MULTILINE)[1])
    assert "numbered as in" in page.read_text()
    assert yaml.safe_load((run / "config.yaml").read_text())["model"]["head_lr_factor"] == 30
    scores = json.loads((run / "run.json").read_text())["test"]
    assert scores["proteins"] == 28 and scores["copy_p_at_L_long"] > 0.9
