"""Exported adapters and merged checkpoints against stock PEFT and transformers."""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import lightning
import numpy as np
import pytest
import torch
import yaml
from peft import PeftModel
from transformers import AutoTokenizer, EsmModel

import contactlm
from contactlm import ContactModule, predict_contacts
from contactlm.alphabet import encode
from contactlm.cli.main import main
from contactlm.metrics.calibration import Calibration
from contactlm.model.lora import LoraOptions
from contactlm.modules.card import SEQUENCE as SHOWN_SEQUENCE
from contactlm.modules.export import export_adapter, export_merged
from contactlm.types import ContactLMError, ModelError
from tests.conftest import make_tiny_esm, random_sequence

SEQUENCE = random_sequence(7, 37)


def tokens() -> torch.Tensor:
    return torch.tensor([[0, *encode(SEQUENCE).tolist(), 2]])


def trained(tiny_esm: Path | str | None, **options: object) -> ContactModule:
    """A module whose trainable weights are all random, in evaluation mode."""
    module = ContactModule(None if tiny_esm is None else str(tiny_esm), **options)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    module.tuned_threshold = 0.3125
    return module.eval()


def stock_map(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model.eval().predict_contacts(tokens(), torch.ones_like(tokens()))[0]


def own_logits(module: ContactModule) -> torch.Tensor:
    with torch.no_grad():
        return module.eval().contact_logits(tokens())[0]


def save_checkpoint(module: ContactModule, path: Path) -> Path:
    trainer = lightning.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    trainer.strategy.connect(module)
    trainer.save_checkpoint(path)
    return path


LORA_OPTIONS = [
    LoraOptions(),
    LoraOptions(r=3, alpha=12, dropout=0.0, target_modules=("query", "key", "value", "attention.output.dense")),
]


@pytest.mark.parametrize("lora", LORA_OPTIONS, ids=["default", "other"])
def test_an_adapter_gives_the_same_map_with_stock_peft(tmp_path: Path, tiny_esm: Path, lora: LoraOptions) -> None:
    module = trained(tiny_esm, lora=lora)
    expected = own_logits(module)
    assert (expected - own_logits(ContactModule(str(tiny_esm)))).abs().max() > 0.1  # the training shows
    out = export_adapter(module, tmp_path / "adapter")
    backbone = EsmModel.from_pretrained(tiny_esm, add_pooling_layer=False, attn_implementation="eager")
    torch.testing.assert_close(stock_map(PeftModel.from_pretrained(backbone, out)), expected.sigmoid())
    config = json.loads((out / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(tiny_esm)
    assert (config["r"], config["lora_alpha"]) == (lora.r, lora.alpha)
    assert torch.equal(own_logits(module), expected)  # the module is as it was


@pytest.mark.parametrize("lora", LORA_OPTIONS, ids=["default", "other"])
def test_an_adapter_is_read_back(tmp_path: Path, tiny_esm: Path, lora: LoraOptions) -> None:
    module = trained(tiny_esm, lora=lora)
    out = export_adapter(module, tmp_path / "adapter")
    again = ContactModule.from_adapter(out, window=500)
    assert again.training and again.windows.window == 500
    assert torch.equal(own_logits(again), own_logits(module))
    assert again.call_threshold == 0.3125
    assert {n for n, p in again.named_parameters() if p.requires_grad} == module.saved_names()
    by_path = predict_contacts(SEQUENCE, model=out)
    assert by_path.threshold == 0.3125
    torch.testing.assert_close(torch.tensor(by_path.probability), own_logits(module).sigmoid())


def test_an_adapter_that_peft_wrote_is_read(tmp_path: Path, tiny_esm: Path) -> None:
    module = trained(tiny_esm)
    out = export_adapter(module, tmp_path / "adapter")
    backbone = EsmModel.from_pretrained(tiny_esm, add_pooling_layer=False)
    PeftModel.from_pretrained(backbone, out).save_pretrained(tmp_path / "theirs")
    again = ContactModule.from_adapter(tmp_path / "theirs", pretrained=str(tiny_esm))
    assert torch.equal(own_logits(again), own_logits(module)) and again.tuned_threshold is None


def test_an_adapter_stays_on_its_backbone(tmp_path: Path, tiny_esm: Path) -> None:
    out = export_adapter(trained(tiny_esm), tmp_path / "adapter")
    other = make_tiny_esm(tmp_path / "other", seed=1)
    with pytest.raises(ModelError, match="has other weights"):
        ContactModule.from_adapter(out, pretrained=str(other))
    moved = tmp_path / "moved"
    tiny_copy(tiny_esm, moved)
    assert torch.equal(
        own_logits(ContactModule.from_adapter(out, pretrained=str(moved))), own_logits(ContactModule.from_adapter(out))
    )


def tiny_copy(source: Path, target: Path) -> Path:
    target.mkdir()
    for file in source.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    return target


@pytest.mark.parametrize(
    "options",
    [{}, {"lora": LORA_OPTIONS[1]}, {"lora": None}, {"lora": None, "freeze_backbone": True}],
    ids=["lora", "more lora", "full", "head"],
)
def test_a_merged_checkpoint_is_a_stock_one(tmp_path: Path, tiny_esm: Path, options: dict[str, object]) -> None:
    module = trained(tiny_esm, **options)
    expected = own_logits(module)
    out = export_merged(module, tmp_path / "merged")
    stock, report = EsmModel.from_pretrained(out, add_pooling_layer=False, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    torch.testing.assert_close(stock_map(stock), expected.sigmoid())
    torch.testing.assert_close(stock_map(EsmModel.from_pretrained(out)), expected.sigmoid())
    again = ContactModule(pretrained=str(out))
    torch.testing.assert_close(own_logits(again), expected, rtol=1e-4, atol=1e-5)
    assert again.call_threshold == 0.3125
    assert ContactModule(pretrained=str(out), threshold=0.5).call_threshold == 0.5
    assert torch.equal(own_logits(module), expected)


def test_a_merged_checkpoint_of_a_random_backbone(tmp_path: Path) -> None:
    architecture = {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64}
    module = trained(None, architecture=architecture, lora=None)
    state = torch.get_rng_state()
    out = export_merged(module, tmp_path / "merged")
    assert torch.equal(torch.get_rng_state(), state)
    torch.testing.assert_close(stock_map(EsmModel.from_pretrained(out)), own_logits(module).sigmoid())


CALIBRATION = Calibration("platt", (1.5, 0.5, 0.8, 1.2), (0.3, -0.4, 0.1, -1.0), 0.35)


@pytest.mark.parametrize("calibration", [None, CALIBRATION], ids=["as it is", "calibrated"])
@pytest.mark.parametrize("export", [export_adapter, export_merged])
def test_the_lines_of_the_card_give_the_maps_of_predict(
    tmp_path: Path, tiny_esm: Path, monkeypatch: pytest.MonkeyPatch, export: Any, calibration: Calibration | None
) -> None:
    module = trained(tiny_esm)
    module.calibration = calibration
    monkeypatch.chdir(tmp_path)
    out = export(module, "shared")
    card = (out / "README.md").read_text()
    head = yaml.safe_load(card.split("---")[1])
    assert head["license"] == "mit" and "base_model" not in head  # a folder of this computer is no name of the hub
    assert contactlm.__version__ in card and "0.3125" in card
    own, *stock = [block.split("```")[0] for block in card.split("```python")[1:]]
    names: dict[str, Any] = {}
    exec(own + "\n".join(stock), names)
    expected = module.predict_map(SHOWN_SEQUENCE)
    assert f"above {expected.threshold:.4g}" in card
    assert names["contacts"].threshold == expected.threshold == (0.3125 if calibration is None else 0.35)
    probability = torch.tensor(expected.probability)
    torch.testing.assert_close(torch.tensor(names["contacts"].probability), probability, rtol=0, atol=1e-5)
    found = names["raw" if calibration is None else "calibrated"]
    upper = torch.ones_like(found).triu(1).bool()
    torch.testing.assert_close(found[upper], probability[upper], rtol=0, atol=1e-5)
    assert (calibration is None) == ("raw" in names and "calibrated" not in names)


def test_the_card_tells_of_the_run(tmp_path: Path, tiny_esm: Path) -> None:
    scores = {"proteins": 3.0, "mcc_sep6": 0.25, "trivial_mcc_sep6": 0.0}
    equal = {"train": {"chains": 1200, "residues": 345678}, "synthetic": True}
    record = {"equal": equal, "steps": 7, "tokens": 5000, "test": scores, "dev": None}
    card = (export_merged(trained(tiny_esm), tmp_path / "out", record=record) / "README.md").read_text()
    assert "| test | 3 | `mcc_sep6` | 0.250 | 0.000 |" in card and "1,200 chains (345,678 residues)" in card
    assert "nothing about biology" in card and "5,000 tokens in 7 steps" in card
    card = (export_merged(trained(tiny_esm), tmp_path / "plain") / "README.md").read_text()
    assert "no record" in card and "Unknown for this checkpoint" in card


FROM_THE_HUB = """
import sys, warnings
import huggingface_hub
import numpy as np
from contactlm import ContactModule, predict_contacts
warnings.simplefilter("error")
for name in ("online", "offline"):  # from the cache, with no hub
    maps = [predict_contacts("MKTAYIAKQRQISFVKSHFSRQLEE", model=model) for model in (
        ContactModule("someone/merged"), ContactModule.from_adapter("someone/adapter", pretrained=sys.argv[1]),
        "someone/merged",
    )]
    np.savez(name, *[each.probability for each in maps], thresholds=[each.threshold for each in maps])
    try:
        ContactModule.from_adapter("someone/nothing")
    except Exception as error:
        print(name, type(error).__name__, error)
    huggingface_hub.constants.HF_HUB_OFFLINE = True
    huggingface_hub.constants.ENDPOINT = "http://localhost:9"
"""


@pytest.mark.slow
def test_exports_are_read_back_from_the_hub(tmp_path: Path, tiny_esm: Path, hub: tuple[Path, str]) -> None:
    folder, url = hub
    module = trained(tiny_esm)
    module.calibration = CALIBRATION
    export_adapter(module, folder / "someone" / "adapter")
    export_merged(module, folder / "someone" / "merged")
    environment = {**os.environ, "HF_ENDPOINT": url, "HF_HOME": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "0"}
    environment["HF_HUB_DISABLE_XET"] = "1"
    command = [sys.executable, "-c", FROM_THE_HUB, str(tiny_esm)]
    run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    expected = module.predict_map("MKTAYIAKQRQISFVKSHFSRQLEE").probability
    for name in ("online", "offline"):
        assert f"{name} ModelError someone/nothing" in run.stdout
        with np.load(tmp_path / f"{name}.npz") as saved:
            assert saved["thresholds"].tolist() == [0.35] * 3
            for each in ("arr_0", "arr_1", "arr_2"):
                np.testing.assert_allclose(saved[each], expected, atol=1e-5)


class _Hub(BaseHTTPRequestHandler):
    """As much of the Hugging Face hub as its client asks for: what a repository has, and its files."""

    folder: Path

    def do_HEAD(self) -> None:
        self._answer(False)

    def do_GET(self) -> None:
        self._answer(True)

    def _answer(self, with_body: bool) -> None:
        commit, path = "a" * 40, self.path.partition("?")[0].lstrip("/")
        if path.startswith("api/models/"):
            repository = self.folder / "/".join(path.split("/")[2:4])
            files = [
                {"type": "file", "path": f.name, "size": f.stat().st_size, "oid": "b" * 40}
                for f in repository.glob("*")
            ]
            about = {"id": path, "sha": commit, "siblings": [{"rfilename": each["path"]} for each in files]}
            body = json.dumps(files if "/tree/" in path else about).encode() if files else None
        else:
            owner, name, _, _, *rest = [*path.split("/"), "", "", "", ""]
            file = self.folder / owner / name / "/".join(filter(None, rest))
            body = file.read_bytes() if file.is_file() else None
        self.send_response(404 if body is None else 200)
        if body is None:
            self.send_header("X-Error-Code", "EntryNotFound" if "/resolve/" in self.path else "RepoNotFound")
        self.send_header("X-Repo-Commit", commit)
        self.send_header("ETag", f'"{hashlib.sha256(body or b"").hexdigest()}"')
        self.send_header("Content-Length", str(len(body or b"")))
        self.end_headers()
        if with_body and body:
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    folder = tmp_path / "hub"
    (folder / "someone").mkdir(parents=True)
    with ThreadingHTTPServer(("127.0.0.1", 0), type("Hub", (_Hub,), {"folder": folder})) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield folder, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_stock_transformers_finds_the_tokenizer(tmp_path: Path, tiny_esm: Path) -> None:
    for export in (export_adapter, export_merged):
        out = export(trained(tiny_esm), tmp_path / "out", overwrite=True)
        batch = AutoTokenizer.from_pretrained(out)(SEQUENCE, return_tensors="pt")
        assert torch.equal(batch["input_ids"], tokens())


@pytest.mark.parametrize("options", [{"lora": None}, {"lora": None, "freeze_backbone": True}], ids=["full", "head"])
def test_without_lora_there_is_no_adapter(tmp_path: Path, tiny_esm: Path, options: dict[str, object]) -> None:
    with pytest.raises(ModelError, match="without LoRA; use --merge"):
        export_adapter(trained(tiny_esm, **options), tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_an_adapter_needs_a_backbone_with_a_name(tmp_path: Path) -> None:
    architecture = {"num_hidden_layers": 1, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 16}
    with pytest.raises(ModelError, match="randomly initialised; use --merge"):
        export_adapter(trained(None, architecture=architecture), tmp_path / "out")


def test_a_failed_export_leaves_nothing(tmp_path: Path, tiny_esm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = trained(tiny_esm)
    export_adapter(module, tmp_path / "out")
    before = (tmp_path / "out" / "adapter_model.safetensors").stat().st_mtime_ns

    def fail(*_: object) -> None:
        assert (tmp_path / ".out.tmp" / "adapter_config.json").is_file()  # half written, under another name
        raise KeyboardInterrupt

    (tmp_path / ".out.tmp").mkdir()  # what a killed export left
    (tmp_path / ".out.tmp" / "stale").touch()
    with monkeypatch.context() as patch:
        patch.setattr("contactlm.modules.export.write_about", fail)
        with pytest.raises(KeyboardInterrupt):
            export_adapter(module, tmp_path / "out", overwrite=True)
    assert [file.name for file in tmp_path.iterdir()] == ["out"]
    assert (tmp_path / "out" / "adapter_model.safetensors").stat().st_mtime_ns == before
    export_adapter(module, tmp_path / "out", overwrite=True)
    assert [file.name for file in tmp_path.iterdir()] == ["out"]
    assert not (tmp_path / "out" / "stale").exists()


def test_what_lies_at_the_place_is_safe(tmp_path: Path, tiny_esm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = trained(tiny_esm)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    with pytest.raises(ContactLMError, match="not empty; give another"):
        export_adapter(module, tmp_path / "mine")
    with pytest.raises(ContactLMError, match="was not written by"):
        export_adapter(module, tmp_path / "mine", overwrite=True)
    with pytest.raises(ContactLMError, match="is a file"):
        export_adapter(module, tmp_path / "mine" / "thesis.tex", overwrite=True)
    with pytest.raises(ContactLMError, match="cannot be written"):
        export_merged(module, tmp_path / "mine" / "thesis.tex" / "below")
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    with pytest.raises(ContactLMError, match="current directory"):
        export_adapter(module, ".")
    monkeypatch.chdir(tmp_path)
    assert export_adapter(module, "empty") == tmp_path / "empty"
    assert export_adapter(module, "new/deep") == tmp_path / "new" / "deep"
    assert (tmp_path / "mine" / "thesis.tex").read_text() == "x"


def test_other_adapters_are_refused(tmp_path: Path, tiny_esm: Path) -> None:
    out = export_adapter(trained(tiny_esm), tmp_path / "adapter")
    config_file, weights_file = out / "adapter_config.json", out / "adapter_model.safetensors"
    config = json.loads(config_file.read_text())
    odd = ({"lora_bias": True}, {"peft_type": "IA3"}, {"bias": "all"}, {"init_lora_weights": "pissa"})
    for content in ("[]", json.dumps({**config, "base_model_name_or_path": 7})):
        config_file.write_text(content)
        with pytest.raises(ModelError, match="the adapter cannot be read"):
            ContactModule.from_adapter(out)
    for change in (*odd, {"target_modules": ["query", 7]}):
        config_file.write_text(json.dumps({**config, **change}))
        with pytest.raises(ModelError, match=f"{next(iter(change))}.* only LoRA and DoRA"):
            ContactModule.from_adapter(out)
    config_file.write_text(json.dumps({**config, "r": 4}))
    with pytest.raises(ModelError, match=r"does not fit.*has shape \(8, 32\)"):
        ContactModule.from_adapter(out)
    config_file.write_text(json.dumps({**config, "target_modules": ["query", "value"]}))
    with pytest.raises(ModelError, match=r"value\.lora_A\.weight is missing"):
        ContactModule.from_adapter(out)
    config_file.write_text(json.dumps(config))
    about = (out / "contactlm.json").read_text()
    (out / "contactlm.json").write_text("{")
    with pytest.raises(ModelError, match=r"contactlm\.json: cannot be read"):
        ContactModule.from_adapter(out)
    (out / "contactlm.json").write_text(about)
    weights_file.write_bytes(weights_file.read_bytes()[:100])
    with pytest.raises(ModelError, match="cannot be read"):
        ContactModule.from_adapter(out)
    with pytest.raises(ModelError, match=r"no adapter_config\.json"):
        ContactModule.from_adapter(tmp_path / "nowhere")


def test_the_command(tmp_path: Path, tiny_esm: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    module = trained(tiny_esm)
    save_checkpoint(module, tmp_path / "run.ckpt")
    assert main(["export", "--ckpt_path", "run.ckpt", "--out", "adapter"]) == 0
    assert capsys.readouterr().out == f"adapter written to {tmp_path / 'adapter'}\n"
    assert torch.equal(own_logits(ContactModule.from_adapter("adapter")), own_logits(module))
    for wrong, message in (
        ("--ckpt_path=adapter", "is an exported adapter, which Python reads"),
        ("--model.pretrained=adapter", "an adapter, and no whole model"),
    ):
        assert main(["predict", wrong, "--data.predict_paths=."]) == 1
        assert message in capsys.readouterr().err
    moved = tiny_copy(tiny_esm, tmp_path / "moved")
    command = ["export", "--ckpt_path=run.ckpt", "--merge", "--out=merged", f"--pretrained={moved}"]
    assert main(command) == 0
    torch.testing.assert_close(stock_map(EsmModel.from_pretrained("merged")), own_logits(module).sigmoid())
    assert main(command) == 1
    assert "merged is not empty" in capsys.readouterr().err
    assert main([*command, "--overwrite"]) == 0
    for folder, weights, other in (("adapter", "adapter_model", "adapter_config"), ("merged", "model", "config")):
        readers = [(tmp_path / folder / name).stat().st_mode for name in (f"{weights}.safetensors", f"{other}.json")]
        assert readers[0] == readers[1]


@pytest.mark.slow
def test_a_backbone_given_as_a_relative_path_is_found_from_elsewhere(
    tmp_path: Path, tiny_esm: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    tiny_copy(tiny_esm, tmp_path / "esm")
    (tmp_path / "other").mkdir()
    (tmp_path / "a.fasta").write_text(f">a\n{random_sequence(1, 30)}\n")
    monkeypatch.chdir(tmp_path)
    module = trained("esm")
    save_checkpoint(module, tmp_path / "run.ckpt")
    monkeypatch.chdir(tmp_path / "other")
    assert torch.equal(own_logits(ContactModule.load_from_checkpoint("../run.ckpt")), own_logits(module))
    predict = ["predict", "--ckpt_path=../run.ckpt", "--data.predict_paths=../a.fasta", "--trainer.accelerator=cpu"]
    assert main(predict) == 0
    (tmp_path / "esm").rename(tmp_path / "gone")
    assert main([*predict, "--overwrite"]) == 1
    assert "esm" in capsys.readouterr().err.splitlines()[-1]
    assert main([*predict, "--overwrite", "--model.pretrained=../gone"]) == 0


def test_the_command_says_what_is_wrong(
    tmp_path: Path, tiny_esm: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    save_checkpoint(trained(tiny_esm, lora=None), tmp_path / "full.ckpt")
    (tmp_path / "junk.ckpt").write_bytes(b"junk")
    torch.save({"state_dict": {}}, tmp_path / "other.ckpt")
    for name, message in (
        ("full", "use --merge"),
        ("junk", "not a readable checkpoint"),
        ("other", "not written by contactlm"),
        ("nowhere", "does not exist"),
    ):
        assert main(["export", f"--ckpt_path={name}.ckpt", "--out=out"]) == 1
        lines = capsys.readouterr().err.splitlines()
        assert lines[-1].startswith("contactlm: error: ") and message in lines[-1]
    other = make_tiny_esm(tmp_path / "other", seed=1)
    assert main(["export", "--ckpt_path=full.ckpt", "--out=out", "--merge", f"--pretrained={other}"]) == 1
    assert "trained on the backbone" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    with pytest.raises(SystemExit) as stop:
        main(["export", "--out=out"])
    assert stop.value.code == 2


def test_help_mentions_the_command(capsys: pytest.CaptureFixture) -> None:
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert "export" in text and "predict" in text
