"""Another model's maps, which predictions are compared with as they are written."""

from __future__ import annotations

import logging
from pathlib import Path

import torch

from contactlm.atomic import FileNames
from contactlm.callbacks.prediction_summary import SUMMARY, read_summary
from contactlm.maps.agreement import agreement
from contactlm.maps.contact_map import ContactMap
from contactlm.types import ContactLMError, residue_positions

log = logging.getLogger(__name__)


class OtherMaps:
    """Maps of another model in a folder, to be compared with.

    Args:
        folder: As :class:`PredictionWriter` writes it, with ``.npz`` files.
        out: Where the maps at hand go.

    Raises:
        ContactLMError: There is no such folder, or it is ``out``.
    """

    def __init__(self, folder: str | Path, out: Path) -> None:
        self.folder = Path(folder).expanduser()
        if not self.folder.is_dir():
            raise ContactLMError(f"beside: {folder} is no folder; give one that `contactlm predict` wrote")
        if self.folder.resolve() == out.resolve():
            raise ContactLMError(f"beside: {folder} is where the maps are written (out); give another model's folder")
        lines = read_summary(self.folder / SUMMARY)
        self._names = FileNames({name: line["file"] for name, line in lines.items() if line.get("file")})

    def agreement_with(self, predicted: ContactMap) -> dict[str, str]:
        """Columns of the summary; none where the folder has no map of the same sequence under this id."""
        path = self.folder / f"{self._names.of(predicted.id)}.npz"
        if not path.is_file():
            return {}
        other = ContactMap.load(path)
        if other.sequence != predicted.sequence or other.chain_lengths != predicted.chain_lengths:
            log.warning("%s: is of another sequence than %s, and not compared", path, predicted.id)
            return {}
        maps = torch.from_numpy(predicted.probability), torch.from_numpy(other.probability)
        values = agreement(*maps, torch.from_numpy(residue_positions(predicted.chain_lengths)))
        return {name: f"{value:.4f}" for name, value in values.items()}
