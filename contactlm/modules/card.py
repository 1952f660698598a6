"""The model card of an export, whose words are in ``card.txt``: its lines give the maps of ``predict``."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from contactlm.metrics.ranked import BAND_STARTS
from contactlm.modules.contact import ContactModule
from contactlm.shipped import __version__

SEQUENCE = "MKTAYIAKQRQISFVKSHFSRQLEERLGLIEVQ"
SHOWN = ("mcc_sep6", "mcc_long", "p_at_L_long", "p_at_L5_long", "auprc_sep6")
MIT = ("ESM2", "ESM-1b", "ESM-1v", "SaProt")  # as their weights are published
Record = Mapping[str, Any]


def model_card(module: ContactModule, merged: bool, name: str, backbone: str | None, record: Record | None) -> str:
    """The text of a ``README.md``.

    Args:
        module: What is exported.
        merged: Whether as a plain checkpoint, else as an adapter.
        name: Of the folder.
        backbone: Hub name or directory of the backbone; None: a random one.
        record: Of the run that trained it, where that is known: ``tokens``, ``steps``, ``equal``, and the scores of
            this checkpoint as ``dev`` and ``test``.
    """
    text, *others = files("contactlm.modules").joinpath("card.txt").read_text(encoding="utf-8").split("%%% ")
    parts = {part.partition("\n")[0]: part.partition("\n")[2] for part in others}
    family, tuned, fitted = module.family.name, module.tuned_threshold, module.calibration
    kind = "the usual threshold: none was tuned" if tuned is None else "the threshold tuned on dev for these"
    on_hub = backbone is not None and not Path(backbone).is_dir()
    base = backbone if backbone is None or on_hub else Path(backbone).name
    words: dict[str, Any] = {
        **{"library": "transformers" if merged else "peft", "license": "mit" if family in MIT else "other"},
        **{"base": f"base_model: {backbone}\n" if on_hub else "", "name": name, "family": family, "sequence": SEQUENCE},
        "title": f"{family} contact predictor ({'merged weights' if merged else f'LoRA adapter for {base}'})",
        **{"called": module.call_threshold, "raw": tuned or 0.5, "raw_kind": kind, "backbone": backbone},
        **{"trained": _trained_on(base, record or {}), "scores": _scores(parts["contract"], record or {})},
        "window": "any number of" if module.windows.window is None else f"{module.windows.window:,}",
        "rights": f"The licence is that of {family}{' (MIT)' if family in MIT else ': see there'}.",
        "version": __version__,
    }
    words["load"] = parts["merged" if merged else "adapter"].format(**words).rstrip()
    words["stock"] = parts["stock"].format(**words)
    if not hasattr(module.family.stock_class, "predict_contacts"):
        words["stock"] = (
            f"{words['library']} loads the weights; {family} has no contact head there: ours is left aside.\n"
        )
    elif module.pair is not None:
        words["stock"] = f"{words['library']} loads the contact head without the pair head: its maps differ.\n"
    elif fitted is not None:
        values = {"edges": list(BAND_STARTS), "slope": list(fitted.slope), "bias": list(fitted.bias)}
        words["stock"] += "\n" + parts["calibrated"].format(threshold=fitted.threshold, **values)
    return text.format(**words)


def _trained_on(backbone: str | None, record: Record) -> str:
    begin = backbone or "random weights"
    equal = record.get("equal") or {}
    if not (chains := equal.get("train")):
        return f"From {begin}; no record of chains is next to the checkpoint."
    kind = "synthetic proteins, of which scores say nothing about biology" if equal.get("synthetic") else "structures"
    lines = f"{chains['chains']:,} chains ({chains['residues']:,} residues) of {kind}, from {begin}"
    return f"{lines}: {record['tokens']:,} tokens in {record['steps']:,} steps."


def _scores(contract: str, record: Record) -> str:
    rows = [
        f"| {role} | {number} | `{name}` | {scores[name]:.3f} | {baseline} |"
        for role in ("dev", "test")
        for scores in [record.get(role) or {}]
        for name in SHOWN
        if scores.get(name) is not None
        for trivial, count in [(scores.get(f"trivial_{name}"), scores.get("proteins"))]
        for number in ["" if count is None else f"{count:.0f}"]
        for baseline in ["" if trivial is None else f"{trivial:.3f}"]
    ]
    return contract + "\n".join(rows) if rows else "Unknown for this checkpoint; run `contactlm test --ckpt_path`."
