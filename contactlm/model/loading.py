"""Backbones of every family: from the Hugging Face hub, from a local directory, or from random numbers."""

from __future__ import annotations

import hashlib
import logging
import math
import re
import ssl
import urllib.error
import urllib.parse
import urllib.request
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import constants, hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, StrictDataclassError
from safetensors import SafetensorError
from transformers import PreTrainedConfig
from transformers.utils import logging as transformers_logging

from contactlm.alphabet import LETTERS
from contactlm.model.families.family import Family, family_of
from contactlm.model.families.vocabulary import PROTBERT, VOCABULARY_FILES, read_vocabulary
from contactlm.model.weight_files import SUFFIXES, model_folder
from contactlm.types import MissingExtraError, ModelError

log = logging.getLogger(__name__)

ADAPTER_FILE = "adapter_config.json"
HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_WEIGHT_FILES = ("model*.safetensors*", "pytorch_model*.bin*")
OWN_HEAD = "contactlm_head"  # in config.json: the contact head next to it was trained, whatever the family publishes
EXPORTED = "contactlm_export"  # in config.json: what the export says of itself lies next to it
# What distinguishes families besides their sizes, and where ESM2 stands.
_KIND: dict[str, Any] = {
    "model_type": "esm",
    "position_embedding_type": "rotary",
    "emb_layer_norm_before": None,  # always given: without it learned positions are ESM-1b's
    "vocab_size": 33,
    "mask_token_id": 32,
    "max_position_embeddings": 1026,
    "vocabulary": None,
}
_ADAPTER_PART = re.compile(r"(^|\.)lora_|(^|\.)contact_head\.|(^|\.)pooler\.")
_KNOWN_HEAD = re.compile(r"(^|\.)(cls\.predictions|cls\.seq_relationship|lm_head|pooler|contact_head)\.|position_ids")
_WHEELS = {"antiberty": "antibodies"}  # packages with weights in them, and the extras that bring them
_PROBE_SECONDS = 10
_ADAPTER_ALONE = (
    "an adapter, and no whole model; export the checkpoint with contactlm export --merge, or load the adapter "
    "in Python (ContactModule.from_adapter, predict_contacts)"
)
LOCAL_COPY = (
    "to work offline, download the model elsewhere (hf download NAME --local-dir DIR) and give DIR as `pretrained`"
)
# What transformers raises for options of a wrong type or value.
_UNFIT = (TypeError, ValueError, AttributeError, LookupError, ArithmeticError, StrictDataclassError)


def load_esm(
    pretrained: str | None, architecture: Mapping[str, Any] | None = None, seed: int = 0, as_stored: bool = False
) -> Any:
    """Load a backbone with its contact head, in float32 (on a CPU mapped from the file) and in evaluation mode.

    Args:
        pretrained: Hub name, or local directory saved from ``EsmForMaskedLM``, ``EsmModel``, ``EsmcForMaskedLM``,
            ``BertModel``, …; file of weights of fair-esm (``.pt``; by name, where torch hub has it) or of the ``esm``
            package (``.pth``); name of an installed package with weights in it; None for random weights.
        architecture: With ``pretrained=None``: ``model_type``, ``esm`` where it is left out, and arguments of its
            configuration; what is left out is as in ESM2, ESM C or ProtBert.
        seed: Decides every weight that is not loaded. The global generators are left alone.
        as_stored: Whether weights are left in the dtype of the file; what reads them makes float32 of them.

    Returns:
        The backbone, without a pooler. Its contact head is zero where the family has no published one, and none was
        loaded; a warning names one that starts at random or was never trained. ``head_is_trained`` says so of others.
    """
    if (pretrained is None) == (architecture is None):
        given = "both" if architecture is not None else "neither"
        raise ModelError(f"backbone: give pretrained (hub name or directory) or architecture; {given} was given")
    with torch.random.fork_rng(devices=[]), quiet_transformers():
        torch.random.default_generator.manual_seed(seed)
        if pretrained is not None:
            return _load(pretrained, as_stored)
        model = _random(architecture or {})
    model.head_is_trained = False
    return model


def architecture_of(pretrained: str) -> dict[str, Any]:
    """The sizes and the kind of a model by its ``config.json`` alone, as ``architecture`` takes them."""
    try:
        pretrained = located(pretrained)
        config, _ = PreTrainedConfig.get_config_dict(str(Path(pretrained).expanduser()))
    except OSError as error:
        raise ModelError(f"{pretrained}: no config.json can be had: {_first_line(error)}; {LOCAL_COPY}") from error
    config |= _own_vocabulary(pretrained, config, local_files_only=False)
    family = family_of(config, pretrained)
    names = ("num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size")
    if missing := [name for name in names if name not in config]:
        raise ModelError(f"{pretrained}: config.json lacks {', '.join(missing)}")
    values = family.config_class.from_dict(config).to_dict()  # a file leaves out what is usual in its class
    kind = {name: values[name] for name, usual in _KIND.items() if values.get(name, usual) != usual}
    return {name: config[name] for name in names} | kind


def backbone_checksum(esm: Any) -> str:
    """Fingerprint a backbone's base weights: SHA-256 over names, shapes and float32 values, in hexadecimal digits.

    The contact head, LoRA weights and a pooler do not count, so that it is the same before and after training with
    LoRA, and after saving and loading.
    """
    digest = hashlib.sha256()
    named = {name.replace("base_layer.", ""): weight for name, weight in esm.named_parameters()}
    for name in sorted(name for name in named if not _ADAPTER_PART.search(name)):
        weight = named[name].detach().to("cpu", torch.float32).contiguous()
        digest.update(f"{name} {tuple(weight.shape)}\n".encode())
        digest.update(weight.numpy().data)
    return digest.hexdigest()


def _random(architecture: Mapping[str, Any]) -> Any:
    kind = architecture.get("model_type", "esm")
    # an EsmModel is ESM2's unless its positions are given otherwise, and ESM-1b's unless its norm is
    usual = {"position_embedding_type": "rotary", "emb_layer_norm_before": True} if kind == "esm" else {}
    family = family_of({**usual, **architecture, "model_type": kind}, "architecture")
    given = {name: value for name, value in architecture.items() if name != "model_type"}
    unknown = sorted(set(given) - set(family.config_class().to_dict()) - {"vocabulary"})
    if unknown:
        raise ModelError(f"architecture: {', '.join(unknown)}: no such argument of {family.config_class.__name__}")
    try:
        config = family.config_class(**{**family.defaults, "vocab_size": family.tokens.size, **given})
    except _UNFIT as error:
        raise ModelError(f"architecture {dict(architecture)}: {_first_line(error)}") from error
    family.check("architecture", config)
    model = family.model_class(config, **family.model_options)
    return _zero_head(model).eval() if not family.published_head else model.eval()


def _zero_head(model: Any) -> Any:
    for parameter in model.contact_head.parameters():
        torch.nn.init.zeros_(parameter)
    return model


def located(pretrained: str) -> str:
    """The folder or hub name of a model: as given, or for a file of weights, or a package that is not imported."""
    file = Path(pretrained).expanduser()
    if pretrained.isidentifier() and (cached := Path(torch.hub.get_dir(), "checkpoints", f"{pretrained}.pt")).is_file():
        file = cached
    if file.suffix in SUFFIXES and not file.is_dir():
        return str(model_folder(file))
    if not pretrained.isidentifier() or Path(pretrained).is_dir():
        return pretrained
    spec = find_spec(pretrained)
    if spec is None and pretrained in _WHEELS:
        raise MissingExtraError(pretrained, _WHEELS[pretrained], "it is not installed")
    homes = map(Path, () if spec is None else spec.submodule_search_locations or ())
    folders = {path.parent for home in homes for path in home.rglob("config.json") if _has_weights(path.parent)}
    if len(folders) > 1:
        raise ModelError(f"{pretrained}: several models in this package; give one: {', '.join(map(str, folders))}")
    return str(folders.pop()) if folders else pretrained


def _has_weights(directory: Path) -> bool:
    return any(any(directory.glob(pattern)) for pattern in _WEIGHT_FILES)


def _load(pretrained: str, as_stored: bool) -> Any:
    pretrained = located(pretrained)
    directory = Path(pretrained).expanduser()
    if directory.is_dir():
        _require_complete(directory)
        return _from_pretrained(str(directory), as_stored, local_files_only=True)
    if pretrained.startswith((".", "/", "~")) or pretrained.count("/") > 1:
        raise ModelError(f"{pretrained}: no such directory; give a directory with config.json or a hub name")
    try:
        return _from_pretrained(pretrained, as_stored, local_files_only=True)
    except _NotFoundError:
        require_hub(pretrained)
    return _from_pretrained(pretrained, as_stored, local_files_only=False)


class _NotFoundError(ModelError):
    """Files that are not where they were looked for."""


def _from_pretrained(name: str, as_stored: bool, local_files_only: bool) -> Any:
    made = "a model"
    try:
        values, _ = PreTrainedConfig.get_config_dict(name, local_files_only=local_files_only)
        vocabulary = _own_vocabulary(name, values, local_files_only)
        family = family_of({**values, **vocabulary}, name)
        made = f"{'an' if family.name[0] in 'AEIO' else 'a'} {family.name} model"
        _require_finite(name, values)
        family.check(name, family.config_class.from_dict(values))
        _require_weights_enough(name, values)
        model, report = family.model_class.from_pretrained(
            name,
            local_files_only=local_files_only,
            output_loading_info=True,
            dtype="auto" if as_stored else torch.float32,
            **family.model_options,
        )
    except OSError as error:
        raise _NotFoundError(f"{name}: cannot be loaded: {_first_line(error)}; {LOCAL_COPY}") from error
    except (*_UNFIT, RuntimeError, SafetensorError) as error:
        if isinstance(error, ModelError):
            raise
        raise ModelError(f"{name}: config.json and weights do not make {made}: {_first_line(error)}") from error
    model.config.update(vocabulary)
    _check_loaded(name, set(report["missing_keys"]), family, model, bool(values.get(OWN_HEAD)))
    _tell_what_is_left_out(name, report["unexpected_keys"], family, model)
    for key, weight in model.named_parameters():
        if not torch.isfinite(weight).all():
            raise ModelError(f"{name}: {key} has values that are not finite: damaged weights; fetch them again")
    return model.eval()


def _check_loaded(name: str, missing: set[str], family: Family, model: Any, own_head: bool) -> None:
    head = {key for key in missing if key.startswith("contact_head.")}
    model.head_is_trained = not head and (family.published_head or own_head)
    # Rotary frequencies follow from the configuration; older checkpoints do not hold them here.
    lost = sorted(key for key in missing - head if "rotary_embeddings" not in key and "position_ids" not in key)
    if lost:
        raise ModelError(f"{name}: the checkpoint lacks {len(lost)} backbone weights, such as {lost[0]}")
    if head and not family.published_head:
        _zero_head(model)
    elif head:
        warnings.warn(
            f"{name}: no contact-head weights ({', '.join(sorted(head))}) in the checkpoint: "
            "the contact head starts from random values and predicts nothing before it is trained",
            stacklevel=5,
        )
    elif not family.published_head and not own_head:
        warnings.warn(
            f"{name}: {family.name} has no published contact head, and the one in the checkpoint is untrained "
            "unless you trained it: fit one with `contactlm head fit`, or train it",
            stacklevel=5,
        )


def _own_vocabulary(name: str, config: Mapping[str, Any], local_files_only: bool) -> dict[str, Any]:
    """What the vocabulary next to a BERT, or one folder up, adds to its ``config.json``; nothing for ProtBert's."""
    if config.get("model_type") != "bert" or config.get("vocabulary"):
        return {}
    for file in VOCABULARY_FILES:
        if (path := _beside(name, file, local_files_only)) is not None:
            vocabulary = read_vocabulary(path)
            return {} if vocabulary == PROTBERT else {"vocabulary": list(vocabulary)}
    if local_files_only and not Path(name).is_dir() and config.get("vocab_size") != len(PROTBERT):
        raise _NotFoundError(f"{name}: no {' or '.join(VOCABULARY_FILES)} in the local cache; {LOCAL_COPY}")
    return {}


def _beside(name: str, file: str, local_files_only: bool) -> Path | None:
    directory = Path(name).expanduser()
    if directory.is_dir():
        return next((at / file for at in (directory, directory.resolve().parent) if (at / file).is_file()), None)
    try:
        return Path(hf_hub_download(name, file, local_files_only=local_files_only))
    except EntryNotFoundError:
        return None


def _tell_what_is_left_out(name: str, keys: Iterable[str], family: Family, model: Any) -> None:
    """Name heads in the checkpoint that nobody here reads, and letters that are unknown to a vocabulary of its own."""
    heads = sorted({".".join(key.split(".")[:2]) for key in keys if not _KNOWN_HEAD.search(key)})
    if heads:
        log.info(f"{name}: {', '.join(heads)} in the checkpoint are not used")
    vocabulary, letters = getattr(model.config, "vocabulary", None), family.tokens.letters or {}
    if vocabulary and (lost := [letter for letter in LETTERS if letter not in letters]):
        log.info(
            f"{name}: {len(lost)} letters not in its vocabulary ({', '.join(lost)}), read as "
            f"{vocabulary[family.tokens.unk]}"
        )


def _require_complete(directory: Path) -> None:
    if not (directory / "config.json").is_file():
        reason = "no config.json there; give a directory written by save_pretrained, or a hub name"
        raise ModelError(f"{directory}: {_ADAPTER_ALONE if (directory / ADAPTER_FILE).is_file() else reason}")
    if not _has_weights(directory):
        raise ModelError(f"{directory}: config.json but no weights (model.safetensors or pytorch_model.bin) there")


def _require_finite(name: str, config: Mapping[str, Any]) -> None:
    for key, value in config.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise ModelError(f"{name}: config.json has {key}: {value}, which is not finite: damaged; fetch it again")


def _require_weights_enough(name: str, config: Mapping[str, Any]) -> None:
    """Refuse sizes that the weight files cannot fill, at a byte a weight, before a model of them is built.

    Building takes minutes and gigabytes where a damaged config.json asks for a million layers.
    """
    files = {path for pattern in _WEIGHT_FILES for path in Path(name).glob(pattern)}
    if not files:
        return  # on the hub
    sizes = [config.get(key) for key in ("num_hidden_layers", "hidden_size", "intermediate_size")]
    layers, width, inner = (size if isinstance(size, int) else 0 for size in sizes)  # its own class reports others
    described, held = layers * width * (4 * width + 2 * inner), sum(path.stat().st_size for path in files)
    if described > held:
        raise ModelError(
            f"{name}: config.json describes {described:,} weights in its layers ({layers} layers, hidden_size {width}, "
            f"intermediate_size {inner}), and the weight files hold {held:,} bytes: one of them is damaged"
        )


def require_hub(name: str) -> None:
    """Ask the hub once: its own client tries for a minute before it gives up."""
    tried = f"{name}: not in the local cache ({constants.HF_HUB_CACHE})"
    if constants.HF_HUB_OFFLINE:
        raise ModelError(f"{tried}, and HF_HUB_OFFLINE forbids the download; {LOCAL_COPY}")
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
        raise ModelError(f"{tried}, and {constants.ENDPOINT} cannot be reached ({reason}); {LOCAL_COPY}") from error


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
