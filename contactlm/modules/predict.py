"""Models by name or path, and predict_contacts: from sequences to contact maps in one call."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import EllipsisType
from typing import overload

import torch
from torch import Tensor

from contactlm.alphabet import encode
from contactlm.maps.contact_map import ContactMap, ContactMaps
from contactlm.maps.windows import WindowOptions
from contactlm.model.adapter import CONFIG_FILE
from contactlm.modules.base import MapModule
from contactlm.modules.checkpoint import CHECKPOINT_KEY, UNREADABLE, check_checkpoint, damaged, public_name
from contactlm.modules.contact import ContactModule
from contactlm.shipped import OPTION, checkpoint_of
from contactlm.types import ContactLMError, ModelError, split_chains

DEFAULT = "contactlm.ContactModule"
Device = str | torch.device
Given = int | EllipsisType | None
Model = MapModule | str | Path
CPU_COST = 256 * 1024  # token pairs of a batch: larger ones fall out of a CPU's caches, and only a GPU gains by them
HELD_PAIRS = 8 * 1024**2  # sequences of an iterator are taken together while their maps have at most so many pairs


@overload
def predict_contacts(  # type: ignore[overload-overlap]  # a str is a sequence of str, too
    sequences: str, model: Model = ..., device: Device = ..., window: Given = ..., overlap: Given = ...
) -> ContactMap: ...
@overload
def predict_contacts(  # type: ignore[overload-overlap]  # a sequence is iterable, too
    sequences: Sequence[str], model: Model = ..., device: Device = ..., window: Given = ..., overlap: Given = ...
) -> list[ContactMap]: ...
@overload
def predict_contacts(
    sequences: Iterable[str], model: Model = ..., device: Device = ..., window: Given = ..., overlap: Given = ...
) -> Iterator[ContactMap]: ...
def predict_contacts(
    sequences: str | Iterable[str],
    model: Model = "facebook/esm2_t6_8M_UR50D",
    device: Device = "auto",
    window: Given = ...,
    overlap: Given = ...,
) -> ContactMap | list[ContactMap] | Iterator[ContactMap]:
    """Predict the contact maps of one or several sequences of any length.

    Sequences of like length share a pass of the model, as many as fit a bound on its cost. Probabilities are calibrated
    where the model brings a calibration that was fitted on dev; each map's ``how`` says so.

    Args:
        sequences: L letters of the ESM alphabet, or the chains of a complex as ``SEQ1:SEQ2``; a list of such
            sequences; or an iterator over them, of which a few are taken at a time.
        model: A :class:`contactlm.MapModule`, such as ``ContactModule``; the path of a checkpoint (``.ckpt``); a
            directory that ``contactlm export`` wrote; or a published language model, by its name on the Hugging Face
            hub or a local directory, whose own contact head is used as it is.
        device: Where to compute; ``"auto"``: where the model is, or on a GPU where there is one. A module is moved
            there and back.
        window: Residues in one pass; None: one pass at any length; left out: as the model has it.
        overlap: Residues that neighbouring windows share; None: half a window; left out: as the model has it.

    Returns:
        One map, called ``query``; a list of maps, ``query_1``, ``query_2``, …, when a list was given; an iterator,
        which yields as it goes, when one was given.

    Raises:
        ValueError: A letter that is not of the alphabet.
        ContactLMError: A model that cannot be loaded, an empty sequence, or window and overlap that do not fit.

    Examples:
        >>> from contactlm import ContactModule, predict_contacts
        >>> tiny = {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64}
        >>> model = ContactModule(None, architecture=tiny, lora=None)  # random weights; or give a checkpoint
        >>> predict_contacts("MKTAYIAKQRQISFVKSHFSRQ", model)
        ContactMap('query', 22 residues)
        >>> [predicted.probability.shape for predicted in predict_contacts(["MKTAYIAKQR", "MKVLA"], model)]
        [(10, 10), (5, 5)]
    """
    module = load_model(model)
    if module is not model:
        module.to(_device_of(module, device))
    windows = module.windows_with(window, overlap)
    if isinstance(sequences, str):
        return next(_predicted([sequences], module, windows, device, "query"))
    if isinstance(sequences, Sequence):
        return ContactMaps(_predicted(sequences, module, windows, device, "query_{}"))
    return _predicted(sequences, module, windows, device, "query_{}")


def _predicted(
    sequences: Iterable[str], module: MapModule, windows: WindowOptions, device: Device, name: str
) -> Iterator[ContactMap]:
    """Predict group after group; the module is on the device, in evaluation mode, only while one is predicted."""
    number = 0
    for group in _groups(sequences):
        ids = [name.format(number + n) for n in range(1, len(group) + 1)]
        bare, lengths, chains = zip(*map(_parsed, group, ids), strict=True)
        positions = list(map(module.positions_of, lengths)) if any(lengths) else None
        number += len(group)
        with _ready(module, device) as there:
            cost = min(windows.bound, CPU_COST) if there.type == "cpu" else windows.max_cost
            maps = list(module.chain_maps(ids, chains, replace(windows, max_cost=cost), positions))
        for id, sequence, own, full in zip(ids, bare, lengths, maps, strict=True):
            if own is not None:
                full.how["chain_lengths"] = own
            yield module.as_contact_map(id, sequence, full)


def _groups(sequences: Iterable[str]) -> Iterator[list[str]]:
    group, pairs = list[str](), 0
    for sequence in sequences:
        group.append(sequence)
        pairs += len(sequence) ** 2
        if pairs >= HELD_PAIRS:
            yield group
            group, pairs = [], 0
    if group:
        yield group


def _parsed(text: str, id: str) -> tuple[str, list[int] | None, Tensor]:
    """Sequence, lengths of chains (None of one), and tokens."""
    try:
        sequence, lengths = split_chains(text)
        return sequence, lengths, torch.from_numpy(encode(sequence))
    except ValueError as error:
        raise ValueError(f"{id}: {error}") from error


@contextmanager
def _ready(module: MapModule, device: Device) -> Iterator[torch.device]:
    """The module on the device and in evaluation mode; afterwards as it was."""
    home, training = module.device, module.training
    there = _device_of(module, device)
    module.eval()
    if there != home:
        module.to(there)
    try:
        yield there
    finally:
        module.train(training)
        if there != home:
            module.to(home)


def _device_of(module: MapModule, device: Device) -> torch.device:
    if device != "auto":
        return torch.device(device)
    if module.device.type != "cpu" or not torch.accelerator.is_available():
        return module.device
    return torch.accelerator.current_accelerator() or module.device


def load_model(model: Model, head: str | None = None) -> MapModule:
    """Make a module from a checkpoint, an export or a published language model; a module is given back as it is."""
    if isinstance(model, MapModule):
        return model
    path = checkpoint_of(str(model))
    if (Path(path).expanduser() / CONFIG_FILE).is_file():
        return ContactModule.from_adapter(path)
    if not path.endswith(".ckpt"):
        return ContactModule(path, lora=None, freeze_backbone=True, train_head=False, head=head)
    module_class = checkpoint_class(path)
    try:
        return module_class.load_from_checkpoint(path, map_location="cpu", weights_only=True)
    except UNREADABLE as error:
        if isinstance(error, ContactLMError):
            raise
        raise damaged(path, error) from error


def import_module_class(name: str) -> type[MapModule]:
    """Import a subclass of MapModule by a name such as ``contactlm.ContrastiveModule``."""
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
    """The class that a checkpoint was written by, if it is one of this package; ContactModule where it does not say."""
    name = public_name(check_checkpoint(path)[CHECKPOINT_KEY].get("class", DEFAULT))
    if not name.startswith("contactlm."):
        raise ModelError(f"ckpt_path: {path} was written by {name}; give `--{OPTION} {name}`, or load it in Python")
    return import_module_class(name)
