"""The private parts of other libraries that the package leans on: a table of them, each with what must stay true of it.

When a row fails, the library has changed that part: look at the file that uses it. Another use of a private part fails
the last test until it has a row. Libraries with rows are bounded from above in ``pyproject.toml`` (torch is not: users
have their own).
"""

from __future__ import annotations

import ast
import inspect
import re
from argparse import ArgumentParser
from collections.abc import Callable, Iterator
from functools import cache
from importlib import import_module
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import lightning as L
import pytest
import torch
from Bio.PDB.MMCIF2Dict import MMCIF2Dict
from Bio.PDB.StructureBuilder import StructureBuilder
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.plugins.precision import MixedPrecision
from lightning.pytorch.utilities.compile import from_compiled
from torch import nn
from torch.optim.swa_utils import AveragedModel
from transformers import EsmModel
from transformers.models.esm.modeling_esm import EsmLayer

import contactlm
from contactlm.model.lora import LoraOptions, add_lora
from contactlm.modules.trained_weights import NOT_AVERAGED
from contactlm.structure.pdb import BackboneBuilder
from tests.model.families import small_model
from tests.model.made import TINY, make_tokens, tiny_esm

PACKAGE = Path(contactlm.__file__).parent
BOUNDED = ("lightning", "transformers", "peft", "biopython")
PUBLIC = {"_replace", "_fields", "_exit"}  # of named tuples and os: private in looks alone


def a_trainer() -> L.Trainer:
    return L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)


@cache
def stock() -> EsmModel:
    return tiny_esm()


def children(module: nn.Module) -> set[str]:
    return {name for name, _ in module.named_modules() if name and not name.endswith("dropout")}


# --- what must be so, where that is more than the names of a function's parameters ---


def loggers_take_a_version() -> None:
    for kind in (CSVLogger, TensorBoardLogger):
        logger: Any = kind("folder", "name")
        assert logger._version is None
        logger._version = 7
        assert logger.version == 7 and Path(logger.log_dir) == Path("folder/name/version_7")


def a_checkpoint_callback_saves() -> None:
    callback = ModelCheckpoint()
    assert parameters(callback._save_last_checkpoint) == TO_SAVE[1:]
    scores = ("best_k_models", "best_model_path", "best_model_score", "current_score", "kth_best_model_path")
    assert callback.state_dict().keys() == {*scores, "kth_value", "last_model_path", "dirpath", "monitor"}


def loops_count_batches() -> None:
    loop = a_trainer().fit_loop
    assert loop._data_fetcher is None  # between fits
    assert loop.epoch_loop.max_steps == -1
    assert (loop.epoch_loop.batch_progress.is_last_batch, loop.epoch_loop.batch_progress.current.ready) == (False, 0)
    saved = loop.state_dict()
    counts = dict.fromkeys(("ready", "started", "processed", "completed"), 0)
    for name in ("epoch_progress", "epoch_loop.batch_progress", "epoch_loop.val_loop.batch_progress"):
        assert saved[name]["total"] == saved[name]["current"] == counts


def a_trainer_has_what_its_connectors_set() -> None:
    names = ("callbacks", "datamodule", "fast_dev_run", "log_every_n_steps", "accumulate_grad_batches")
    assert {*names, "gradient_clip_val", "val_check_batch"} <= vars(a_trainer()).keys()
    assert (a_trainer().val_check_interval, a_trainer().check_val_every_n_epoch) == (1.0, 1)  # where left alone


def a_compiled_module_says_so() -> None:
    module = L.LightningModule()
    assert module._compiler_ctx is None
    assert from_compiled(torch.compile(module))._compiler_ctx


def an_average_of_weights_is_kept() -> None:
    callback = EMAWeightAveraging()
    callback.setup(a_trainer(), module := L.LightningModule(), "fit")
    average = callback._average_model
    assert isinstance(average, AveragedModel) and callable(average.avg_fn)
    checkpoint = {"state_dict": {}}
    callback.on_save_checkpoint(a_trainer(), module, checkpoint)
    assert NOT_AVERAGED in checkpoint


def mixed_precision_has_a_scaler() -> None:
    scaler = torch.amp.GradScaler("cpu")
    assert MixedPrecision("16-mixed", "cpu", scaler).scaler is scaler


def layers_have_these_parts() -> None:
    parts = {"attention", "attention.self", "attention.output", "attention.output.dense", "attention.LayerNorm"}
    parts |= {f"attention.self.{name}" for name in ("query", "key", "value")}
    parts |= {"intermediate", "intermediate.dense", "output", "output.dense", "LayerNorm"}
    layer = EsmLayer(stock().config)
    assert children(layer) == parts
    heads = layer.attention.self
    assert heads.num_attention_heads * heads.attention_head_size == TINY["hidden_size"]


def other_layers_have_these_parts() -> None:
    own = {"input_layernorm", "post_attention_layernorm", "self_attn", "mlp"}
    own |= {f"mlp.{name}" for name in ("gate_proj", "up_proj", "down_proj", "act_fn")}
    own |= {f"self_attn.{name}" for name in ("q_proj", "k_proj", "v_proj", "o_proj", "q_norm", "k_norm")}
    layer = small_model("ESM C").layers[0]
    assert children(layer) == own and layer.scaling_factor == (3 / 36) ** 0.5
    assert (layer.self_attn.head_dim, layer.self_attn.scaling) == (8, 8**-0.5)
    parts = {"attention", "attention.self", "attention.output", "intermediate", "output"}
    bert = small_model("ProtBert").encoder.layer[0]
    assert parts <= children(bert) and "LayerNorm" not in children(bert)
    assert bert.attention.self.scaling == 8**-0.5


def a_backbone_has_these_parts() -> None:
    esm = stock()
    parts = {"embeddings", "encoder", "encoder.emb_layer_norm_after", "rotary_embeddings", "contact_head"}
    inside = {name for name in children(esm) if not name.startswith(("encoder.layer", "embeddings."))}
    assert inside - {"contact_head.activation"} == {*parts, "contact_head.regression"} and esm.pooler is None
    assert esm.rotary_embeddings.inv_freq.shape == (TINY["hidden_size"] // TINY["num_attention_heads"] // 2,)
    tokens = make_tokens([4])
    assert esm.embeddings(input_ids=tokens, attention_mask=torch.ones_like(tokens)).shape == (1, 6, TINY["hidden_size"])


def adapters_lie_in_the_backbone() -> None:
    esm = tiny_esm()
    add_lora(esm, LoraOptions())
    assert list(esm.peft_config) == ["default"]
    head, layer = esm.contact_head, esm.encoder.layer[0].attention.self.query
    assert list(head.modules_to_save) == head.active_adapters == ["default"] and not head.disable_adapters
    assert isinstance(head.original_module.regression, nn.Linear)
    assert layer.get_delta_weight("default").shape == (TINY["hidden_size"], TINY["hidden_size"])
    names, query = set(esm.state_dict()), "encoder.layer.0.attention.self.query"
    assert {f"{query}.base_layer.weight", f"{query}.lora_A.default.weight", f"{query}.lora_B.default.weight"} <= names
    assert "contact_head.modules_to_save.default.regression.weight" in names


def a_dictionary_reads_lines() -> None:
    table = MMCIF2Dict(iter(["data_x\n", "loop_\n", "_a.b\n", "_a.c\n", "1 'two words'\n"]))
    assert (table["_a.b"], table["_a.c"]) == (["1"], ["two words"])


def a_builder_is_told_these() -> None:
    told = ("init_structure", "init_model", "init_seg", "init_chain", "init_residue", "init_atom", "get_structure")
    assert set(told) <= vars(BackboneBuilder).keys() and StructureBuilder().line_counter == 0
    for name in told:
        ours, theirs = (parameters(getattr(kind, name)) for kind in (BackboneBuilder, StructureBuilder))
        assert theirs[: len(ours)] == ours or name == "init_atom"  # it has more, which are not used
        assert name != "init_atom" or theirs[:7] == ours[:7]


def softmax_goes_backward() -> None:
    x = torch.randn(3, 5, generator=torch.Generator().manual_seed(0), requires_grad=True)
    y, g = x.softmax(-1), torch.randn(3, 5, generator=torch.Generator().manual_seed(1))
    y.backward(g)
    out = g.clone()
    torch._softmax_backward_data(out, y.detach(), -1, out.dtype, grad_input=out)
    torch.testing.assert_close(out, x.grad)


def saved_tensors_have_contexts() -> None:
    top = torch._C._autograd._top_saved_tensors_default_hooks
    assert top(False) is None
    with torch.autograd.graph.save_on_cpu():
        assert top(False) is not None


def a_parser_lists_its_options() -> None:
    parser = ArgumentParser()
    group = parser.add_argument_group("mine")
    assert group in parser._action_groups


# --- library, part, who uses it, and what must be so: that it is there (None), the names of its parameters, or a
#     function above. What stands behind a colon is imported. ---

Check = tuple[str, ...] | Callable[[], None] | None
CHECKPOINT = "lightning.pytorch.callbacks:ModelCheckpoint"
EPOCH_LOOP = "lightning.pytorch.loops.training_epoch_loop:_TrainingEpochLoop"
SPEED = "lightning.fabric.utilities.throughput:get_available_flops"
TO_SAVE = ("self", "trainer", "monitor_candidates")
PARTS: list[tuple[str, str, str, Check]] = [
    ("python", "ArgumentParser._action_groups", "cli/contact_cli.py", a_parser_lists_its_options),
    ("lightning", "CSVLogger._version", "runs/directory.py", loggers_take_a_version),
    ("lightning", f"{CHECKPOINT}._save_last_checkpoint", "callbacks/checkpoint.py", a_checkpoint_callback_saves),
    ("lightning", f"{CHECKPOINT}._save_topk_checkpoint", "callbacks/checkpoint.py", TO_SAVE),
    ("lightning", f"{EPOCH_LOOP}._should_check_val_fx", "callbacks/steps.py", ("self", "data_fetcher")),
    ("lightning", "fit_loop._data_fetcher", "callbacks/steps.py", loops_count_batches),
    ("lightning", "Trainer.val_check_batch", "callbacks/budget.py", a_trainer_has_what_its_connectors_set),
    ("lightning", "fit_loop.epoch_loop.batch_progress", "callbacks/budget.py", loops_count_batches),
    ("lightning", "fit_loop.epoch_loop.max_steps", "cli/contact_cli.py", loops_count_batches),
    ("lightning", "fit_loop.epoch_progress", "data/datamodule.py", loops_count_batches),
    ("lightning", "Trainer.gradient_clip_val", "callbacks/guard.py", a_trainer_has_what_its_connectors_set),
    ("lightning", "Trainer.datamodule", "callbacks/record.py", a_trainer_has_what_its_connectors_set),
    ("lightning", "MixedPrecision.scaler", "callbacks/guard.py", mixed_precision_has_a_scaler),
    ("lightning", "WeightAveraging._average_model", "modules/trained_weights.py", an_average_of_weights_is_kept),
    ("lightning", "LightningModule._compiler_ctx", "model/execution.py", a_compiled_module_says_so),
    ("lightning", SPEED, "callbacks/progress.py", ("device", "dtype")),
    ("transformers", "EsmLayer.attention", "model/families/esm.py", layers_have_these_parts),
    ("transformers", "EsmModel.encoder", "model/families/esm.py", a_backbone_has_these_parts),
    ("transformers", "EsmcLayer.self_attn", "model/families/esmc.py", other_layers_have_these_parts),
    ("transformers", "BertLayer.intermediate", "model/families/bert.py", other_layers_have_these_parts),
    ("peft", "ModulesToSaveWrapper.modules_to_save", "model/lora.py", adapters_lie_in_the_backbone),
    ("biopython", "Bio.PDB.binary_cif:_decode", "structure/binary_cif.py", ("column",)),
    ("biopython", "Bio.PDB.MMCIF2Dict:MMCIF2Dict._splitline", "structure/mmcif.py", ("self", "line")),
    ("biopython", "MMCIF2Dict.__init__", "structure/mmcif.py", a_dictionary_reads_lines),
    ("biopython", "Bio.PDB.PDBParser:PDBParser._get_header", "structure/pdb.py", ("self", "header_coords_trailer")),
    ("biopython", "StructureBuilder.init_residue", "structure/pdb.py", a_builder_is_told_these),
    ("torch", "torch._softmax_backward_data", "model/contact_attention.py", softmax_goes_backward),
    ("torch", "torch._C._autograd._top_saved_tensors_default_hooks", "model/remade.py", saved_tensors_have_contexts),
    ("torch", "torch.utils._python_dispatch:TorchDispatchMode", "modules/memory.py", None),
    ("torch", "torch._subclasses.fake_tensor:FakeTensorMode", "modules/memory.py", None),
    ("torch", "torch._subclasses.fake_tensor:FakeTensor", "model/blocks.py", None),
    ("torch", "torch:ops.aten._scaled_dot_product_flash_attention_for_cpu", "callbacks/flops.py", None),
    ("torch", "torch:ops.aten._scaled_dot_product_flash_attention_for_cpu_backward", "callbacks/flops.py", None),
]


def parameters(function: Callable[..., Any]) -> tuple[str, ...]:
    return tuple(inspect.signature(function).parameters)


@pytest.mark.parametrize(("library", "part", "user", "check"), PARTS, ids=[part for _, part, _, _ in PARTS])
def test_a_part_is_as_it_was(library: str, part: str, user: str, check: Check) -> None:
    assert part.rpartition(".")[2].rpartition(":")[2] in {"__init__", *names_in(PACKAGE / user)}, "not used there"
    found = resolve_name(part) if ":" in part else None
    if isinstance(check, tuple):
        assert parameters(found) == check
    elif check is not None:
        check()


@pytest.mark.parametrize("library", BOUNDED)
def test_libraries_with_rows_are_bounded_from_above(library: str) -> None:
    text = (PACKAGE.parent / "pyproject.toml").read_text()
    assert re.search(rf'"{library}>=[\d.]+,<\d[\d.]*"', text)
    assert set(BOUNDED) == {library for library, *_ in PARTS} - {"torch", "python"}


def names_in(file: Path) -> set[str]:
    """Names and strings of a file that could be those of attributes."""
    nodes = list(ast.walk(ast.parse(file.read_text())))
    names = {node.attr for node in nodes if isinstance(node, ast.Attribute)}
    names |= {node.name for node in nodes if isinstance(node, ast.FunctionDef)}
    names |= {alias.name for node in nodes if isinstance(node, ast.ImportFrom) for alias in node.names}
    return names | {
        word
        for node in nodes
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
        for word in node.value.split(".")
    }


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name not in PUBLIC


def private_uses(file: Path) -> Iterator[str]:
    """Private names that a file takes from elsewhere: imported, of other objects, or of base classes of others."""
    tree = ast.parse(file.read_text())
    own = {node.name for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
    own |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and is_set_on_self(node)}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and not (node.module or "").startswith("contactlm"):
            yield from (part for part in (node.module or "").split(".") if is_private(part))
            yield from (alias.name for alias in node.names if is_private(alias.name))
        elif isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("getattr", "hasattr", "setattr"):
            yield from (arg.value for arg in node.args if isinstance(arg, ast.Constant) and is_private(str(arg.value)))
        elif isinstance(node, ast.Attribute) and is_private(node.attr) and node.attr not in own:
            if not (isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")):
                yield node.attr
        elif isinstance(node, ast.ClassDef) and node in tree.body:
            yield from inherited(file, node)


def is_set_on_self(node: ast.Attribute) -> bool:
    return isinstance(node.ctx, ast.Store) and isinstance(node.value, ast.Name) and node.value.id == "self"


def inherited(file: Path, node: ast.ClassDef) -> Iterator[str]:
    """Private names of a class that a base class of another package has as well: taken, overridden, or in its way."""
    module = ".".join(file.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")
    names = {part.attr for part in ast.walk(node) if isinstance(part, ast.Attribute)}
    names |= {part.name for part in node.body if isinstance(part, ast.FunctionDef)}
    for base in getattr(import_module(module), node.name).__mro__:
        text = "" if base.__module__.startswith("contactlm.") else source_of(base)
        yield from (name for name in names if is_private(name) and re.search(rf"(self\.|def ){name}\b", text))


@cache
def source_of(kind: type) -> str:
    try:
        return inspect.getsource(kind)
    except (OSError, TypeError):  # written in C
        return ""


@pytest.mark.slow
def test_every_private_part_has_a_row() -> None:
    listed = {name for _, part, _, _ in PARTS for name in re.split(r"[.:]", part)}
    files = [path for path in PACKAGE.rglob("*.py") if path.name != "__main__.py"]
    unlisted = {f"{file.relative_to(PACKAGE)}: {name}" for file in files for name in {*private_uses(file)} - listed}
    assert not unlisted and len(files) > 100
