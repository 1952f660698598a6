"""BinaryCIF: Biopython decodes its columns, and they are read as those of an mmCIF file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgpack
import numpy as np
from Bio.PDB import binary_cif

from contactlm.structure.files import brief
from contactlm.structure.mmcif import CATEGORIES, CifTable, structures_of
from contactlm.structure.residues import RawStructure
from contactlm.types import StructureError

_UNSET = {1: ".", 2: "?"}  # by the values of a column's mask


def read_bcif(path: str | Path, content: bytes, all_models: bool = False) -> list[RawStructure]:
    """Read the first model, or all, of the first data block of a BinaryCIF file."""
    try:
        block = msgpack.unpackb(content)["dataBlocks"][0]
        columns = {
            f"{category['name']}.{column['name']}": _decoded(column)
            for category in block["categories"]
            if category["name"] in CATEGORIES
            for column in category["columns"]
        }
        return structures_of(CifTable(columns), all_models)
    except (ValueError, LookupError, ArithmeticError, TypeError, AssertionError, msgpack.UnpackException) as error:
        raise StructureError(path, brief(f"cannot be read as BinaryCIF: {error or type(error).__name__}")) from error


def _decoded(column: dict[str, Any]) -> list[str]:
    """The values as text, as an mmCIF file has them."""
    mask = column.get("mask")
    values = [str(value) for value in binary_cif._decode(column).tolist()]
    if mask:
        unset = np.asarray(binary_cif._decode({"data": mask})).tolist()
        values = [_UNSET.get(is_unset, value) for value, is_unset in zip(values, unset, strict=True)]
    return values
