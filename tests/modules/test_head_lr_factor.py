"""How fast the contact head learns beside the rest, where nobody says so."""

from pathlib import Path

import pytest
import torch

from contactlm import ContactModule, ContrastiveModule, RetrievalModule
from contactlm.model.backbone import backbone_checksum, load_esm
from contactlm.model.contact_head import write_head
from contactlm.modules.export import export_adapter
from contactlm.modules.optimization import FRESH_HEAD_LR_FACTOR as FRESH
from tests.model.families import architecture, small_model, stock_model
from tests.retrieval.made import made_database

pytestmark = pytest.mark.filterwarnings("ignore:.*contact.head")


def saved(name: str, folder: Path, headless: bool = False) -> str:
    model = small_model(name)
    (stock_model(model, name) if headless else model).save_pretrained(folder)
    return str(folder)


def rates(module: ContactModule) -> list[float]:
    return [group["lr"] for group in module.configure_optimizers().param_groups]


@pytest.mark.parametrize("name", ["ESM2", "ESM-1b", "ESM-1v", "ESM C", "ProtBert", "BERT"])
def test_a_head_that_starts_from_nothing_learns_faster(name: str, tmp_path: Path) -> None:
    assert ContactModule(None, architecture=architecture(name)).head_lr_factor == FRESH
    published = ContactModule(saved(name, tmp_path / "model"))
    assert published.head_lr_factor == (1 if name in ("ESM2", "ESM-1b") else FRESH)
    assert published.hparams["head_lr_factor"] == published.head_lr_factor
    chosen = [1e-4] if published.head_lr_factor == 1 else [1e-4, 1e-4 * FRESH]
    assert rates(published) == pytest.approx(chosen)
    assert rates(ContactModule(str(tmp_path / "model"), head_lr_factor=3)) == pytest.approx([1e-4, 3e-4])
    assert rates(ContactModule(None, architecture=architecture(name), head_lr_factor=1.0)) == [1e-4]


def test_a_head_that_was_given_or_exported_is_a_trained_one(tmp_path: Path) -> None:
    folder = saved("ESM C", tmp_path / "model", headless=True)
    fresh = ContactModule(folder)
    assert fresh.head_lr_factor == FRESH
    about = {"family": "ESM C", "backbone": folder, "backbone_checksum": backbone_checksum(load_esm(folder))}
    write_head(tmp_path / "head.safetensors", torch.ones(1, 15), torch.zeros(1), about)
    assert ContactModule(folder, head=str(tmp_path / "head.safetensors")).head_lr_factor == 1
    adapter = ContactModule.from_adapter(export_adapter(fresh, tmp_path / "adapter"))
    assert adapter.head_lr_factor == 1


def test_runs_that_began_before_the_choice_go_on_as_they_were(tmp_path: Path) -> None:
    options = {"architecture": architecture("ESM2")}
    checkpoint = {"state_dict": ContactModule(None, **options).state_dict(), "hyper_parameters": {}}
    module = ContactModule(None, **options)
    module.on_save_checkpoint(checkpoint)
    module.on_load_checkpoint(checkpoint)
    assert module.head_lr_factor == 1
    given = ContactModule(None, **options, head_lr_factor=20)
    given.on_load_checkpoint(checkpoint)
    assert given.head_lr_factor == 20
    later = ContactModule(None, **options)
    later.on_load_checkpoint({**checkpoint, "hyper_parameters": {"head_lr_factor": FRESH}})
    assert later.head_lr_factor == FRESH


def test_other_heads_than_contact_heads_keep_the_others_rate(tmp_path: Path, tiny_esm: Path) -> None:
    assert ContrastiveModule(None, architecture=architecture("ESM2")).head_lr_factor == 1
    pytest.importorskip("pyhmmer")
    index = str(made_database(tmp_path, {"1abc_A": "MKTAYIAKQRQISFVKSHFSRQ" * 2}).path)
    assert RetrievalModule(None, architecture=architecture("ESM2"), index=index).head_lr_factor == FRESH
    assert RetrievalModule(str(tiny_esm), index=index).head_lr_factor == 1
