"""LightningModules by name: named by a user, or by the checkpoint that one of them wrote."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

from contactlm.modules.base import MapModule
from contactlm.modules.checkpoint import CHECKPOINT_KEY, check_checkpoint, public_name
from contactlm.types import ModelError

OPTION = "model_class"
DEFAULT = "contactlm.ContactModule"


def import_module_class(name: str) -> type[MapModule]:
    """Import a subclass of MapModule.

    Args:
        name: Such as ``contactlm.ContrastiveModule``.

    Raises:
        ModelError: There is no such class, or it is no MapModule.
    """
    where, _, what = name.rpartition(".")
    try:
        found = getattr(import_module(where), what)
    except (ImportError, AttributeError, ValueError) as error:
        raise ModelError(
            f"{OPTION}: {name} cannot be imported ({error}); give a class as package.Class, for example {DEFAULT}"
        ) from error
    if not (isinstance(found, type) and issubclass(found, MapModule)):
        raise ModelError(f"{OPTION}: {name} is no subclass of contactlm.MapModule")
    return found


def checkpoint_class(path: str | Path) -> type[MapModule]:
    """The class that a checkpoint was written by, if it is one of this package; ContactModule where it does not say.

    Raises:
        ModelError: No such checkpoint, or one by a class of another package (a file does not decide what is imported).
    """
    name = public_name(check_checkpoint(path)[CHECKPOINT_KEY].get("class", DEFAULT))
    if not name.startswith("contactlm."):
        raise ModelError(f"ckpt_path: {path} was written by {name}; give `--{OPTION} {name}`, or load it in Python")
    return import_module_class(name)
