"""What predictions were made from: results that carry it are kept only where all of it is the same."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import lightning as L
import numpy as np
import torch
from numpy.typing import NDArray

from contactlm.callbacks.run_facts import module_facts

FILE_OPTIONS = ("dtype", "pairs_per_residue")
DIGITS = 16  # hexadecimal, of a checksum
NAMED = 5  # proteins that a reason names


@dataclass(frozen=True)
class Maker:
    """What makes all maps of a run.

    Attributes:
        model: Checksum of all weights, those of adapters and heads included.
        options: What else decides a map and its files, as ``name=value`` with spaces between.
        of_files: Names of those that decide no map but a kind of file, which other results may lack.
    """

    model: str
    options: str
    of_files: frozenset[str] = frozenset(FILE_OPTIONS)


def find_maker(trainer: L.Trainer, module: L.LightningModule, more: Mapping[str, Any]) -> Maker:
    """Look up what predicts; a collective call where weights are spread over processes.

    Args:
        trainer: Its precision counts.
        module: With the weights it predicts with.
        more: Further options, of files.
    """
    windows = getattr(module, "windows", None)
    options = {
        "window": getattr(windows, "window", None),
        "overlap": getattr(windows, "least_overlap", None),
        "threshold": getattr(module, "call_threshold", None),
        "calibration": _calibration(module),
        "precision": str(trainer.precision),
        "structures": module_facts(module, "equal").get("structures", {}).get("checksum"),
        **module_facts(module, "reads"),
        **more,
    }
    given = [f"{name}={_word(value)}" for name, value in sorted(options.items()) if value is not None]
    return Maker(weights_checksum(module), " ".join(given))


def _calibration(module: L.LightningModule) -> str | None:
    """A checksum of the calibration that a module applies; None: of none."""
    fitted = getattr(module, "applied_calibration", None)
    if fitted is None:
        return None
    return hashlib.sha256(json.dumps(fitted.to_dict(), sort_keys=True).encode()).hexdigest()[:DIGITS]


def _word(value: Any) -> str:
    """A value without spaces."""
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))


def weights_checksum(module: torch.nn.Module) -> str:
    """A checksum of names, types, shapes and values of all weights and buffers that a state dict holds."""
    digest = hashlib.sha256()
    for name, weight in sorted(module.state_dict().items()):
        whole = weight.full_tensor() if hasattr(weight, "full_tensor") else weight
        digest.update(f"{name} {whole.dtype} {tuple(whole.shape)}\n".encode())
        digest.update(whole.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:DIGITS]


def input_checksum(
    sequence: str, chain_lengths: Sequence[int] | None = None, cb: NDArray[np.float32] | None = None
) -> str:
    """A checksum of what is predicted.

    Args:
        sequence: L letters.
        chain_lengths: Residues of each chain of a complex; None, or of one chain: it is none.
        cb: Virtual C-beta, float32 (L, 3), in Å, which the map is scored against; None, or all NaN: not known.
    """
    lengths = list(chain_lengths or [len(sequence)])
    digest = hashlib.sha256(json.dumps([sequence, lengths]).encode())
    if cb is not None and np.isfinite(cb).any():
        digest.update(np.ascontiguousarray(cb, "<f4").data)
    return digest.hexdigest()[:DIGITS]


def what_differs(line: Mapping[str, str], maker: Maker, made_from: str) -> str | None:
    """Why a result cannot be kept; None: it can.

    Args:
        line: What the result carries: ``input``, ``model`` and ``options``.
        maker: What would make it now.
        made_from: What it would be made from now, as :func:`input_checksum` gives it.
    """
    if not all(line.get(name) for name in ("input", "model", "options")):
        return "does not say what it was made from"
    reasons = []
    if line["input"] != made_from:
        reasons.append("another sequence or structure")
    if line["model"] != maker.model:
        reasons.append(f"another model (checksum {line['model']}, now {maker.model})")
    if changes := _changes(line["options"], maker):
        reasons.append(f"other options ({changes})")
    return f"was made from {' and '.join(reasons)}" if reasons else None


def join_options(before: str, now: str) -> str:
    """All options of two results of one map, those of now where both have one."""
    return " ".join(f"{name}={value}" for name, value in sorted((_options(before) | _options(now)).items()))


def _options(text: str) -> dict[str, str]:
    return dict(part.partition("=")[::2] for part in text.split())


def _changes(before: str, maker: Maker) -> str:
    """Options that differ, as ``window=512, now 1022``; those of a kind of file only where both have it."""
    old, new = _options(before), _options(maker.options)
    one_sided = maker.of_files & (old.keys() ^ new.keys())
    names = [name for name in sorted((old.keys() | new.keys()) - one_sided) if old.get(name) != new.get(name)]
    return ", ".join(f"{name}={old.get(name, 'none')}, now {new.get(name, 'none')}" for name in names)


def tell_reasons(reasons: Mapping[str, str]) -> Iterable[str]:
    """Sentences about results that are made again: a reason, how many, and the first few.

    Args:
        reasons: The reason of each protein, by its id.
    """
    by_reason: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        by_reason.setdefault(reason, []).append(name)
    for reason, names in by_reason.items():
        shown = ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")
        yield f"computed again, since what is there {reason}: {len(names)} proteins ({shown})"
