"""RetrievalModule: what it starts from, what it is shown, what it must not see, and the command line."""

from __future__ import annotations

import csv
import inspect
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Callback

import contactlm
from contactlm import ContactModule, RetrievalModule
from contactlm.callbacks import ContactEvaluation, FlopsMeter, TokenBudget
from contactlm.cli.main import main
from contactlm.data.dataset import CropDataset, collate
from contactlm.data.store import ChainStore
from contactlm.maps.contact_map import ContactMap
from contactlm.maps.full_map import WindowOptions
from contactlm.metrics import ContactScores
from contactlm.model.evidence import Evidence, hit_channels
from contactlm.model.pair_head import PairOptions
from contactlm.retrieval.copy_homolog import copy_contacts, copy_homolog
from contactlm.retrieval.database import StructureDatabase
from contactlm.retrieval.evidence import collate_evidence
from contactlm.retrieval.exclude import Exclusion
from contactlm.runs.record_file import read_run
from contactlm.structure.contacts import contact_map
from contactlm.structure.parse import read_chains
from contactlm.types import ContactLMError, DataError, ModelError
from tests.callbacks.test_callbacks import data_module, trainer
from tests.conftest import make_tiny_esm, random_sequence
from tests.model.made import make_tokens
from tests.modules.test_contact import tokens_of, trainable
from tests.retrieval.made import QUERY, made_chain, mutated
from tests.runs.test_resume import Record

Folders = tuple[Path, Path]


def write_database(folder: Path, chains: dict[str, str]) -> Path:
    """Chains on random walks, with helices and strands here and there."""
    store = ChainStore.from_chains([made_chain(name, sequence, n) for n, (name, sequence) in enumerate(chains.items())])
    rng = np.random.default_rng(0)
    states = np.repeat(rng.integers(0, 3, len(store.tokens) // 5 + 1), 5)[: len(store.tokens)].astype(np.uint8)
    StructureDatabase.write(folder, store, states, ["somewhere"])
    return folder


@pytest.fixture(scope="module")
def relatives(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Relatives of QUERY, and others."""
    chains = {f"{n}abc_A": mutated(QUERY, 0.1 * n, n) for n in range(1, 5)}
    return write_database(tmp_path_factory.mktemp("db") / "db", chains | {"5xyz_A": random_sequence(50, 120)})


@pytest.fixture(scope="module")
def set_database(tmp_path_factory: pytest.TempPathFactory, pdb_folders: Folders) -> Path:
    """All chains of the training and test folders, with a relative of each."""
    paths = [path for folder in pdb_folders for path in sorted(folder.glob("[st]*.pdb"))]
    own = {chain.id: chain.sequence for path in paths for chain in read_chains(path)}
    near = {f"relative-{name}": mutated(sequence, 0.15, n) for n, (name, sequence) in enumerate(own.items())}
    return write_database(tmp_path_factory.mktemp("db") / "db", own | near)


def made(tiny_esm: Path, index: Path, **options: Any) -> RetrievalModule:
    return RetrievalModule(str(tiny_esm), index=str(index), **options)


def awake(module: RetrievalModule) -> RetrievalModule:
    """A module whose decoder and template bias have something to say; in evaluation mode."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        module.backbone.decoder.head_weight.normal_(generator=generator)
        if module.backbone.template is not None:
            module.backbone.template.weight.normal_(std=0.1, generator=generator)
    return module.eval()


def evidence_of(module: RetrievalModule, *sequences: str) -> Evidence:
    found = module.evidence.of([f"q{n}" for n in range(len(sequences))], sequences, module.exclusion)
    return collate_evidence(found, module.hits, 32, max(map(len, sequences)))


@pytest.mark.parametrize("options", [{}, {"lora": None}, {"attention": "plain", "template_bias": False}])
def test_untrained_it_is_the_plain_model_to_the_last_bit(
    tiny_esm: Path, relatives: Path, options: dict[str, Any]
) -> None:
    module = made(tiny_esm, relatives, **options).eval()
    options.pop("template_bias", None)
    plain = ContactModule(str(tiny_esm), **options).eval()
    tokens, evidence = make_tokens([160, 90, 40]), evidence_of(module, QUERY, QUERY[:90], random_sequence(3, 40))
    assert (evidence.segment_of >= 0).any((1, 2)).tolist() == [True, True, False]
    for known in (evidence, None):
        assert torch.equal(module.contact_logits(tokens, evidence=known), plain.contact_logits(tokens))
    assert np.array_equal(module.predict_map(QUERY).probability, plain.predict_map(QUERY).probability)


def test_what_is_known_changes_the_map(tiny_esm: Path, relatives: Path) -> None:
    module, stranger = awake(made(tiny_esm, relatives)), random_sequence(3, 60)
    found = module.predict_map(QUERY)
    assert found.how["hits"] == ["1abc_A", "2abc_A", "3abc_A", "4abc_A"]
    blind = torch.sigmoid(module.contact_logits(tokens_of(QUERY)))[0].detach().numpy()
    assert np.abs(found.probability - blind).max() > 0.05
    unknown = module.predict_map(stranger)
    blind = torch.sigmoid(module.contact_logits(tokens_of(stranger)))[0].detach().numpy()
    assert unknown.how["hits"] == []
    np.testing.assert_allclose(unknown.probability, blind, atol=1e-5)
    assert np.array_equal(found.probability, found.probability.T)


@pytest.mark.parametrize("options", [{}, {"lora": None}, {"template_bias": False, "decoder_layers": 1}])
@pytest.mark.parametrize("known", [True, False])
def test_every_trainable_weight_gets_a_gradient(
    tiny_esm: Path, relatives: Path, options: dict[str, Any], known: bool
) -> None:
    module = awake(made(tiny_esm, relatives, **options))
    evidence = evidence_of(module, QUERY, random_sequence(3, 90)) if known else None
    module.contact_logits(make_tokens([160, 90]), evidence=evidence).square().mean().backward()
    with_gradient = {name for name, p in module.named_parameters() if p.grad is not None}
    assert with_gradient == trainable(module)  # also where nothing is known: processes agree on what is reduced
    held = {id(p) for group in module.configure_optimizers().param_groups for p in group["params"]}  # type: ignore[union-attr]
    assert held == {id(p) for p in module.parameters() if p.requires_grad}
    if known:
        silent = {n for n, p in module.named_parameters() if p.grad is not None and not p.grad.any()}
        assert silent <= {n for n in silent if "lora_A" in n}  # LoRA's B is 0 at first


def test_the_decoder_has_a_learning_rate_of_its_own(tiny_esm: Path, relatives: Path) -> None:
    groups = made(tiny_esm, relatives, head_lr_factor=3).configure_optimizers().param_groups  # type: ignore[union-attr]
    assert [round(group["lr"] / groups[0]["lr"]) for group in groups] == [1, 3, 10]
    module = made(tiny_esm, relatives)
    own = [*module.backbone.decoder.parameters(), module.backbone.template.weight]  # type: ignore[union-attr]
    assert {id(p) for p in module.configure_optimizers().param_groups[-1]["params"]} == {id(p) for p in own}  # type: ignore[union-attr]


@pytest.mark.parametrize("scheme", ["random", "two_segments", "cut"])
def test_a_crop_is_shown_its_part_of_what_is_known_of_the_chain(tiny_esm: Path, relatives: Path, scheme: Any) -> None:
    module = made(tiny_esm, relatives)
    store = ChainStore.from_chains(
        [made_chain("q_A", QUERY), made_chain("r_A", QUERY[40:80]), made_chain("s_A", QUERY[::-1])]
    )
    module._stores = lambda: {"train": store}  # type: ignore[method-assign]
    dataset = CropDataset(store, 50, scheme, seed=3)
    batch: Any = collate([dataset[n] for n in range(3)])
    evidence = module.crop_evidence(batch)
    for row in range(3):
        length = int(batch["lengths"][row])
        whole = module.evidence.of(["x"], [store.sequence_of(int(batch["indices"][row]))], module.exclusion)[0]
        every = collate_evidence([whole], 4, 32, len(whole.segment_of[0]) if len(whole.ids) else 200)
        shown = batch["residues"][row, :length] if "residues" in batch else batch["starts"][row] + torch.arange(length)
        # the batch's own coordinates tell which residues it shows
        cb = store.cb_of(int(batch["indices"][row]))[shown.numpy()]
        np.testing.assert_array_equal(cb, batch["cb"][row, :length].numpy())
        assert torch.equal(evidence.segment_of[row, :, :length], every.segment_of[0][:, shown])
        torch.testing.assert_close(evidence.cb[row, :, :length], every.cb[0][:, shown], equal_nan=True)
        assert not (evidence.segment_of[row, :, length:] >= 0).any()
    assert ("residues" in batch) == (scheme == "two_segments")
    assert (evidence.segment_of >= 0).any()


def test_windows_are_shown_their_part_of_what_is_known_of_the_chain(
    tiny_esm: Path, relatives: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, calls = awake(made(tiny_esm, relatives)), []
    inner = module.contact_logits

    def noting(tokens: Any, mask: Any, positions: Any, evidence: Any) -> Any:
        calls.append((tokens, evidence))
        return inner(tokens, mask, positions, evidence)

    monkeypatch.setattr(module, "contact_logits", noting)
    windows = WindowOptions(60, max_cost=3 * 62**2)
    chains = [torch.tensor(tokens_of(s)[0, 1:-1].tolist()) for s in (QUERY, random_sequence(3, 80), QUERY[20:100])]
    maps = list(module.chain_maps(["a", "b", "c"], chains, windows, None))
    assert [len(full.how["hits"]) for full in maps] == [4, 0, 4] and len(calls) > 5
    whole = module.evidence.of(["a", "b", "c"], [QUERY, random_sequence(3, 80), QUERY[20:100]], module.exclusion)
    kinds, all_cb = [len(each.kinds) for each in whole], [each.cb for each in whole]
    assert kinds[0] > 8
    for tokens, evidence in calls:
        for row in range(len(tokens)):
            # every aligned residue shown comes from a chain of the same letters there
            known = evidence.cb[row].isfinite().all(-1).any(0).nonzero()[:, 0].tolist()
            for at in known[::7]:
                letter = int(tokens[row, 1 + at])
                cb = evidence.cb[row, :, at]
                sources = [
                    int(chain[at])
                    for chain, own in zip(chains, all_cb, strict=True)
                    for at in range(own.shape[1])
                    if np.array_equal(own[:, at], cb[: len(own)].numpy(), equal_nan=True)
                ]
                assert letter in sources


def test_a_constant_offset_changes_nothing(tiny_esm: Path, relatives: Path) -> None:
    module = awake(made(tiny_esm, relatives)).double()
    evidence, positions = evidence_of(module, QUERY), torch.arange(162)[None]
    with torch.no_grad():
        start = module.contact_logits(tokens_of(QUERY), None, positions, evidence)
        offset = module.contact_logits(tokens_of(QUERY), None, positions + 400, evidence)
    torch.testing.assert_close(offset, start, atol=5e-3, rtol=0)


@pytest.mark.slow
def test_dev_and_test_chains_are_never_evidence(
    tmp_path: Path, tiny_esm: Path, pdb_folders: Folders, set_database: Path
) -> None:
    module, used = made(tiny_esm, set_database), {}  # type: ignore[var-annotated]
    find = module.evidence.of

    def noting(ids: Any, sequences: Any, exclusion: Any) -> Any:
        found = find(ids, sequences, exclusion)
        for name, evidence in zip(ids, found, strict=True):
            used.setdefault(name, set()).update(evidence.ids)
        return found

    module.evidence.of = noting  # type: ignore[method-assign]
    data = data_module(pdb_folders, dev_fraction=0.3)
    runner = trainer(tmp_path, TokenBudget(500), ContactEvaluation(), num_sanity_val_steps=0)
    runner.fit(module, data)
    runner.validate(module, data, verbose=False)
    runner.test(module, data, verbose=False)
    held_out = {name for role in ("dev", "test") for name in data.chains[role].ids}
    assert set(used) == held_out | set(data.chains["train"].ids) and len(held_out) > 5
    everything = set().union(*used.values())
    assert any(everything) and all(name not in hits for name, hits in used.items())
    assert not everything & held_out
    assert {f"relative-{name}" in hits for name, hits in used.items()} == {True}
    runner.save_checkpoint(tmp_path / "a.ckpt")

    again = RetrievalModule.load_from_checkpoint(tmp_path / "a.ckpt", index=str(set_database), weights_only=True)
    test_alone = data_module(pdb_folders)
    test_alone.train_dir = None
    trainer(tmp_path, ContactEvaluation()).test(again, test_alone, verbose=False)
    assert set(data.chains["dev"].ids) <= {f"{e}_A" for e in again.exclusion.entries}
    assert not any(set(each.ids) & held_out for each in again.evidence._kept.values())
    own = again.evidence.of(["x"], [data.chains["test"].sequence_of(0)], again.exclusion)
    assert own[0].ids and not set(own[0].ids) & held_out
    free = RetrievalModule.load_from_checkpoint(tmp_path / "a.ckpt", index=str(set_database), weights_only=True)
    predicted = free.predict_map(data.chains["test"].sequence_of(0), id=data.chains["test"].ids[0])
    assert predicted.how["hits"][0] == data.chains["test"].ids[0]  # for predictions the protein itself may be used


def test_what_a_benchmark_scores_is_no_evidence(tiny_esm: Path, set_database: Path, pdb_folders: Folders) -> None:
    module = made(tiny_esm, set_database)
    [chain] = read_chains(pdb_folders[1] / "s0.pdb")
    [before] = module.evidence.of(["x"], [chain.sequence], module.exclusion)
    assert chain.id in before.ids  # for predictions, a known structure may be used
    module.hold_out([chain.id], [chain.sequence])
    [after] = module.evidence.of(["x"], [chain.sequence], module.exclusion)
    assert after.ids == (f"relative-{chain.id}",)


def test_copying_is_scored_beside_the_model(
    tmp_path: Path, tiny_esm: Path, pdb_folders: Folders, set_database: Path
) -> None:
    module, evaluation = made(tiny_esm, set_database), ContactEvaluation()
    data = data_module(pdb_folders, dev_fraction=0.3)
    (logged,) = trainer(tmp_path, evaluation).test(module, data, verbose=False)
    store, copied, identities = data.chains["test"], ContactScores(), []
    exclusion = Exclusion.of_proteins(store.ids, [store.sequence_of(n) for n in range(len(store))])
    for n in range(len(store)):
        (hits,) = module.evidence.search.search([store.sequence_of(n)], [store.ids[n]], exclusion)
        identities.append((hits[0].pair_identity, hits[0].coverage) if hits else (None, None))
        labels = torch.from_numpy(contact_map(np.array(store.cb_of(n))))
        probability = copy_homolog(hits, module.evidence.database, len(labels))
        copied.update(torch.from_numpy(probability), labels, store.ids[n], [n])
    assert [(row["hit_identity"], row["hit_coverage"]) for row in evaluation.rows] == [
        pytest.approx(each) for each in identities
    ]
    rows = {row["id"]: row["copy_mcc_sep6"] for row in evaluation.rows}
    assert rows == pytest.approx({row["id"]: row["mcc_sep6"] for row in copied.rows})
    expected = copied.compute()
    assert logged["test/copy_mcc_sep6"] == pytest.approx(expected["mcc_sep6"])
    assert logged["test/copy_mcc_sep6@hit>=50"] == pytest.approx(expected["mcc_sep6"])  # all have a near relative
    assert logged["test/proteins@hit>=50"] == len(store) and logged["test/mcc@hit>=50"] == logged["test/mcc"]


class Shown(Callback):
    """Notes the evidence that batches bring."""

    def __init__(self) -> None:
        self.batches: list[dict[str, Any]] = []

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: dict[str, Any], batch_idx: int) -> None:
        self.batches.append(batch)


def test_evidence_comes_with_the_batches_whoever_loads_them(
    tmp_path: Path, tiny_esm: Path, pdb_folders: Folders, set_database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[dict[str, Any]]] = []
    for workers in (0, 2):
        module, shown = made(tiny_esm, set_database, cache_dir=str(tmp_path)), Shown()
        data = data_module(pdb_folders, batch_size=3, num_workers=workers, crop="two_segments")
        with monkeypatch.context() as patch:
            patch.setattr(module, "crop_evidence", lambda *_: pytest.fail("made after the batch was loaded"))
            trainer(tmp_path, shown, TokenBudget(5 * 3 * 32), num_sanity_val_steps=0).fit(module, data)
        assert data._complete is None  # another module may use the data next
        seen.append(shown.batches)
        module._stores = lambda data=data: data.chains  # type: ignore[method-assign]
        for batch in shown.batches:
            expected = module.crop_evidence(batch)
            for one, other in zip(batch["evidence"], expected, strict=True):
                torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)
    assert [batch["ids"] for batch in seen[0]] == [batch["ids"] for batch in seen[1]] and len(seen[0]) == 5
    assert any((batch["evidence"].segment_of >= 0).any() for batch in seen[0])
    for one, two in zip(*seen, strict=True):
        for part, other in zip(one["evidence"], two["evidence"], strict=True):
            torch.testing.assert_close(part, other, rtol=0, atol=0, equal_nan=True)


def test_another_process_gets_no_evidence_but_makes_it(tiny_esm: Path, relatives: Path, tmp_path: Path) -> None:
    """Of processes that are started anew, as on macOS and Windows."""
    source = made(tiny_esm, relatives, cache_dir=str(tmp_path)).evidence
    (before,) = source.of(["q"], [QUERY], Exclusion.nothing())
    again = pickle.loads(pickle.dumps(source))
    assert not again._kept and again._bytes == 0 and source._kept
    (after,) = again.of(["q"], [QUERY], Exclusion.nothing())
    for name, value in vars(before).items():
        np.testing.assert_array_equal(value, getattr(after, name))


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_resuming_gives_the_unbroken_run(
    tmp_path: Path, tiny_esm: Path, pdb_folders: Folders, set_database: Path, workers: int
) -> None:
    from lightning.pytorch.callbacks import ModelCheckpoint

    def run(path: Path, resume: Path | None = None) -> tuple[Any, ...]:
        record, flops, budget = Record(), FlopsMeter(), TokenBudget(6 * 3 * 32)
        torch.manual_seed(0 if resume is None else 1)
        module = made(tiny_esm, set_database)
        saver = ModelCheckpoint(path, filename="{step}", every_n_train_steps=1, save_top_k=-1)
        runner = trainer(path, record, budget, flops, saver, enable_checkpointing=True)
        data = data_module(pdb_folders, batch_size=3, num_workers=0 if resume is None else workers)
        runner.fit(module, data, ckpt_path=resume)
        return record, flops, module

    whole, flops, module = run(tmp_path / "whole")
    assert len(whole.losses) == 6 and len(flops.by_shape) >= 1
    again, resumed_flops, resumed = run(tmp_path / "again", tmp_path / "whole" / "step=3.ckpt")
    assert again.losses == whole.losses[3:] and resumed_flops.total == flops.total
    for name, weight in module.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], weight), name
    saved = torch.load(tmp_path / "whole" / "step=3.ckpt", weights_only=True)
    assert set(saved["state_dict"]) == trainable(module)
    assert "index" not in saved["hyper_parameters"] and saved["hyper_parameters"]["hits"] == 4


def test_flops_are_those_of_the_plain_model_and_more(tiny_esm: Path, relatives: Path) -> None:
    from contactlm.callbacks.flops import flop_counter

    totals = []
    for module in (ContactModule(str(tiny_esm)), made(tiny_esm, relatives)):
        with flop_counter() as counter:
            module.contact_logits(make_tokens([50, 50])).sum().backward()
        totals.append(counter.get_total_flops())
    assert 1.1 * totals[0] < totals[1]


def test_public_name_and_options(tiny_esm: Path) -> None:
    assert "RetrievalModule" in contactlm.__all__
    own = inspect.signature(RetrievalModule.__init__).parameters
    theirs = inspect.signature(ContactModule.__init__).parameters
    expected = {"index", "hits", "decoder_layers", "decoder_width", "template_bias", "decoder_lr_factor"}
    assert set(own) - set(theirs) == expected | {"max_identity", "cache_dir", "options"}


def damage(folder: Path, how: str) -> None:
    manifest = folder / "manifest.json"
    about = json.loads(manifest.read_text())
    if how == "other format":
        manifest.write_text(json.dumps(about | {"version": 99}))
    elif how == "damaged":
        path = folder / about["states_file"]
        path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:])
    elif how == "missing file":
        (folder / about["chains_file"]).unlink()


@pytest.mark.parametrize("how", ["other format", "damaged", "missing file", "not there", "a folder of something else"])
def test_a_database_that_cannot_be_used_is_refused_with_the_command(tmp_path: Path, tiny_esm: Path, how: str) -> None:
    folder = tmp_path / "db"
    if how == "a folder of something else":
        folder.mkdir()
    elif how != "not there":
        damage(write_database(folder, {"1abc_A": QUERY}), how)
    with pytest.raises(DataError, match="contactlm index build --structures"):
        made(tiny_esm, folder)


def test_an_empty_database_is_refused(tmp_path: Path, tiny_esm: Path) -> None:
    store = ChainStore.from_chains([])
    with pytest.raises(DataError, match=r"holds no chain\. Make it again: contactlm index build"):
        StructureDatabase.write(tmp_path / "db", store, np.zeros(0, np.uint8), ["somewhere"])
    with pytest.raises(DataError, match="contactlm index build"):
        made(tiny_esm, tmp_path / "db")


def test_other_things_that_do_not_fit_are_refused(tmp_path: Path, tiny_esm: Path, relatives: Path) -> None:
    for options, message in (
        ({"index": None}, "index is not given"),
        ({"decoder_width": 50}, "multiple of 16"),
        ({"hits": 0}, "hits is 0"),
        ({"max_identity": 2.0}, "max_identity is 2.0"),
    ):
        with pytest.raises(ContactLMError, match=message):
            RetrievalModule(str(tiny_esm), **({"index": str(relatives)} | options))
    module = made(tiny_esm, relatives)
    checkpoint: dict[str, Any] = {"state_dict": module.state_dict()}
    module.on_save_checkpoint(checkpoint)
    other = make_tiny_esm(tmp_path / "other", seed=5)
    with pytest.raises(ModelError, match="was trained on the backbone"):
        made(other, relatives).on_load_checkpoint(checkpoint)
    with pytest.raises(ModelError, match="retrieval decoder"):
        ContactModule(str(tiny_esm)).on_load_checkpoint(checkpoint)


def test_another_backbone_never_meets_these_states(tmp_path: Path, tiny_esm: Path, relatives: Path) -> None:
    other = make_tiny_esm(tmp_path / "other", seed=5)
    states = [
        evidence_of(made(esm, relatives, cache_dir=str(tmp_path)), QUERY).states for esm in (tiny_esm, other, tiny_esm)
    ]
    assert torch.equal(states[0], states[2]) and not torch.allclose(states[0], states[1], atol=0.01)
    trained = made(tiny_esm, relatives, cache_dir=str(tmp_path / "new"))
    with torch.no_grad():
        for parameter in trained.backbone.esm.parameters():
            parameter.add_(0.1)
    assert torch.equal(evidence_of(trained, QUERY).states, states[0])  # they are the frozen backbone's


def test_weights_in_fewer_bits_have_states_of_their_own(tmp_path: Path, tiny_esm: Path, relatives: Path) -> None:
    modules = [
        made(tiny_esm, relatives, cache_dir=str(tmp_path), **options)
        for options in ({}, {"backbone_dtype": "bfloat16"})
    ]
    exact, rounded = (evidence_of(module, QUERY).states for module in modules)
    assert exact.dtype == rounded.dtype == torch.float32
    assert 0 < float((exact - rounded).abs().max()) < 0.1  # neither met the other's in the cache
    assert modules[0].backbone_checksum == modules[1].backbone_checksum
    assert modules[1].run_facts["equal"]["backbone_dtype"] == "bfloat16"
    a, b = (awake(module).predict_map(QUERY).probability for module in modules)
    assert 0 < np.abs(a - b).mean() < 0.05


@pytest.mark.slow
def test_fit_test_validate_predict(
    tmp_path: Path,
    tiny_esm: Path,
    pdb_folders: Folders,
    set_database: Path,
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["contactlm"])
    data = [f"--data.train_dir={pdb_folders[0]}", f"--data.test_dir={pdb_folders[1]}", "--data.min_length=10"]
    data += ["--data.read_workers=0", "--trainer.accelerator=cpu"]
    index = f"--model.index={set_database}"
    sizes = ["--data.crop_length=30", "--data.batch_size=4", "--trainer.val_check_interval=2"]
    fit = ["fit", "--config=retrieval", *data, f"--model.pretrained={tiny_esm}", *sizes, "--budget.max_tokens=250"]
    assert main(fit) == 1
    assert "index is not given" in capsys.readouterr().err
    assert main([*fit, index, "--model.decoder_width=32"]) == 0
    printed = capsys.readouterr().out
    run_folder = tmp_path / "runs" / "retrieval" / "version_0"
    best = next((run_folder / "checkpoints").glob("best-*.ckpt"))

    def scores(prefix: str, text: str) -> list[str]:
        return next(line.split() for line in text.splitlines() if line.startswith(prefix))

    assert f"copying hits {read_run(run_folder)['test']['copy_mcc_sep6']:.3f})" in printed
    record = read_run(run_folder)
    assert record["equal"]["structures"]["chains"] == len(StructureDatabase.open(set_database))
    assert record["reads"]["hits"] == 4
    with (run_folder / "test_scores.csv").open(newline="") as handle:
        rows = list(csv.DictReader(handle))
    copied = [float(row["copy_mcc"]) for row in rows if row["hit_identity"]]
    assert copied and np.mean([float(row["copy_mcc"]) for row in rows]) == pytest.approx(record["test"]["copy_mcc"])
    for command, prefix in (("test", "test"), ("validate", "dev")):
        assert main([command, f"--ckpt_path={best}", *data, index]) == 0  # the checkpoint names the class
        assert scores(prefix, capsys.readouterr().out) == scores(prefix, printed)
    query = mutated(random_sequence(3, 44), 0.1, 1)
    (tmp_path / "a.fasta").write_text(f">one\n{query}\n")
    predict = ["predict", f"--ckpt_path={best}", "--data.predict_paths=[a.fasta]", "--trainer.accelerator=cpu"]
    assert main([*predict, "--formats=[npz]", index]) == 0
    module = RetrievalModule.load_from_checkpoint(best, map_location="cpu", index=str(set_database), weights_only=True)
    expected = module.predict_map(query)
    written = ContactMap.load(tmp_path / "predictions" / "one.npz")
    np.testing.assert_allclose(written.probability, expected.probability, atol=1e-6)
    assert written.how["hits"] == expected.how["hits"] and "t03_A" in expected.how["hits"]
    capsys.readouterr()
    assert main(["export", "--ckpt_path", str(best), "--out", "exported"]) == 1


PAIR = PairOptions(read_outs=3, blocks=2, channels=4)


def test_with_a_pair_head_it_begins_from_the_copy(tiny_esm: Path, relatives: Path) -> None:
    """Log-odds of the copied contacts, less what a contact head starts with, are added where a hit knows the pair."""
    module, plain = made(tiny_esm, relatives, pair=PAIR).eval(), ContactModule(str(tiny_esm)).eval()
    tokens, evidence = make_tokens([160, 40]), evidence_of(module, QUERY, random_sequence(3, 40))
    evidence.cb[0, :, 5:30] = torch.nan
    with torch.no_grad():
        added = module.contact_logits(tokens, evidence=evidence) - plain.contact_logits(tokens)
        channels = hit_channels(evidence)
    identity = evidence.similarity[0, :, 0].tolist()
    copied = torch.from_numpy(copy_contacts(evidence.cb[0].numpy(), identity))
    resolved = evidence.cb[0].isfinite().all(-1)
    known = (resolved[:, :, None] & resolved[:, None]).any(0)
    assert 0.2 < known.float().mean() < 1
    expected = torch.logit(copied.clamp(0.02, 0.98)) + 3
    torch.testing.assert_close(added[0][known], expected[known], rtol=0, atol=1e-4)
    assert added[0][~known].abs().max() < 1e-5 and added[1].abs().max() < 1e-5
    torch.testing.assert_close(channels[0, 2][known], copied[known], rtol=0, atol=1e-5)
    share = (resolved[:, :, None] & resolved[:, None]).float().mean(0)
    torch.testing.assert_close(channels[0, 3], share)
    assert not channels[1].any() and not channels[0, :, ~known].any()


def test_a_pair_head_with_hits_trains_scores_and_predicts(
    tiny_esm: Path, set_database: Path, pdb_folders: Folders, tmp_path: Path
) -> None:
    module, data = made(tiny_esm, set_database, pair=PAIR), data_module(pdb_folders)
    before = {name: weight.detach().clone() for name, weight in module.named_parameters() if weight.requires_grad}
    run = trainer(tmp_path, ContactEvaluation(write_rows=False), max_steps=3, limit_val_batches=0)
    run.fit(module, data)
    after = dict(module.named_parameters())
    unmoved = [name for name, weight in before.items() if torch.equal(after[name], weight)]
    assert not [name for name in unmoved if "pair" in name or "copy" in name]
    (scores,) = run.test(module, data, verbose=False)
    assert "test/distance_lddt" in scores and "test/copy_mcc_sep6" in scores
    found = module.predict_map(QUERY, window=60)
    assert found.distance is not None and found.how["border"] == PAIR.reach
