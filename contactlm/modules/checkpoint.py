"""Whether a checkpoint is one, and belongs to this model."""

from __future__ import annotations

import errno
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from contactlm.metrics.calibration import Calibration
from contactlm.model.loading import ADAPTER_FILE
from contactlm.types import ContactDefinition, ModelError

CONTACT_HEAD = "contact head"  # what most models read maps from
CHECKPOINT_KEY = "contactlm"  # under which a checkpoint says what it belongs to
PARTS_INDEX = "meta.pt"  # in a folder with a part of each process, which earlier versions wrote
# What torch and Lightning raise for files that are damaged.
UNREADABLE = (OSError, RuntimeError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError)
BEGINNINGS = (
    (b"PK\x03\x04", "a zip archive that is no checkpoint, or one that is cut short: copy it again"),
    (b"\x1f\x8b", "gzip data: unpack it first"),
    (b"version https://git-lfs", "a Git LFS pointer in place of the file: fetch it with `git lfs pull`"),
    (b"\x80", "a pickle, such as older versions of torch wrote"),
)
STARTS_OF_TEXT = (("<", "a web page or XML"), (">", "a FASTA file"), ("data_", "an mmCIF file"))


def check_checkpoint(path: str | Path) -> dict[str, Any]:
    """The checkpoint, its weights without storage; complains about one that cannot be read."""
    try:
        checkpoint = torch.load(path, weights_only=True, map_location="meta", mmap=True)
    except IsADirectoryError:
        raise ModelError(f"ckpt_path: {path} {_instead(Path(path))}") from None
    except (FileNotFoundError, NotADirectoryError):
        raise ModelError(f"ckpt_path: {path} does not exist") from None
    except (*UNREADABLE, EOFError, pickle.UnpicklingError) as error:
        if isinstance(error, OSError) and error.errno != errno.EINVAL:  # that is: mapping more than the file has
            raise ModelError(f"ckpt_path: {path} cannot be read ({error.strerror or error})") from error
        raise ModelError(f"ckpt_path: {path} is not a readable checkpoint: it is {_kind(path)}") from error
    if not isinstance(checkpoint, dict) or CHECKPOINT_KEY not in checkpoint:
        raise ModelError(f"ckpt_path: {path} was not written by contactlm; give a checkpoint of `contactlm fit`")
    if fault := _fault(checkpoint):
        raise damaged(path, fault)
    return checkpoint


def _instead(folder: Path) -> str:
    """What a folder is that was given as a checkpoint, and what to give."""
    if (folder / ADAPTER_FILE).is_file():
        return (
            "is an exported adapter, which Python reads (ContactModule.from_adapter); here give the checkpoint it "
            "comes from, or export that with --merge and give the folder as model.pretrained"
        )
    if (folder / PARTS_INDEX).is_file():
        return (
            "is a checkpoint in parts, of an earlier version; make a file of it with that version: contactlm export "
            f"--plain --ckpt_path {folder} --out one.ckpt"
        )
    return "is a folder; give a file, or a folder that `contactlm export --merge` wrote as model.pretrained"


def damaged(path: str | Path, reason: str | BaseException) -> ModelError:
    """What to raise for a checkpoint whose values are none that this package writes."""
    reason = (str(reason).strip().splitlines() or [type(reason).__name__])[0]
    return ModelError(f"ckpt_path: {path} is a damaged checkpoint ({reason[:300]}); give another one of the run")


def _fault(checkpoint: Mapping[str, Any]) -> str | None:
    """What of the values that every checkpoint holds is missing, or of another kind; None where all are there."""
    about, weights = checkpoint[CHECKPOINT_KEY], checkpoint.get("state_dict")
    if not isinstance(about, dict):
        return f"{CHECKPOINT_KEY} is a {type(about).__name__}"
    if missing := sorted({"backbone", "backbone_checksum", "tuned_threshold"} - about.keys()):
        return f"{CHECKPOINT_KEY} lacks {', '.join(missing)}"
    if not isinstance(about.get("class", ""), str):
        return f"class is a {type(about['class']).__name__}"
    if not isinstance(weights, dict) or not all(isinstance(weight, Tensor) for weight in weights.values()):
        return "state_dict holds something else than weights"
    jump = about.get("chain_jump", 1)  # older checkpoints have none
    if not (isinstance(jump, int) and jump >= 1):
        return f"chain_jump is {jump!r}"
    threshold = about["tuned_threshold"]
    if threshold is not None and not (isinstance(threshold, float | int) and 0 <= threshold <= 1):
        return f"tuned_threshold is {threshold!r}"
    try:
        ContactDefinition.from_text(about.get("contact", "cb < 8 Å"))
        if about.get("calibration") is not None:
            Calibration.from_dict(about["calibration"])
    except (ValueError, AttributeError) as error:
        return str(error)
    return None


def _kind(path: str | Path) -> str:
    """What a file is that torch cannot read as a checkpoint of plain values; its own advice is for programmers."""
    if zipfile.is_zipfile(path):
        try:
            with zipfile.ZipFile(path) as archive:
                names = archive.namelist()
        except (*UNREADABLE, EOFError, zipfile.BadZipFile):
            return "a damaged zip archive: copy it again"
        if any(name.endswith("data.pkl") for name in names):
            return "damaged, or holds Python objects, which are not loaded from files"
        return "a zip archive that is no checkpoint, such as .npz"
    with Path(path).open("rb") as handle:
        head = handle.read(512)
    if not head.strip(b"\0"):
        return "a file of zeros: a copy or download that broke off" if head else "an empty file"
    for start, kind in BEGINNINGS:
        if head.startswith(start):
            return kind
    if head[8:10] == b'{"':
        return "a safetensors file: give its folder as model.pretrained"
    try:
        text = head.decode("utf-8").lstrip()
    except UnicodeDecodeError:
        return "no checkpoint, and of no kind that is known here"
    return next((kind for start, kind in STARTS_OF_TEXT if text.startswith(start)), "a text file")


def found_backbone(checkpoint: Mapping[str, Any]) -> str | None:
    """Where a checkpoint's local backbone is, when its name, a relative path, leads nowhere from here."""
    about = checkpoint[CHECKPOINT_KEY]
    folder = about.get("backbone_folder")  # older checkpoints have none
    if not isinstance(folder, str) or Path(about["backbone"]).exists() or not Path(folder).exists():
        return None
    return folder


def check_fits(about: Mapping[str, Any], head: str, pretrained: str | None, checksum: str | None) -> None:
    """Refuse a checkpoint whose maps are read from something else, or that was trained on another backbone."""
    check_head(about, head)
    if about["backbone_checksum"] != checksum:
        raise ModelError(
            f"the checkpoint was trained on the backbone {about['backbone'] or 'of its own'} (checksum "
            f"{about['backbone_checksum']}), but this model has {pretrained or 'one of its own'} (checksum "
            f"{checksum}); set model.pretrained to the backbone it was trained on"
        )


def check_head(about: Mapping[str, Any], head: str) -> None:
    """Refuse a checkpoint, by what it says of itself, whose maps are not read from ``head``."""
    written = about.get("head", CONTACT_HEAD)
    if written != head:
        raise ModelError(
            f"the checkpoint was written by {about.get('class', 'another class')} and holds a {written}, but this "
            f"model has a {head}; load it with the class that wrote it (on the command line: leave out model_class)"
        )


def public_name(name: str) -> str:
    """The name by which a class is imported; checkpoints of version 0.1 name this package's by the file it was in.

    Examples:
        >>> public_name("contactlm.module.ContactModule"), public_name("mine.models.Ours")
        ('contactlm.ContactModule', 'mine.models.Ours')
    """
    package, _, rest = name.partition(".")
    return f"{package}.{rest.rpartition('.')[2]}" if package == "contactlm" else name


def check_weights(given: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    """Refuse weights of which some are missing, unknown, or of another shape."""
    problems: list[str] = [f"{name} is missing" for name in wanted if name not in given]
    problems += [f"{name} is unknown here" for name in given if name not in wanted]
    problems += [
        f"{name} has shape {tuple(given[name].shape)}, this model's has {tuple(weight.shape)}"
        for name, weight in wanted.items()
        if name in given and given[name].shape != weight.shape
    ]
    if problems:
        raise ModelError(
            f"the checkpoint's weights do not fit this model ({len(problems)} problems, first: "
            f"{'; '.join(problems[:3])}); use the model options it was trained with (lora, freeze_backbone, train_head)"
        )
