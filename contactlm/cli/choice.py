"""Which LightningModule a command builds: named by a config, a flag, or the checkpoint at hand.

The class decides which options the parser knows, so that it is looked for before options are parsed: in configs and
flags alike, the last one counting, as for the parser. LightningCLI's own form, ``model: {class_path: …, init_args:
…}``, says the same as ``model_class: …`` with ``model: …``, and is read as that.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from contactlm.cli.configs import content_of
from contactlm.modules.base import MapModule
from contactlm.modules.checkpoint import CHECKPOINT_KEY, check_checkpoint, check_head
from contactlm.modules.choice import OPTION, checkpoint_class, import_module_class
from contactlm.modules.contact import ContactModule

NOT_PATHS = ("best", "last", "hpc", "registry")  # what Lightning takes for ckpt_path beside a path
CONFIG = ("--config", "-c")
_MODEL, _CLASS, _INIT = "--model", "--model.class_path", "--model.init_args"


def chosen_class(arguments: Sequence[str]) -> type[MapModule]:
    """Find the class that a command line asks for, before its options can be parsed.

    Args:
        arguments: Of :func:`plain_arguments`. The last ``model_class`` of configs and flags decides; where none says,
            the checkpoint does.

    Raises:
        ModelError: A class that cannot be used, a checkpoint that cannot be read, or one with another head than the
            class has.
    """
    given: dict[str, Any] = {}
    for option, value in option_pairs(arguments):
        if option in CONFIG:
            content = content_of(value)
            given.update({name: content[name] for name in (OPTION, "ckpt_path") if name in content})
        elif option in (f"--{OPTION}", "--ckpt_path"):
            given[option.removeprefix("--")] = value
    name, checkpoint = given.get(OPTION), given.get("ckpt_path")
    if checkpoint in (None, "null", *NOT_PATHS):
        return ContactModule if name is None else import_module_class(name)
    if name is None:
        return checkpoint_class(checkpoint)
    chosen = import_module_class(name)
    check_head(check_checkpoint(checkpoint)[CHECKPOINT_KEY], chosen.head)
    return chosen


def plain_arguments(arguments: Sequence[str]) -> list[str]:
    """Write LightningCLI's form of naming a class, in flags and in configs, as ``model_class`` and plain options.

    Args:
        arguments: With configs resolved to paths. One that names a class in that form is replaced by its content.
    """
    plain: list[str] = []
    skip = False
    for argument, after in zip(arguments, [*arguments[1:], ""], strict=True):
        if skip:
            skip = False
            continue
        option, has_value, value = argument.partition("=")
        value = value if has_value else after
        written = _plain(option, value)
        plain += [argument] if written is None else written
        skip = written is not None and not has_value
    return plain


def _plain(option: str, value: str) -> list[str] | None:
    """What stands for an option and its value; None: they themselves."""
    if option == _CLASS:
        return [f"--{OPTION}={value}"]
    if option.startswith(f"{_INIT}."):
        return [f"{_MODEL}.{option.removeprefix(f'{_INIT}.')}={value}"]
    if option in CONFIG:
        content = content_of(value)
        model = content.get("model")
        if isinstance(model, dict) and "class_path" in model:
            content.pop("config", None)  # what it is laid over comes before it, and text has no folder to look from
            rest = {**content, OPTION: model["class_path"], "model": model.get("init_args") or {}}
            return [f"--config={yaml.safe_dump(rest, sort_keys=False)}"]
    elif option == _MODEL:
        model = content_of(value)
        if "class_path" in model:
            return [f"--{OPTION}={model['class_path']}", f"{_MODEL}={json.dumps(model.get('init_args') or {})}"]
        if not model and value not in ("", "null") and not Path(value).exists():
            return [f"--{OPTION}={value}"]
    return None


def option_pairs(arguments: Sequence[str]) -> list[tuple[str, str]]:
    """Every option with its value; of an option without one, the next argument."""
    split = [argument.partition("=") for argument in arguments]
    return [
        (option, value if has_value else after)
        for (option, has_value, value), after in zip(split, [*arguments[1:], ""], strict=True)
    ]
