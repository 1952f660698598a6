"""Which LightningModule a command builds: named by a config, a flag, or the checkpoint at hand."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

import yaml

from contactlm.modules.checkpoint import CHECKPOINT_KEY, check_checkpoint, check_head, public_name
from contactlm.modules.contact import ContactModule
from contactlm.types import ModelError

OPTION = "model_class"
DEFAULT = "contactlm.ContactModule"
NOT_PATHS = ("best", "last", "hpc", "registry")  # what Lightning takes for ckpt_path beside a path


def import_module_class(name: str) -> type[ContactModule]:
    """Import a subclass of ContactModule.

    Args:
        name: Such as ``contactlm.ContrastiveModule``.

    Raises:
        ModelError: There is no such class, or it is no ContactModule.
    """
    where, _, what = name.rpartition(".")
    try:
        found = getattr(import_module(where), what)
    except (ImportError, AttributeError, ValueError) as error:
        raise ModelError(
            f"{OPTION}: {name} cannot be imported ({error}); give a class as package.Class, for example {DEFAULT}"
        ) from error
    if not (isinstance(found, type) and issubclass(found, ContactModule)):
        raise ModelError(f"{OPTION}: {name} is no subclass of {DEFAULT}")
    return found


def checkpoint_class(path: str | Path) -> type[ContactModule]:
    """The class that a checkpoint was written by, if it is one of this package; ContactModule where it does not say.

    Raises:
        ModelError: No such checkpoint, or one by a class of another package (a file does not decide what is imported).
    """
    name = public_name(check_checkpoint(path)[CHECKPOINT_KEY].get("class", DEFAULT))
    if not name.startswith("contactlm."):
        raise ModelError(f"ckpt_path: {path} was written by {name}; give `--{OPTION} {name}`, or load it in Python")
    return import_module_class(name)


def chosen_class(arguments: Sequence[str]) -> type[ContactModule]:
    """Find the class that a command line asks for, before its options can be parsed.

    Args:
        arguments: With configs resolved to paths. The last ``--model_class``, or config with that key, decides; where
            none says, the checkpoint does.

    Raises:
        ModelError: A class that cannot be used, a checkpoint that cannot be read, or one with another head than the
            class has.
    """
    following = [*arguments[1:], ""]
    name = checkpoint = None
    for argument, after in zip(arguments, following, strict=True):
        option, has_value, value = argument.partition("=")
        value = value if has_value else after
        if option in ("--config", "-c"):
            name = _named_in(value) or name
        elif option == f"--{OPTION}":
            name = value
        elif option == "--ckpt_path" and value not in (*NOT_PATHS, "null"):
            checkpoint = value
    if name is None:
        return ContactModule if checkpoint is None else checkpoint_class(checkpoint)
    chosen = import_module_class(name)
    if checkpoint is not None:
        check_head(check_checkpoint(checkpoint)[CHECKPOINT_KEY], chosen.head)
    return chosen


def _named_in(config: str) -> str | None:
    """The class a config names; what is wrong with the file is for the parser to say."""
    try:
        content = yaml.safe_load(Path(config).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return None
    return content.get(OPTION) if isinstance(content, dict) else None
