"""predict_contacts: from sequences to contact maps in one call."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import overload

from contactlm.maps.contact_map import ContactMap
from contactlm.model.adapter import CONFIG_FILE
from contactlm.modules.base import MapModule
from contactlm.modules.checkpoint import UNREADABLE, damaged
from contactlm.modules.choice import checkpoint_class
from contactlm.modules.contact import ContactModule
from contactlm.types import ContactLMError

Model = MapModule | str | Path


@overload
def predict_contacts(  # type: ignore[overload-overlap]  # a str is a sequence of str, too
    sequences: str, model: Model = ..., window: int | None = ..., overlap: int | None = ...
) -> ContactMap: ...
@overload
def predict_contacts(
    sequences: Sequence[str], model: Model = ..., window: int | None = ..., overlap: int | None = ...
) -> list[ContactMap]: ...
def predict_contacts(
    sequences: str | Sequence[str],
    model: Model = "facebook/esm2_t6_8M_UR50D",
    window: int | None = 1022,
    overlap: int | None = None,
) -> ContactMap | list[ContactMap]:
    """Predict the contact maps of one or several sequences of any length.

    Args:
        sequences: L letters of the ESM alphabet, or several such sequences.
        model: A :class:`contactlm.ContactModule`; the path of a checkpoint (``.ckpt``); a directory that
            ``contactlm export`` wrote; or a published ESM2, by its name on the Hugging Face hub or a local directory,
            whose own contact head is used as it is.
        window: Residues in one pass; None: one pass at any length.
        overlap: Residues that neighbouring windows share; None: half a window.

    Returns:
        One map, or a list of maps when a list was given.

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
    if isinstance(sequences, str):
        return module.predict_map(sequences, window, overlap)
    return [module.predict_map(s, window, overlap, id=f"query_{n}") for n, s in enumerate(sequences, start=1)]


def load_model(model: Model) -> MapModule:
    """Make a module from a checkpoint, an export or a published ESM2; a module is given back as it is."""
    if isinstance(model, MapModule):
        return model
    if (Path(model).expanduser() / CONFIG_FILE).is_file():
        return ContactModule.from_adapter(model)
    if str(model).endswith(".ckpt"):
        return _from_checkpoint(model)
    return ContactModule(str(model), lora=None, freeze_backbone=True, train_head=False)


def _from_checkpoint(path: str | Path) -> MapModule:
    module_class = checkpoint_class(path)
    try:
        return module_class.load_from_checkpoint(path, map_location="cpu", weights_only=True)
    except UNREADABLE as error:
        if isinstance(error, ContactLMError):
            raise
        raise damaged(path, error) from error
