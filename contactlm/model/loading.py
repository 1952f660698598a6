"""ESM2 backbones: from the Hugging Face hub, from a local directory, or from random numbers."""

from __future__ import annotations

import hashlib
import re
import ssl
import urllib.error
import urllib.parse
import urllib.request
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import constants
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import EsmConfig, EsmModel
from transformers.utils import logging as transformers_logging

from contactlm.alphabet import EOS, MASK, PAD, VOCABULARY
from contactlm.types import ModelError

_WEIGHT_FILES = ("model*.safetensors*", "pytorch_model*.bin*")
_ESM2_CONFIG: dict[str, Any] = {
    "vocab_size": len(VOCABULARY),
    "pad_token_id": PAD,
    "eos_token_id": EOS,
    "mask_token_id": MASK,
    "position_embedding_type": "rotary",
    "token_dropout": True,
    "emb_layer_norm_before": False,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "layer_norm_eps": 1e-5,
}
_ADAPTER_PART = re.compile(r"(^|\.)lora_|(^|\.)contact_head\.|(^|\.)pooler\.")
_PROBE_SECONDS = 10
# What transformers raises for options of a wrong type or value.
_UNFIT = (TypeError, ValueError, AttributeError, LookupError, ArithmeticError, StrictDataclassError)


def load_esm(pretrained: str | None, architecture: Mapping[str, Any] | None = None, seed: int = 0) -> EsmModel:
    """Load an ESM2 backbone with its contact head, in float32 and in evaluation mode.

    Args:
        pretrained: Hub name, or local directory saved from ``EsmForMaskedLM`` or ``EsmModel``; None for random weights.
        architecture: With ``pretrained=None``: arguments of ``EsmConfig`` (``num_hidden_layers``, ``hidden_size``,
            ``num_attention_heads``, ``intermediate_size``, …); what is left out is as in ESM2.
        seed: Decides every weight that is not loaded. The global generators are left alone.

    Returns:
        The backbone, without a pooler.

    Raises:
        ModelError: Both or neither argument given, an incomplete or damaged directory, a hub that cannot be reached,
            a model that is not a rotary ESM, a checkpoint that lacks backbone weights.

    Warns:
        UserWarning: The checkpoint has no contact-head weights, so that the head starts at random.
    """
    if (pretrained is None) == (architecture is None):
        given = "both" if architecture is not None else "neither"
        raise ModelError(f"backbone: give pretrained (hub name or directory) or architecture; {given} was given")
    with torch.random.fork_rng(devices=[]), quiet_transformers():
        torch.random.default_generator.manual_seed(seed)
        if pretrained is None:
            return EsmModel(_random_config(architecture or {}), add_pooling_layer=False).eval()
        return _load(pretrained)


def architecture_of(pretrained: str) -> dict[str, Any]:
    """The sizes of a model by its ``config.json`` alone, as ``architecture`` takes them.

    Raises:
        ModelError: There is none, or it is no ESM2's.
    """
    try:
        config, _ = EsmConfig.get_config_dict(str(Path(pretrained).expanduser()))
    except OSError as error:
        raise ModelError(f"{pretrained}: no config.json can be had: {_first_line(error)}; {_LOCAL_COPY}") from error
    names = ("num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size")
    if missing := [name for name in names if name not in config]:
        raise ModelError(f"{pretrained}: config.json lacks {', '.join(missing)}")
    return {name: config[name] for name in names}


def backbone_checksum(esm: EsmModel) -> str:
    """Fingerprint a backbone's base weights: SHA-256 over names, shapes and float32 values.

    The contact head, LoRA weights and a pooler do not count, so that it is the same before and after training with
    LoRA, and after saving and loading.

    Args:
        esm: The backbone, with or without adapters in it.

    Returns:
        64 hexadecimal digits.
    """
    digest = hashlib.sha256()
    named = {name.replace("base_layer.", ""): weight for name, weight in esm.named_parameters()}
    for name in sorted(name for name in named if not _ADAPTER_PART.search(name)):
        weight = named[name].detach().to("cpu", torch.float32).contiguous()
        digest.update(f"{name} {tuple(weight.shape)}\n".encode())
        digest.update(weight.numpy().data)
    return digest.hexdigest()


def _random_config(architecture: Mapping[str, Any]) -> EsmConfig:
    unknown = sorted(set(architecture) - set(EsmConfig().to_dict()))
    if unknown:
        raise ModelError(f"architecture: {', '.join(unknown)}: no such argument of EsmConfig")
    try:
        config = EsmConfig(**{**_ESM2_CONFIG, **architecture})
    except _UNFIT as error:
        raise ModelError(f"architecture {dict(architecture)}: {_first_line(error)}") from error
    if config.hidden_size % (2 * config.num_attention_heads):
        raise ModelError(
            f"architecture: hidden_size {config.hidden_size} is not a multiple of twice num_attention_heads "
            f"({config.num_attention_heads}): heads need an even width for rotary embeddings"
        )
    _require_rotary_esm("architecture", config)
    return config


def _load(pretrained: str) -> EsmModel:
    directory = Path(pretrained).expanduser()
    if directory.is_dir():
        _require_complete(directory)
        return _from_pretrained(str(directory), local_files_only=True)
    if pretrained.startswith((".", "/", "~")) or pretrained.count("/") > 1:
        raise ModelError(f"{pretrained}: no such directory; give a directory with config.json or a hub name")
    try:
        return _from_pretrained(pretrained, local_files_only=True)
    except _NotFoundError:
        _require_hub(pretrained)
    return _from_pretrained(pretrained, local_files_only=False)


class _NotFoundError(ModelError):
    """Files that are not where they were looked for."""


def _from_pretrained(name: str, local_files_only: bool) -> EsmModel:
    try:
        config, _ = EsmConfig.get_config_dict(name, local_files_only=local_files_only)
        if config.get("model_type") != "esm":
            raise ModelError(f"{name}: model_type is {config.get('model_type')!r}; only 'esm' (ESM2) is supported")
        _require_rotary_esm(name, EsmConfig.from_dict(config))
        _require_weights_enough(name, config)
        esm, report = EsmModel.from_pretrained(
            name,
            add_pooling_layer=False,
            local_files_only=local_files_only,
            output_loading_info=True,
            dtype=torch.float32,
        )
    except OSError as error:
        raise _NotFoundError(f"{name}: cannot be loaded: {_first_line(error)}; {_LOCAL_COPY}") from error
    except (*_UNFIT, RuntimeError, SafetensorError) as error:
        if isinstance(error, ModelError):
            raise
        raise ModelError(f"{name}: config.json and weights do not make an ESM2 model: {_first_line(error)}") from error
    _check_loaded(name, set(report["missing_keys"]))
    for key, weight in esm.named_parameters():
        if not torch.isfinite(weight).all():
            raise ModelError(f"{name}: {key} has values that are not finite: damaged weights; fetch them again")
    return esm.eval()


def _check_loaded(name: str, missing: set[str]) -> None:
    head = {key for key in missing if key.startswith("contact_head.")}
    # Rotary frequencies follow from the configuration; older checkpoints do not hold them here.
    lost = sorted(key for key in missing - head if "rotary_embeddings" not in key and "position_ids" not in key)
    if lost:
        raise ModelError(f"{name}: the checkpoint lacks {len(lost)} backbone weights, such as {lost[0]}")
    if head:
        warnings.warn(
            f"{name}: no contact-head weights ({', '.join(sorted(head))}) in the checkpoint: "
            "the contact head starts from random values and predicts nothing before it is trained",
            stacklevel=5,
        )


def _require_rotary_esm(name: str, config: EsmConfig) -> None:
    if config.position_embedding_type != "rotary":
        raise ModelError(
            f"{name}: position_embedding_type is {config.position_embedding_type!r}; only ESM2 models, with 'rotary', "
            "are supported"
        )
    ids = (config.vocab_size, config.pad_token_id, config.mask_token_id)
    if [type(value) for value in ids] != [int] * 3 or ids != (len(VOCABULARY), PAD, MASK):
        raise ModelError(
            f"{name}: vocab_size, pad_token_id and mask_token_id are {ids}; those of ESM2, whose tokens are used here, "
            f"are {(len(VOCABULARY), PAD, MASK)}"
        )
    if config.is_decoder or config.add_cross_attention or config.is_folding_model:
        raise ModelError(f"{name}: a decoder or folding model; only plain ESM2 encoders are supported")


def _require_complete(directory: Path) -> None:
    if not (directory / "config.json").is_file():
        raise ModelError(
            f"{directory}: no config.json there; give a directory written by save_pretrained, or a hub name"
        )
    if not any(any(directory.glob(pattern)) for pattern in _WEIGHT_FILES):
        raise ModelError(f"{directory}: config.json but no weights (model.safetensors or pytorch_model.bin) there")


def _require_weights_enough(name: str, config: Mapping[str, Any]) -> None:
    """Refuse sizes that the weight files cannot fill, at a byte a weight, before a model of them is built.

    Building takes minutes and gigabytes where a damaged config.json asks for a million layers.
    """
    files = {path for pattern in _WEIGHT_FILES for path in Path(name).glob(pattern)}
    if not files:
        return  # on the hub
    sizes = [config.get(key) for key in ("num_hidden_layers", "hidden_size", "intermediate_size")]
    layers, width, inner = (size if isinstance(size, int) else 0 for size in sizes)  # its own class tells of others
    described, held = layers * width * (4 * width + 2 * inner), sum(path.stat().st_size for path in files)
    if described > held:
        raise ModelError(
            f"{name}: config.json describes {described:,} weights in its layers ({layers} layers, hidden_size {width}, "
            f"intermediate_size {inner}), and the weight files hold {held:,} bytes: one of them is damaged"
        )


_LOCAL_COPY = (
    "to work offline, download the model elsewhere (hf download NAME --local-dir DIR) and give DIR as `pretrained`"
)


def _require_hub(name: str) -> None:
    """Ask the hub once: its own client tries for a minute before it gives up."""
    tried = f"{name}: not in the local cache ({constants.HF_HUB_CACHE})"
    if constants.HF_HUB_OFFLINE:
        raise ModelError(f"{tried}, and HF_HUB_OFFLINE forbids the download; {_LOCAL_COPY}")
    try:
        urllib.request.urlopen(
            f"{constants.ENDPOINT}/api/models/{urllib.parse.quote(name)}", timeout=_PROBE_SECONDS
        ).close()
    except urllib.error.HTTPError:
        return  # The hub answers; its own client knows about tokens and reports what is wrong.
    except (TimeoutError, urllib.error.URLError, ConnectionError) as error:
        reason = getattr(error, "reason", error)
        if isinstance(reason, ssl.SSLError):
            return  # The client may know certificates that the standard library does not.
        raise ModelError(f"{tried}, and {constants.ENDPOINT} cannot be reached ({reason}); {_LOCAL_COPY}") from error


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keep loading reports and progress bars off the terminal: what matters in them is raised or warned."""
    verbosity, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity(transformers_logging.CRITICAL)
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()
