"""The model card of an export: what the hub shows of it, with lines to copy that give the maps of ``predict``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from contactlm.metrics.ranked import BAND_STARTS
from contactlm.modules.contact import ContactModule
from contactlm.shipped import __version__

_CARD = """\
---
{head}
---

# {title}

Residue-residue contacts of a protein from its sequence, by {family}. A contact is a virtual C-beta distance below 8 Å.

{load}

{stock}
## Trained on

{trained}

## Scores

{scores}

## Limits

Longer than {window} residues, `contactlm` puts a map together from windows; other libraries make one pass.
Probabilities are for chains like those of the dev set. {licence}

Written by contactlm {version}.
"""
_OWN = """\
With contactlm, calibrated where a calibration was fitted, as `contactlm predict` gives them:

```python
from contactlm import predict_contacts

contacts = predict_contacts("{sequence}", model="{name}")  # contacts are above {threshold:.4g}, `contacts.threshold`
```"""
_ADAPTED = """\
import torch
from peft import PeftModel
from transformers import AutoTokenizer, EsmModel

esm = EsmModel.from_pretrained("{backbone}", add_pooling_layer=False, attn_implementation="eager")
esm = PeftModel.from_pretrained(esm, "{name}").eval()"""
_MERGED = """\
import torch
from transformers import AutoTokenizer, EsmModel

esm = EsmModel.from_pretrained("{name}", add_pooling_layer=False).eval()"""
_STOCK = """\
With {library} alone:

```python
{load}
batch = AutoTokenizer.from_pretrained("{name}")("{sequence}", return_tensors="pt")
with torch.no_grad():  # probabilities as the head gives them
    raw = esm.predict_contacts(batch["input_ids"], batch["attention_mask"])[0]
```

{threshold}"""
_CALIBRATED = """\
The same calibrated, as contactlm gives them; contacts are above {threshold:.4g}, {kind}:

```python
i = torch.arange(len(raw))
band = torch.bucketize((i[:, None] - i).abs(), torch.tensor({edges}), right=True)
slope, bias = torch.tensor({slope}), torch.tensor({bias})
calibrated = torch.sigmoid(slope[band] * raw.logit(eps=2**-23) + bias[band])
```
"""
_HEADLESS = "{library} loads the weights; {family} has no contact head there, so ours is not used.\n"
SEQUENCE = "MKTAYIAKQRQISFVKSHFSRQLEERLGLIEVQ"
SHOWN = ("mcc_sep6", "mcc_long", "p_at_L_long", "p_at_L5_long", "auprc_sep6")
_CONTRACT = """\
Means over proteins of each protein's own score, on whole chains: upper triangle, resolved pairs, threshold 0.5 for MCC;
`sep6` is |i − j| ≥ 6, `long` ≥ 24; L counts resolved residues. Trivial: "contact iff |i − j| ≤ 2".
"""
_MIT = ("ESM2", "ESM-1b", "ESM-1v", "SaProt")  # as their weights are published
Record = Mapping[str, Any]


def model_card(module: ContactModule, merged: bool, name: str, backbone: str | None, record: Record | None) -> str:
    """The text of a ``README.md``.

    Args:
        module: What is exported.
        merged: Whether as a plain checkpoint, else as an adapter.
        name: Of the folder.
        backbone: Hub name or directory of the backbone; None: a random one.
        record: Of the run that trained it, where that is known: ``data``, ``tokens``, ``equal``, and the scores of this
            checkpoint as ``dev`` and ``test``.
    """
    family, library = module.family.name, "transformers" if merged else "peft"
    on_hub = backbone is not None and not Path(backbone).is_absolute() and not Path(backbone).is_dir()
    mit = family in _MIT
    head = [f"library_name: {library}", f"license: {'mit' if mit else 'other'}"]
    head += [f"base_model: {backbone}"] if on_hub else []
    head += ["tags:", "- biology", "- protein", "- contact-prediction", "- contactlm"]
    rights = "its base model" if backbone else "contactlm"
    return _CARD.format(
        head="\n".join(head),
        title=f"{family} contact predictor ({'merged weights' if merged else f'LoRA adapter for {backbone}'})",
        family=family,
        load=_OWN.format(name=name, sequence=SEQUENCE, threshold=module.call_threshold),
        stock=_stock(module, merged, name, backbone),
        trained=_trained_on(backbone, record or {}),
        scores=_scores(record or {}),
        window="any number of" if module.windows.window is None else f"{module.windows.window:,}",
        licence=f"The licence is that of {rights}{' (MIT)' if mit else ': see there'}.",
        version=__version__,
    )


def _stock(module: ContactModule, merged: bool, name: str, backbone: str | None) -> str:
    """How others load it, and what makes the same map of it."""
    library = "transformers" if merged else "PEFT"
    if not hasattr(module.family.stock_class, "predict_contacts"):
        return _HEADLESS.format(library=library, family=module.family.name)
    tuned, fitted = module.tuned_threshold, module.calibration
    told = f"Contacts are above {tuned or 0.5:.4g}, "
    told += "the usual threshold: none was tuned." if tuned is None else "the threshold tuned on dev for these."
    load = (_MERGED if merged else _ADAPTED).format(name=name, backbone=backbone)
    text = _STOCK.format(library=library, load=load, name=name, sequence=SEQUENCE, threshold=told + "\n")
    if fitted is None:
        return text
    values = {"edges": list(BAND_STARTS), "slope": list(fitted.slope), "bias": list(fitted.bias)}
    kind = "the threshold tuned on dev for calibrated probabilities"
    return text + "\n" + _CALIBRATED.format(threshold=fitted.threshold, kind=kind, **values)


def _trained_on(backbone: str | None, record: Record) -> str:
    begin = "random weights" if backbone is None else f"{Path(backbone).name if Path(backbone).is_dir() else backbone}"
    equal = record.get("equal") or {}
    if not (chains := equal.get("train")):
        return f"From {begin}; no record of chains is next to the checkpoint."
    kind = "synthetic proteins, of which scores say nothing about biology" if equal.get("synthetic") else "structures"
    lines = f"{chains['chains']:,} chains ({chains['residues']:,} residues) of {kind}, from {begin}"
    return f"{lines}: {record['tokens']:,} tokens in {record['steps']:,} steps."


def _scores(record: Record) -> str:
    sets = {name: record[name] for name in ("dev", "test") if record.get(name)}
    if not sets:
        return "Unknown for this checkpoint; run `contactlm test --ckpt_path`."
    rows = ["| set | proteins | score | value | trivial |", "|---|---|---|---|---|"]
    for name, scores in sets.items():
        for score in (score for score in SHOWN if scores.get(score) is not None):
            trivial = scores.get(f"trivial_{score}")
            number, beside = scores.get("proteins"), "" if trivial is None else f"{trivial:.3f}"
            count = "" if number is None else f"{number:.0f}"
            rows.append(f"| {name} | {count} | `{score}` | {scores[score]:.3f} | {beside} |")
    return _CONTRACT + "\n" + "\n".join(rows)
