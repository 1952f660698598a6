"""Which LightningModule a command builds."""

from pathlib import Path

import pytest
import torch
import yaml
from torch import Tensor

from contactlm import ContactModule, ContrastiveModule, RetrievalModule
from contactlm.cli.arguments import chosen_class, plain_arguments, resolve_arguments
from contactlm.cli.main import main
from contactlm.modules.predict import checkpoint_class, import_module_class
from contactlm.types import ModelError


class SquaredModule(ContactModule):
    """A user's module: another loss."""

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        return ((logits.sigmoid() - labels).square() * (labels >= 0)).mean()


TINY = {"num_hidden_layers": 2, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32}
OWN = f"{__name__}.SquaredModule"


def test_without_a_word_it_is_contact_module() -> None:
    assert chosen_class(["fit", "--model.lora", "null"]) is ContactModule
    assert chosen_class(["fit", "--ckpt_path", "null"]) is ContactModule
    assert import_module_class("contactlm.ContactModule") is ContactModule


def test_flag_and_config_decide_and_the_last_wins(tmp_path: Path) -> None:
    own, plain = tmp_path / "own.yaml", tmp_path / "plain.yaml"
    own.write_text(f"model_class: {OWN}\n")
    plain.write_text("model_class: contactlm.ContactModule\n")
    assert chosen_class(["fit", "--config", str(own)]) is SquaredModule
    assert chosen_class(["fit", f"--config={own}", "--config", str(plain)]) is ContactModule
    assert chosen_class(["fit", "--config", str(own), "--model_class=contactlm.ContactModule"]) is ContactModule
    assert chosen_class(["fit", "--model_class", OWN]) is SquaredModule


BEFORE = Path(__file__).parents[1] / "modules" / "before_the_rooms"


def test_a_checkpoint_decides_wherever_it_is_named(tmp_path: Path) -> None:
    written = str(BEFORE / "contrastive.ckpt")
    own, other = tmp_path / "own.yaml", tmp_path / "other.yaml"
    own.write_text(f"ckpt_path: {written}\n")
    other.write_text("ckpt_path: null\n")
    for arguments in (["--ckpt_path", written], [f"--ckpt_path={written}"], ["-c", str(own)], [f"--config={own}"]):
        assert chosen_class(["test", *arguments]) is ContrastiveModule
    assert chosen_class(["test", "-c", str(own), "-c", str(other)]) is ContactModule  # the last one counts
    assert chosen_class(["test", "-c", str(own), "--ckpt_path", str(BEFORE / "retrieval.ckpt")]) is RetrievalModule
    with pytest.raises(ModelError, match="holds a projection"):
        chosen_class(["test", "-c", str(own), "--model_class", "contactlm.ContactModule"])


def test_a_checkpoint_in_a_config_is_predicted_with_by_its_class(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("own.yaml").write_text(f"ckpt_path: {BEFORE / 'contrastive.ckpt'}\nout: maps\nformats: [npz]\n")
    Path("a.fasta").write_text(">a\nMKTAYIAKQRQISFVKSHFSRQ\n")
    assert main(["predict", "--config", "own.yaml", "--data.predict_paths", "a.fasta"]) == 0
    assert Path("maps/a.npz").is_file(), capsys.readouterr().err


def test_class_path_says_the_same_as_model_class(tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    own.write_text(f"model:\n  class_path: {OWN}\n  init_args: {{pretrained: null, lora: {{r: 2}}}}\nname: mine\n")
    [_, config] = plain_arguments(["fit", f"--config={own}"])
    assert yaml.safe_load(config.removeprefix("--config=")) == {
        "model_class": OWN,
        "model": {"pretrained": None, "lora": {"r": 2}},
        "name": "mine",
    }
    flags = ["fit", "--model.class_path", OWN, "--model.init_args.lora", "null", "--budget.max_tokens", "1"]
    plain = ["fit", f"--model_class={OWN}", "--model.lora=null", "--budget.max_tokens", "1"]
    assert plain_arguments(flags) == plain
    assert plain_arguments(["fit", f"--model={OWN}"]) == ["fit", f"--model_class={OWN}"]
    group = tmp_path / "model.yaml"
    group.write_text(f"class_path: {OWN}\ninit_args: {{lora: null}}\n")
    assert plain_arguments(["fit", "--model", str(group)]) == ["fit", f"--model_class={OWN}", '--model={"lora": null}']
    for given in ([f"--config={own}"], ["--model", OWN], ["--model", str(group)], flags[1:]):
        assert chosen_class(plain_arguments(["fit", *given])) is SquaredModule
    group.write_text("lora: null\n")
    assert plain_arguments(["fit", "--model", str(group)]) == ["fit", "--model", str(group)]


def test_a_class_may_come_from_a_config_below_and_from_one_laid_over_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    assert chosen_class(resolve_arguments(["fit", "--config=retrieval_tokens"])) is RetrievalModule
    (tmp_path / "low.yaml").write_text("name: low\ndata: {crop_length: 77}\n")
    (tmp_path / "own.yaml").write_text(f"config: low.yaml\nmodel: {{class_path: {OWN}}}\ndata: {{batch_size: 3}}\n")
    arguments = plain_arguments(resolve_arguments(["fit", "--config", str(tmp_path / "own.yaml")]))
    assert chosen_class(arguments) is SquaredModule
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    with pytest.raises(SystemExit):
        main(["fit", "--config", str(tmp_path / "own.yaml"), "--print_config"])
    config = yaml.safe_load(capsys.readouterr().out)
    found = config["name"], config["model_class"], config["data"]["crop_length"], config["data"]["batch_size"]
    assert found == ("low", OWN, 77, 3)


@pytest.mark.parametrize(
    "name", ["SquaredModule", "contactlm.NoSuchModule", "no_such_package.Module", "torch.Tensor", ""]
)
def test_what_is_no_module_class_is_refused(name: str) -> None:
    with pytest.raises(ModelError, match="model_class: "):
        import_module_class(name)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["model_class", "class_path"])
def test_a_run_with_ones_own_class(tmp_path: Path, pdb_folders, monkeypatch: pytest.MonkeyPatch, form: str) -> None:
    monkeypatch.chdir(tmp_path)
    Path("own.yaml").write_text(f"model: {{class_path: {OWN}, init_args: {{pretrained: null, lora: null}}}}\n")
    named = ["--model_class", OWN] if form == "model_class" else ["--config", "own.yaml"]
    data = ["--data.train_dir", str(pdb_folders[0]), "--data.test_dir", str(pdb_folders[1])]
    options = ["--model.pretrained", "null", "--model.architecture", str(TINY), "--model.lora", "null"]
    size = ["--data.min_length", "10"]
    sizes = [*size, "--data.crop_length", "40", "--data.batch_size", "2", "--budget.max_tokens", "300"]
    plain = ["--trainer.accelerator", "cpu", "--trainer.val_check_interval", "1", "--test_after_fit", "false"]
    plain.append("--dashboard.lengths=[]")
    assert main(["fit", *named, *data, *options, *sizes, *plain]) == 0
    checkpoint = next(tmp_path.rglob("last.ckpt"))
    saved = torch.load(checkpoint, weights_only=True)
    assert saved["contactlm"]["class"] == OWN
    with pytest.raises(ModelError, match=f"was written by {OWN}"):
        checkpoint_class(checkpoint)
    config = next(tmp_path.rglob("config.yaml"))
    assert f"model_class: {OWN}" in config.read_text()
    assert main(["validate", "--model_class", OWN, "--ckpt_path", str(checkpoint), *data, *size]) == 0
