"""``contactlm export``: a trained run as a PEFT adapter, or as a plain Hugging Face checkpoint."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from contactlm.model.adapter import ABOUT_FILE, has_adapters, save_adapter, save_merged, write_about
from contactlm.modules.checkpoint import CONTACT_HEAD
from contactlm.modules.contact import ContactModule
from contactlm.shipped import __version__
from contactlm.types import ContactLMError, ModelError

TOKENIZER_FILES = ("tokenizer_config.json", "special_tokens_map.json", "tokenizer.json", "added_tokens.json")

_README = """\
# {family} contact predictor ({kind})

    {load}

{stock}
Written by contactlm {version}. {threshold}
"""
_LOAD_ADAPTER = 'from contactlm import ContactModule; module = ContactModule.from_adapter("{name}").eval()'
_STOCK_ADAPTER = (
    'Stock PEFT: `esm = EsmModel.from_pretrained("{backbone}", add_pooling_layer=False, attn_implementation="eager"); '
    'PeftModel.from_pretrained(esm, "{name}").predict_contacts(tokens, attention_mask)`.'
)
_LOAD_MERGED = 'from contactlm import predict_contacts; contact_map = predict_contacts("MKTAYIAK", model="{name}")'
_STOCK_MERGED = 'Stock transformers: `EsmModel.from_pretrained("{name}").predict_contacts(tokens, attention_mask)`.'
_STOCK_HEADLESS = "{library} loads the weights; {family} has no contact head there, and ours is left aside."


def export_adapter(module: ContactModule, out: str | Path, overwrite: bool = False) -> Path:
    """Write LoRA weights and contact head as an adapter directory of PEFT; the module is left as it is."""
    require_contact_head(module.head)
    if not has_adapters(module.backbone.esm):
        raise ModelError("no adapter to export: the model was trained without LoRA; use --merge for the whole model")
    pretrained = module.hparams["pretrained"]
    if pretrained is None:
        raise ModelError("an adapter must name its backbone, which is randomly initialised; use --merge instead")
    folder = Path(pretrained).expanduser()
    backbone = str(folder.resolve()) if folder.is_dir() else pretrained
    with _new_directory(Path(out), overwrite) as (directory, final):
        save_adapter(module.backbone.esm, backbone, directory)
        names = {"name": final.name, "backbone": backbone, "library": "PEFT"}
        _describe(module, directory, f"LoRA adapter for {backbone}", _LOAD_ADAPTER, _STOCK_ADAPTER, names)
    return final


def export_merged(module: ContactModule, out: str | Path, overwrite: bool = False) -> Path:
    """Write a plain Hugging Face checkpoint, LoRA merged into the weights, with a local backbone's vocabulary files.

    Arguments and errors are those of :func:`export_adapter`; the module may be one without LoRA.
    """
    require_contact_head(module.head)
    pretrained = module.hparams["pretrained"]
    with _new_directory(Path(out), overwrite) as (directory, final):
        save_merged(module.backbone.esm, directory)
        for name in ("vocab.txt", *TOKENIZER_FILES):
            if pretrained is not None and (file := Path(pretrained).expanduser() / name).is_file():
                shutil.copyfile(file, directory / name)
        names = {"name": final.name, "library": "transformers"}
        _describe(module, directory, "merged weights", _LOAD_MERGED, _STOCK_MERGED, names)
    return final


def require_contact_head(head: str) -> None:
    """Complain about a model that other libraries could load, but whose maps they could not make."""
    if head != CONTACT_HEAD:
        raise ModelError(
            f"this model reads its maps from a {head}, which PEFT and transformers do not know: only models with "
            "a contact head can be exported; give its checkpoint to `contactlm predict`"
        )


def _describe(
    module: ContactModule, directory: Path, kind: str, load: str, stock: str, names: Mapping[str, str]
) -> None:
    """Say how to load the directory, for people and for programs; the tuned threshold travels with both."""
    tuned, family = module.tuned_threshold, module.family.name
    if not hasattr(module.family.stock_class, "predict_contacts"):
        stock = _STOCK_HEADLESS
    texts = {"kind": kind, "load": load.format(**names), "stock": stock.format(family=family, **names)}
    threshold = (
        "No threshold was tuned on a dev set: pairs above 0.5 are called contacts."
        if tuned is None
        else f"Threshold tuned on the dev set, above which pairs are called contacts: {tuned:.4g}."
    )
    readme = _README.format(family=family, version=__version__, threshold=threshold, **texts)
    (directory / "README.md").write_text(readme, encoding="utf-8")
    fitted = None if module.calibration is None else module.calibration.to_dict()
    about = {"version": __version__, "tuned_threshold": tuned, "calibration": fitted}
    about |= {"trained_on": module.hparams["pretrained"], "held": module.held}
    about |= {"contact": str(module.contact), "chain_jump": module.chain_jump}
    write_about(directory, {**about, "backbone_checksum": module.backbone_checksum})


def require_free(out: Path, overwrite: bool) -> None:
    """Complain about a directory that must not be written to."""
    if out.exists() and not out.is_dir():
        raise ContactLMError(f"out: {out} is a file; give the name of a directory")
    if out == Path.cwd():
        raise ContactLMError(f"out: {out} is the current directory; give a directory of its own")
    if not out.is_dir() or not any(out.iterdir()):
        return
    if not overwrite:
        raise ContactLMError(f"out: {out} is not empty; give another directory, or --overwrite to replace an export")
    if not (out / ABOUT_FILE).is_file():
        what = f"is not empty and was not written by `contactlm export` (no {ABOUT_FILE})"
        raise ContactLMError(f"out: {out} {what}; give another directory, or remove it yourself")


@contextmanager
def _new_directory(out: Path, overwrite: bool) -> Iterator[tuple[Path, Path]]:
    """Yield (a directory next to ``out``, ``out``); afterwards it is renamed to that, or removed after an error."""
    final = out.expanduser().resolve()
    require_free(final, overwrite)
    temporary, replaced = (final.with_name(f".{final.name}.{suffix}") for suffix in ("tmp", "old"))
    try:
        for stale in (temporary, replaced):
            if stale.is_dir():
                shutil.rmtree(stale)
        temporary.mkdir(parents=True)
        try:
            yield temporary, final
            if final.is_dir():
                final.rename(replaced)
            temporary.rename(final)
        finally:
            for leftover in (temporary, replaced):
                shutil.rmtree(leftover, ignore_errors=True)
    except OSError as error:
        raise ContactLMError(f"out: {final} cannot be written ({error}); give another directory") from error
