"""PEFT adapter directories: LoRA weights and the contact head, for ``peft.PeftModel`` and for this package."""

from __future__ import annotations

import copy
import json
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import constants, hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError
from peft import LoraConfig
from peft.tuners.lora import LoraLayer
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from contactlm.metrics.calibration import Calibration
from contactlm.model.families.family import family_of
from contactlm.model.frozen_weights import whole_weights
from contactlm.model.loading import (
    ADAPTER_FILE,
    EXPORTED,
    HUB_NAME,
    LOCAL_COPY,
    OWN_HEAD,
    quiet_transformers,
    require_hub,
)
from contactlm.model.lora import ALL_LINEAR, BIASES, INITS, LoraOptions
from contactlm.model.pair_head import PairOptions, read_pair_head
from contactlm.types import ModelError

ABOUT_FILE = "contactlm.json"  # what an export says about itself
CONFIG_FILE = ADAPTER_FILE
WEIGHTS_FILE = "adapter_model.safetensors"
_ADAPTER = "default"  # PEFT's name for the only adapter there is
_HEAD, _TRAINED_HEAD = "contact_head.", f"contact_head.modules_to_save.{_ADAPTER}."
_MAGNITUDE = "lora_magnitude_vector"  # of DoRA; PEFT's files leave out that it is a weight
# Settings that change what an adapter computes and that LoraOptions has no word for; all are off by default.
_UNSUPPORTED = (
    *("lora_bias", "fan_in_fan_out", "exclude_modules", "layers_pattern", "layer_replication", "target_parameters"),
    *("trainable_token_indices", "alora_invocation_tokens", "use_qalora", "use_bdlora", "arrow_config", "kasa_config"),
    *("velora_config", "monteclora_config"),
)


@dataclass(frozen=True)
class Adapter:
    """What an adapter directory holds; None where it does not say."""

    backbone: str  # name or directory of the one it belongs on
    backbone_checksum: str | None
    lora: LoraOptions
    tuned_threshold: float | None  # found on dev
    calibration: Calibration | None  # fitted on dev
    held: dict[str, str]  # backbone_dtype and quantization it was trained on, where that was not float32
    weights: dict[str, Tensor]  # by their names in the file
    pair: tuple[PairOptions, dict[str, Tensor]] | None = None  # a pair head's options and weights


def has_adapters(esm: Any) -> bool:
    """Whether LoRA adapters were put into a backbone."""
    return any(isinstance(module, LoraLayer) for module in esm.modules())


def save_adapter(esm: Any, backbone: str, directory: Path) -> None:
    """Write the adapters and the contact head of a backbone into an existing folder, as PEFT does.

    ``backbone`` is its name or directory, for ``base_model_name_or_path``.
    """
    config = copy.copy(esm.peft_config[_ADAPTER])
    config.base_model_name_or_path = backbone
    config.inference_mode = True
    config.target_modules = sorted(config.target_modules)
    stock = family_of(esm.config).stock_class
    config.auto_mapping = {"base_model_class": stock.__name__, "parent_library": stock.__module__}
    config.save_pretrained(str(directory))
    weights = {name: weight.detach().cpu().contiguous() for name, weight in _adapter_weights(esm).items()}
    save_file(weights, directory / WEIGHTS_FILE, metadata={"format": "pt"})
    _let_others_read(directory)


def save_merged(esm: Any, directory: Path) -> None:
    """Write a plain float32 checkpoint that the stock class loads: W + (alpha / r) B A, and the trained contact head.

    Of DoRA every row has the length that was learned. W is what the model computes with: where frozen weights are held
    in fewer bits, the rounded values. Stock classes other than ``EsmModel`` know no contact head, and leave it aside.
    """
    family = family_of(esm.config)
    weights = {name.replace(".base_layer.", "."): weight for name, weight in whole_weights(esm).items()}
    if has_adapters(esm):
        trained = {n.replace(_TRAINED_HEAD, _HEAD): w for n, w in weights.items() if n.startswith(_TRAINED_HEAD)}
        weights = {n: w for n, w in weights.items() if "lora_" not in n and not n.startswith(_HEAD)} | trained
        for name, module in esm.named_modules():
            if isinstance(module, LoraLayer):
                adapted = weights[f"{name}.weight"] + module.get_delta_weight(_ADAPTER).detach()
                if _ADAPTER in (magnitudes := getattr(module, _MAGNITUDE, {})):
                    adapted *= (magnitudes[_ADAPTER].weight.detach() / adapted.norm(dim=1)).unsqueeze(1)
                weights[f"{name}.weight"] = adapted
    with torch.device("meta"):  # a frame for the weights, without a second copy of them
        plain = family.model_class(copy.deepcopy(esm.config), **family.model_options)
    plain.load_state_dict({name: weight.detach().cpu() for name, weight in weights.items()}, assign=True)
    with quiet_transformers():
        plain.save_pretrained(str(directory))
    _let_others_read(directory)
    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    config["attn_implementation"] = "eager"  # the one with attention maps, which stock predict_contacts needs
    config["architectures"], config[EXPORTED] = [family.stock_class.__name__], True
    if not family.published_head:
        config[OWN_HEAD] = True
    (directory / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _let_others_read(directory: Path) -> None:
    """Give weight files the mode of the new file next to them: safetensors makes them for their owner alone."""
    model_file = next(directory.glob("*config.json"))
    for path in directory.glob("*.safetensors"):
        path.chmod(stat.S_IMODE(model_file.stat().st_mode))


def read_adapter(directory: str | Path) -> Adapter:
    """Read an adapter, a directory or a hub name, written by this package or by PEFT."""
    directory = fetched(directory, CONFIG_FILE, WEIGHTS_FILE, ABOUT_FILE)
    if not (directory / CONFIG_FILE).is_file():
        raise ModelError(f"{directory}: no {CONFIG_FILE} there; give a directory that `contactlm export` wrote")
    try:
        config = json.loads((directory / CONFIG_FILE).read_text(encoding="utf-8"))
        backbone = config.get("base_model_name_or_path") or ""
        if not isinstance(backbone, str):
            raise ValueError(f"base_model_name_or_path is {backbone!r}")
        weights = load_file(directory / WEIGHTS_FILE)
    except (OSError, ValueError, AttributeError, SafetensorError) as error:
        raise ModelError(f"{directory}: the adapter cannot be read: {str(error)[:300]}") from error
    about = read_about(directory)
    checksum, threshold, held = about.get("backbone_checksum"), about.get("tuned_threshold"), about.get("held", {})
    options, calibration = _lora_options(directory, config), calibration_of(about)
    pair = read_pair_head(directory)
    return Adapter(backbone, checksum, options, threshold, calibration, dict(held), weights, pair)


def fetched(name: str | Path, *files: str) -> Path:
    """A directory; of a hub name the local copy with those of the files that are there."""
    directory, name = Path(name).expanduser(), str(name)
    if directory.is_dir() or not HUB_NAME.fullmatch(name):
        return directory
    known = [try_to_load_from_cache(name, file) for file in files]  # a path, that there is none, or None: never asked
    if None in known:
        require_hub(name)
        known = [_downloaded(name, file) for file in files]
    return next((Path(path).parent for path in known if isinstance(path, str)), directory)


def _downloaded(name: str, file: str) -> str | None:
    try:
        return hf_hub_download(name, file)
    except (HfHubHTTPError, OSError) as error:
        if isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError):
            return None  # the hub has the repository, without such a file
        reason = str(error).strip().splitlines()[0].rstrip(".")
        raise ModelError(f"{name}: {file} cannot be had from {constants.ENDPOINT}: {reason}; {LOCAL_COPY}") from error


def load_adapter(esm: Any, adapter: Adapter) -> None:
    """Put an adapter's weights into a backbone that has adapters of the same options."""
    wanted = _adapter_weights(esm)
    problems = [f"{name} is missing" for name in wanted if name not in adapter.weights]
    problems += [f"{name} is unknown here" for name in adapter.weights if name not in wanted]
    problems += [
        f"{name} has shape {tuple(adapter.weights[name].shape)}, the backbone needs {tuple(weight.shape)}"
        for name, weight in wanted.items()
        if name in adapter.weights and adapter.weights[name].shape != weight.shape
    ]
    if problems:
        raise ModelError(
            f"the adapter does not fit this backbone ({len(problems)} problems, first: {'; '.join(problems[:3])}); it "
            f"was made for {adapter.backbone or 'another one'}"
        )
    with torch.no_grad():
        for name, weight in wanted.items():
            weight.copy_(adapter.weights[name])


def write_about(directory: Path, about: Mapping[str, Any]) -> None:
    """Write what an export says about itself: JSON values."""
    (directory / ABOUT_FILE).write_text(json.dumps(dict(about), indent=2) + "\n", encoding="utf-8")


def read_about(directory: str | Path) -> dict[str, Any]:
    """Read what an export says about itself; nothing where there is no such file."""
    path = Path(directory).expanduser() / ABOUT_FILE
    if not path.is_file():
        return {}
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
        threshold = about.get("tuned_threshold")
        if threshold is not None and not 0 <= float(threshold) <= 1:
            raise ValueError(f"tuned_threshold is {threshold}")
        calibration_of(about)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise ModelError(f"{path}: cannot be read: {error}; remove the file to do without it") from error
    return about


def calibration_of(about: Mapping[str, Any]) -> Calibration | None:
    """The calibration that an export brings; None where it brings none."""
    fitted = about.get("calibration")
    return None if fitted is None else Calibration.from_dict(fitted)


def _adapter_weights(esm: Any) -> dict[str, Tensor]:
    """The backbone's own tensors that an adapter holds, by their names in PEFT's files."""
    biases = ".base_layer.bias" if esm.peft_config[_ADAPTER].bias == "lora_only" else None
    return {
        "base_model.model." + _name_in_file(name): weight
        for name, weight in esm.state_dict().items()
        if ".lora_" in name or name.startswith(_TRAINED_HEAD) or (biases and name.endswith(biases))
    }


def _name_in_file(name: str) -> str:
    name = name.replace(_TRAINED_HEAD, _HEAD).replace(f".{_ADAPTER}.", ".")
    return name.removesuffix(".weight") if _MAGNITUDE in name else name


def _lora_options(directory: Path, config: Mapping[str, Any]) -> LoraOptions:
    kind, targets, bias = config.get("peft_type"), config.get("target_modules"), config.get("bias", "none")
    odd = [name for name in _UNSUPPORTED if config.get(name)]
    odd += [f"peft_type {kind!r}"] if kind != "LORA" else []
    odd += [f"bias {bias!r}"] if bias not in BIASES else []
    first = config.get("init_lora_weights", True)
    odd += [f"init_lora_weights {first!r}"] if first not in INITS else []
    listed = targets == ALL_LINEAR or (isinstance(targets, list) and all(isinstance(target, str) for target in targets))
    odd += [] if listed else [f"target_modules {targets!r}"]
    if odd or targets is None:
        raise ModelError(
            f"{directory}: {', '.join(odd)} in {CONFIG_FILE}; only LoRA and DoRA with a list of target modules can be "
            "read"
        )
    known, layers = LoraConfig(), config.get("layers_to_transform")
    return LoraOptions(
        r=config.get("r", known.r),
        alpha=config.get("lora_alpha", known.lora_alpha),
        dropout=config.get("lora_dropout", known.lora_dropout),
        target_modules=targets if targets == ALL_LINEAR else tuple(sorted(targets)),
        layers_to_transform=[layers] if isinstance(layers, int) else layers,
        rank_pattern=config.get("rank_pattern") or None,
        alpha_pattern=config.get("alpha_pattern") or None,
        use_rslora=bool(config.get("use_rslora")),
        use_dora=bool(config.get("use_dora")),
        bias=bias,
    )
