"""Options of adapters, looked at before they are parsed: a parser's own message about them fills a screen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from contactlm.cli.choice import CONFIG, option_pairs
from contactlm.cli.configs import content_of
from contactlm.model.lora import read_options
from contactlm.types import ModelError

_LORA = "--model.lora"
_OTHERS = {
    "IA3": (
        "(IA)3 learns a scale for every output of keys, values and feed-forward layers; DoRA learns such a scale for "
        "every row of a weight, and its direction as well: give --model.lora.use_dora true"
    ),
    "AdaLora": (
        "AdaLoRA takes ranks away by a schedule of optimizer steps that must be known when a run begins, and here a "
        "budget of tokens ends it; and it adds a penalty to the loss in a forward pass of PEFT's, which is not taken "
        "here; give ranks with --model.lora.rank_pattern"
    ),
}


def check_adapters(arguments: Sequence[str]) -> None:
    """Refuse options of ``model.lora`` that do not exist, and adapters of another kind.

    Args:
        arguments: With configs resolved to paths.

    Raises:
        ModelError: There is one; the message gives the option that was meant, or the reason.
    """
    for option, value in option_pairs(arguments):
        if option in CONFIG:
            model = content_of(value).get("model")
            given = model.get("lora") if isinstance(model, Mapping) else None
        elif option == _LORA:
            given = _plain(value)
        elif option.startswith(f"{_LORA}."):
            given = {option.removeprefix(f"{_LORA}.").split(".")[0].rstrip("+"): value}
        else:
            continue
        if isinstance(given, Mapping):
            _check(given)


def _check(given: Mapping[str, Any]) -> None:
    if "class_path" in given:
        name = str(given["class_path"])
        kind = next((kind for kind in _OTHERS if kind.lower() in name.lower()), None)
        reason = "adapters here are LoRA's and DoRA's" if kind is None else _OTHERS[kind]
        raise ModelError(f"lora: class_path {name}: {reason}; leave class_path out")
    read_options({str(name): None for name in given})


def _plain(value: str) -> Any:
    try:
        return yaml.safe_load(value)
    except yaml.YAMLError:
        return None  # the parser tells what is wrong
