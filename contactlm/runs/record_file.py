"""``run.json``: what a run directory says of its run, for ``contactlm report`` and for people."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from contactlm.atomic import atomic_path
from contactlm.types import ContactLMError

RUN_FILE = "run.json"
RUN_FORMAT = 1


def write_run(folder: str | Path, record: Mapping[str, Any]) -> Path:
    """Write a record, complete or not at all; NaN and infinity become null. Returns the file."""
    path = Path(folder) / RUN_FILE
    text = json.dumps(_without_nan({"format": RUN_FORMAT, **record}), indent=1, allow_nan=False, ensure_ascii=False)
    with atomic_path(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")
    return path


def read_run(folder: str | Path) -> dict[str, Any]:
    """Read the record of a run directory."""
    path = Path(folder) / RUN_FILE
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ContactLMError(
            f"{folder}: not a run directory (it has no {RUN_FILE}, which `contactlm fit` writes)"
        ) from None
    except ValueError as error:  # ValueError: JSON and UTF-8 alike
        raise ContactLMError(f"{path}: cannot be read as the record of a run ({error})") from error
    found = record.get("format") if isinstance(record, dict) else None
    if found != RUN_FORMAT:
        raise ContactLMError(f"{path}: the record has format {found}, and this version reads format {RUN_FORMAT}")
    return record


def _without_nan(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _without_nan(each) for key, each in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_without_nan(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
