"""Which LightningModule a command builds."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from contactlm.cli.main import main
from contactlm.modules.choice import checkpoint_class, chosen_class, import_module_class
from contactlm.modules.contact import ContactModule
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


@pytest.mark.parametrize(
    "name", ["SquaredModule", "contactlm.NoSuchModule", "no_such_package.Module", "torch.Tensor", ""]
)
def test_what_is_no_module_class_is_refused(name: str) -> None:
    with pytest.raises(ModelError, match="model_class: "):
        import_module_class(name)


def test_a_run_with_ones_own_class(tmp_path: Path, pdb_folders, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    data = ["--data.train_dir", str(pdb_folders[0]), "--data.test_dir", str(pdb_folders[1])]
    options = ["--model.pretrained", "null", "--model.architecture", str(TINY), "--model.lora", "null"]
    size = ["--data.min_length", "10"]
    sizes = [*size, "--data.crop_length", "40", "--data.batch_size", "2", "--budget.max_tokens", "300"]
    plain = ["--trainer.accelerator", "cpu", "--trainer.val_check_interval", "1", "--test_after_fit", "false"]
    assert main(["fit", "--model_class", OWN, *data, *options, *sizes, *plain]) == 0
    checkpoint = next(tmp_path.rglob("last.ckpt"))
    saved = torch.load(checkpoint, weights_only=True)
    assert saved["contactlm"]["class"] == OWN
    with pytest.raises(ModelError, match=f"was written by {OWN}"):
        checkpoint_class(checkpoint)
    config = next(tmp_path.rglob("config.yaml"))
    assert f"model_class: {OWN}" in config.read_text()
    assert main(["validate", "--model_class", OWN, "--ckpt_path", str(checkpoint), *data, *size]) == 0
