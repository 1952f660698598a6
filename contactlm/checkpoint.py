"""Telling a readable checkpoint of this package from other files."""

from __future__ import annotations

import pickle
from pathlib import Path

import torch

from contactlm.types import ModelError

CHECKPOINT_KEY = "contactlm"  # under which a checkpoint says what it belongs to


def check_checkpoint(path: str | Path) -> None:
    """Complain about a checkpoint that cannot be read, before anything is built from it.

    Raises:
        ModelError: No such file, or one that is not a checkpoint of plain values written by this package.
    """
    if not Path(path).is_file():
        raise ModelError(f"ckpt_path: {path} does not exist")
    try:
        checkpoint = torch.load(path, weights_only=True, map_location="meta", mmap=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        raise ModelError(f"ckpt_path: {path} is not a readable checkpoint ({str(error).splitlines()[0]})") from error
    if not isinstance(checkpoint, dict) or CHECKPOINT_KEY not in checkpoint:
        raise ModelError(
            f"ckpt_path: {path} was not written by contactlm; give a checkpoint that `contactlm fit` wrote"
        )
