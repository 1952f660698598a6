"""``summary.csv``: a line for each predicted protein, with what its result was made from."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from numpy.typing import NDArray

from contactlm.atomic import atomic_path
from contactlm.callbacks.record import module_facts
from contactlm.maps.contact_map import ContactMap
from contactlm.metrics.calibration_scores import CONFIDENCE
from contactlm.types import residue_positions

SUMMARY = "summary.csv"
SCORES = ("mcc", "mcc_sep6", "mcc_long", "p_at_L_long", "p_at_L5_long", "auprc_sep6")
COLUMNS = (
    *("id", "file", "length", "threshold", "contacts_sep6", "confidence", "hits", "seconds"),
    *(*SCORES, "spearman_sep6", "shared_top_L", CONFIDENCE),  # the two are empty: kept for readers of older files
    *("formats", "input", "model", "options"),
)
FILE_OPTIONS = frozenset(["dtype", "pairs_per_residue"])  # decide no map but a kind of file, which results may lack
DIGITS = 16  # hexadecimal, of a checksum
NAMED = 5  # proteins that a message names


def summary_line(predicted: ContactMap, seconds: float) -> dict[str, Any]:
    """One protein's line: length, pairs above the threshold, seconds, and scores when truth is known.

    The pairs are those at |i − j| ≥ 6 or of different chains.
    """
    L = len(predicted)
    called = predicted.probability > predicted.threshold
    positions = residue_positions(predicted.chain_lengths)
    line: dict[str, Any] = {
        "id": predicted.id,
        "length": L,
        "threshold": f"{predicted.threshold:.3f}",
        "contacts_sep6": int(called[np.triu(positions - positions[:, None] >= 6)].sum()),
        "confidence": f"{confidence(predicted):.4f}" if L else "",
        "hits": " ".join("_".join(str(hit).split()) for hit in predicted.how.get("hits", [])),
        "seconds": f"{seconds:.3f}",
    }
    if CONFIDENCE in predicted.how:
        line[CONFIDENCE] = f"{predicted.how[CONFIDENCE]:.4f}"
    if predicted.labels is not None:
        scores = predicted.scores()
        line |= {name: f"{scores[name]:.4f}" for name in SCORES if not (predicted.is_ranked and "mcc" in name)}
    return line


def confidence(predicted: ContactMap) -> float:
    """The mean probability of the L most probable pairs, at |i − j| ≥ 6 or of different chains; NaN of none."""
    top = [pair.probability for pair in predicted.top()]
    return sum(top) / len(top) if top else float("nan")


def read_summary(path: Path) -> dict[str, dict[str, str]]:
    """Read the complete lines of a summary, by id; a line torn by a killed run is left out."""
    if not path.is_file():
        return {}
    with path.open(newline="", encoding="utf-8") as handle:
        text = handle.read()
    complete = text[: text.rfind("\n") + 1].splitlines()
    rows = csv.DictReader(complete)
    return {row["id"]: row for row in rows if row.get("id") and None not in row.values()}


def write_summary(path: Path, lines: Iterable[dict[str, str]]) -> None:
    """Write a summary anew, at once."""
    with atomic_path(path) as temporary, temporary.open("x", newline="", encoding="utf-8") as handle:
        writer = csv.DictWriter(handle, COLUMNS, restval="", extrasaction="ignore")
        writer.writeheader()
        writer.writerows(lines)


def append_line(path: Path, line: Mapping[str, Any]) -> None:
    """Add a protein's line to a summary, which is begun where there is none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    is_new = not path.exists()
    with path.open("a", newline="", encoding="utf-8") as handle:
        writer = csv.DictWriter(handle, COLUMNS, restval="")
        if is_new:
            writer.writeheader()
        writer.writerow(line)


# --- what results were made from: they are kept only where all of it is the same ---


@dataclass(frozen=True)
class Maker:
    """What makes all maps of a run.

    Attributes:
        model: Checksum of all weights, those of adapters and heads included.
        options: What else decides a map and its files, as ``name=value`` with spaces between.
    """

    model: str
    options: str


def find_maker(trainer: L.Trainer, module: L.LightningModule, more: Mapping[str, Any]) -> Maker:
    """Look up what predicts, with further options of files; a collective call where weights are spread out."""
    windows, fitted = getattr(module, "windows", None), getattr(module, "applied_calibration", None)
    options = {
        "window": getattr(windows, "window", None),
        "overlap": getattr(windows, "least_overlap", None),
        "threshold": getattr(module, "call_threshold", None),
        "calibration": None if fitted is None else _hash_of(fitted.to_dict()).hexdigest()[:DIGITS],
        "precision": str(trainer.precision),
        "structures": module_facts(module, "equal").get("structures", {}).get("checksum"),
        **module_facts(module, "reads"),
        **more,
    }
    words = {
        name: value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))
        for name, value in options.items()
        if value is not None
    }
    return Maker(weights_checksum(module), _as_text(words))


def _hash_of(value: Any) -> Any:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode())


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
    digest = _hash_of([sequence, list(chain_lengths or [len(sequence)])])
    if cb is not None and np.isfinite(cb).any():
        digest.update(np.ascontiguousarray(cb, "<f4").data)
    return digest.hexdigest()[:DIGITS]


def what_differs(line: Mapping[str, str], maker: Maker, made_from: str) -> str | None:
    """Why a result cannot be kept; None: it can.

    Args:
        line: The result's line of the summary.
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
    old, new = _as_options(line["options"]), _as_options(maker.options)
    one_sided = FILE_OPTIONS & (old.keys() ^ new.keys())
    names = [name for name in sorted((old.keys() | new.keys()) - one_sided) if old.get(name) != new.get(name)]
    if names:
        changes = (f"{name}={old.get(name, 'none')}, now {new.get(name, 'none')}" for name in names)
        reasons.append(f"other options ({', '.join(changes)})")
    return f"was made from {' and '.join(reasons)}" if reasons else None


def join_options(before: str, now: str) -> str:
    """All options of two results of one map, those of now where both have one."""
    return _as_text(_as_options(before) | _as_options(now))


def _as_text(options: Mapping[str, str]) -> str:
    return " ".join(f"{name}={value}" for name, value in sorted(options.items()))


def _as_options(text: str) -> dict[str, str]:
    return dict(part.partition("=")[::2] for part in text.split())


def by_reason(reasons: Mapping[str, str]) -> Iterator[tuple[str, int, str]]:
    """For each reason of some proteins: (the reason, how many, the first few of their ids).

    Args:
        reasons: The reason of each protein, by its id.
    """
    for reason in dict.fromkeys(reasons.values()):
        names = [name for name, own in reasons.items() if own == reason]
        more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
        yield reason, len(names), ", ".join(names[:NAMED]) + more
