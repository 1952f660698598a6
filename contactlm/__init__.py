"""contactlm: fine-tune ESM2 for residue-residue contact prediction.

Public names are loaded when they are first used, so that ``import contactlm`` and the processes that only read
structure files do not wait for PyTorch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from contactlm.shipped import __version__ as __version__

if TYPE_CHECKING:
    from contactlm.data.datamodule import ContactDataModule
    from contactlm.maps.contact_map import ContactMap
    from contactlm.modules.base import MapModule
    from contactlm.modules.contact import ContactModule
    from contactlm.modules.contrastive import ContrastiveModule
    from contactlm.modules.jacobian import JacobianModule
    from contactlm.modules.predict import predict_contacts
    from contactlm.modules.retrieval import RetrievalModule
    from contactlm.structure.contacts import contact_map
    from contactlm.structure.parse import read_chains
    from contactlm.types import Chain

_HOMES = {
    "Chain": "contactlm.types",
    "ContactDataModule": "contactlm.data.datamodule",
    "ContactMap": "contactlm.maps.contact_map",
    "ContactModule": "contactlm.modules.contact",
    "ContrastiveModule": "contactlm.modules.contrastive",
    "JacobianModule": "contactlm.modules.jacobian",
    "MapModule": "contactlm.modules.base",
    "RetrievalModule": "contactlm.modules.retrieval",
    "contact_map": "contactlm.structure.contacts",
    "predict_contacts": "contactlm.modules.predict",
    "read_chains": "contactlm.structure.parse",
}

__all__ = [
    "Chain",
    "ContactDataModule",
    "ContactMap",
    "ContactModule",
    "ContrastiveModule",
    "JacobianModule",
    "MapModule",
    "RetrievalModule",
    "contact_map",
    "predict_contacts",
    "read_chains",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'contactlm' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
