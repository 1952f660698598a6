"""Weights as fair-esm and the ``esm`` package keep them, made into folders that transformers loads.

fair-esm's files (ESM2, ESM-1b, ESM-1v) hold options and weights, and lie with their contact head's in
``…-contact-regression.pt`` next to them; ESM C's ``.pth`` files hold weights alone. A folder is made once, in the
cache.
"""

from __future__ import annotations

import hashlib
import json
import logging
import pickle
import re
import shutil
import zipfile
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
from safetensors.torch import save_file
from torch import Tensor

from contactlm.alphabet import EOS, MASK, PAD
from contactlm.shipped import default_cache_dir
from contactlm.types import ModelError

log = logging.getLogger(__name__)

SUFFIXES = (".pt", ".pth")
_VERSION = 1  # of what is made; raise it whenever that changes
_REGRESSION = "-contact-regression.pt"
_LAYER = r"^layers\.(\d+)\."
_OF_ATTENTION = ("query", "key", "value")
_ESM = (  # names of fair-esm, and of transformers
    (r"^(encoder\.)?(sentence_encoder\.)?", ""),
    (r"^embed_tokens\.", "esm.embeddings.word_embeddings."),
    (r"^embed_positions\.", "esm.embeddings.position_embeddings."),
    (r"^emb_layer_norm_before\.", "esm.embeddings.layer_norm."),
    (r"^emb_layer_norm_after\.", "esm.encoder.emb_layer_norm_after."),
    (r"^contact_head\.", "esm.contact_head."),
    *((rf"{_LAYER}self_attn\.{a[0]}_proj\.", rf"esm.encoder.layer.\1.attention.self.{a}.") for a in _OF_ATTENTION),
    (rf"{_LAYER}self_attn\.out_proj\.", r"esm.encoder.layer.\1.attention.output.dense."),
    (rf"{_LAYER}self_attn_layer_norm\.", r"esm.encoder.layer.\1.attention.LayerNorm."),
    (rf"{_LAYER}fc1\.", r"esm.encoder.layer.\1.intermediate.dense."),
    (rf"{_LAYER}fc2\.", r"esm.encoder.layer.\1.output.dense."),
    (rf"{_LAYER}final_layer_norm\.", r"esm.encoder.layer.\1.LayerNorm."),
)
_BLOCK = r"^transformer\.blocks\.(\d+)\."
_ESMC = (
    (r"^embed\.", "esmc.embed_tokens."),
    (r"^transformer\.norm\.", "esmc.norm."),
    (rf"{_BLOCK}attn\.layernorm_qkv\.0\.", r"esmc.layers.\1.input_layernorm."),
    (rf"{_BLOCK}attn\.([qk])_ln\.", r"esmc.layers.\1.self_attn.\2_norm."),
    (rf"{_BLOCK}attn\.out_proj\.", r"esmc.layers.\1.self_attn.o_proj."),
    (rf"{_BLOCK}ffn\.0\.", r"esmc.layers.\1.post_attention_layernorm."),
    (rf"{_BLOCK}ffn\.3\.", r"esmc.layers.\1.mlp.down_proj."),
    (r"^sequence_head\.0\.", "lm_head.dense."),
    (r"^sequence_head\.2\.", "lm_head.layer_norm."),
    (r"^sequence_head\.3\.", "lm_head.decoder."),
)
_STACKED = (  # rows of one weight that are those of several
    (rf"{_BLOCK}attn\.layernorm_qkv\.1\.weight", r"esmc.layers.\1.self_attn.{}_proj.weight", ("q", "k", "v")),
    (rf"{_BLOCK}ffn\.1\.weight", r"esmc.layers.\1.mlp.{}_proj.weight", ("gate", "up")),
)
_ESMC_HEAD_WIDTH = 64  # of all published ones; the files do not say it
_NOT_WEIGHTS = ("inv_freq", "version", "lm_head.weight")  # the last are the embeddings


def model_folder(path: Path) -> Path:
    """The folder that stands for a file of weights, in the format of transformers; made where it is not there yet."""
    regression = path.with_name(f"{path.stem}{_REGRESSION}")
    try:
        stats = [file.stat() for file in (path, regression) if file == path or file.is_file()]
    except OSError as error:
        raise ModelError(f"{path}: no such file ({error.strerror}); give a file of weights, or a hub name") from error
    named = [_VERSION, str(path.resolve()), *((stat.st_size, stat.st_mtime_ns) for stat in stats)]
    key = hashlib.sha256(json.dumps(named).encode()).hexdigest()[:16]
    folder = default_cache_dir() / "models" / f"{path.stem}-{key}"
    if (folder / "config.json").is_file():
        return folder
    loaded = _read(path)
    if isinstance(loaded, dict) and "model" in loaded and loaded.keys() & {"cfg", "args"}:
        config, weights = _esm(path, loaded, _read(regression)["model"] if len(stats) > 1 else {})
    elif isinstance(loaded, dict) and {"embed.weight", "transformer.norm.weight"} <= loaded.keys():
        config, weights = _esmc(loaded)
    else:
        raise ModelError(f"{path}: neither fair-esm's ESM2, ESM-1b or ESM-1v nor an ESM C of the esm package")
    log.info(f"{path}: made into a folder that transformers loads, once: {folder}")
    return _write(folder, config, weights)


def _read(path: Path) -> Any:
    """A file's values: tensors, plain ones and argparse's namespaces, and no other code."""
    try:
        with torch.serialization.safe_globals([Namespace]):
            return torch.load(path, weights_only=True, map_location="cpu", mmap=zipfile.is_zipfile(path))
    except (OSError, RuntimeError, EOFError, ValueError, LookupError, pickle.UnpicklingError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        if isinstance(error, pickle.UnpicklingError):  # torch's own advice is to run the file's code
            reason = "it is damaged, or holds Python objects, which are not loaded from files"
        raise ModelError(f"{path}: cannot be read as weights alone: {reason}; copy or download it again") from error


def _esm(path: Path, loaded: Mapping[str, Any], head: Mapping[str, Tensor]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Config and weights of fair-esm's ESM2 (``cfg``), ESM-1b and ESM-1v (``args``)."""
    said = loaded["cfg"]["model"] if "cfg" in loaded else loaded["args"]
    options = dict(said) if isinstance(said, Mapping) else vars(said)
    weights = _renamed({**loaded["model"], **head}, _ESM)
    embedded = weights.get("esm.embeddings.word_embeddings.weight")
    if "cfg" not in loaded and options.get("arch") != "roberta_large":
        raise ModelError(f"{path}: arch {options.get('arch')!r}; of fair-esm's, ESM2, ESM-1b and ESM-1v are read here")
    if embedded is None or "encoder_attention_heads" not in options:
        raise ModelError(f"{path}: no ESM2, ESM-1b or ESM-1v of fair-esm, whose layers are known here")
    learned = weights.get("esm.embeddings.position_embeddings.weight")
    layers = {int(found[1]) for name in weights if (found := re.match(r"esm\.encoder\.layer\.(\d+)\.", name))}
    config = {
        "model_type": "esm",
        "architectures": ["EsmForMaskedLM"],
        "vocab_size": embedded.shape[0],
        "hidden_size": embedded.shape[1],
        "num_hidden_layers": len(layers),
        "num_attention_heads": options["encoder_attention_heads"],
        "intermediate_size": weights["esm.encoder.layer.0.intermediate.dense.weight"].shape[0],
        "position_embedding_type": "rotary" if learned is None else "absolute",
        "max_position_embeddings": 1026 if learned is None else learned.shape[0],
        "emb_layer_norm_before": "esm.embeddings.layer_norm.weight" in weights,
        "token_dropout": bool(options.get("token_dropout", False)),
        "layer_norm_eps": 1e-5,
        **{"pad_token_id": PAD, "eos_token_id": EOS, "mask_token_id": MASK},
        **dict.fromkeys(("attention_probs_dropout_prob", "hidden_dropout_prob"), 0.0),
    }
    return config, weights


def _esmc(loaded: Mapping[str, Tensor]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Config and weights of an ESM C, whose file holds nothing but these."""
    weights: dict[str, Tensor] = {}
    for pattern, name, parts in _STACKED:
        for key in [key for key in loaded if re.match(pattern, key)]:
            for part, rows in zip(parts, loaded[key].chunk(len(parts)), strict=True):
                weights[re.sub(pattern, name, key).format(part)] = rows
    weights |= _renamed({k: w for k, w in loaded.items() if not any(re.match(p, k) for p, *_ in _STACKED)}, _ESMC)
    vocabulary, width = loaded["embed.weight"].shape
    config = {
        "model_type": "esmc",
        "architectures": ["EsmcForMaskedLM"],
        "vocab_size": vocabulary,
        "hidden_size": width,
        "num_hidden_layers": sum(name.endswith("o_proj.weight") for name in weights),
        "num_attention_heads": max(1, width // _ESMC_HEAD_WIDTH),
        "intermediate_size": weights["esmc.layers.0.mlp.gate_proj.weight"].shape[0],
    }
    return config, weights


def _renamed(weights: Mapping[str, Tensor], rules: tuple[tuple[str, str], ...]) -> dict[str, Tensor]:
    renamed = {}
    for name, weight in weights.items():
        for pattern, instead in rules:
            name = re.sub(pattern, instead, name)
        if not name.endswith(_NOT_WEIGHTS):
            renamed[name] = weight
    return renamed


def _write(folder: Path, config: Mapping[str, Any], weights: Mapping[str, Tensor]) -> Path:
    """Write the folder whole, or not at all; of two processes at once the first has it."""
    temporary = folder.with_name(f".{folder.name}.{uuid4().hex}")
    try:
        temporary.mkdir(parents=True)
        try:
            whole = {name: weight.contiguous() for name, weight in weights.items()}
            save_file(whole, temporary / "model.safetensors", metadata={"format": "pt"})
            (temporary / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
            if not folder.exists():
                temporary.rename(folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    except OSError as error:
        if not (folder / "config.json").is_file():
            raise ModelError(
                f"{folder} cannot be written ({error.strerror or error}); weights in this format are made into a "
                "folder first: give room there, or another CONTACTLM_CACHE"
            ) from error
    return folder
