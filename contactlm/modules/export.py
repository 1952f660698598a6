"""``contactlm export``: a trained run as a PEFT adapter, or as a plain Hugging Face checkpoint."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from transformers import EsmTokenizer

from contactlm.alphabet import VOCABULARY
from contactlm.model.adapter import ABOUT_FILE, has_adapters, save_adapter, save_merged, write_about
from contactlm.model.families.vocabulary import VOCABULARY_FILES
from contactlm.model.loading import located
from contactlm.model.pair_head import write_pair_head
from contactlm.modules.card import Record, model_card
from contactlm.modules.checkpoint import CONTACT_HEAD
from contactlm.modules.contact import ContactModule
from contactlm.shipped import __version__
from contactlm.types import ContactLMError, ModelError

TOKENIZER_FILES = ("vocab.txt", *(f"{n}.json" for n in ("tokenizer_config", "special_tokens_map", "tokenizer")))


def export_adapter(
    module: ContactModule, out: str | Path, overwrite: bool = False, record: Record | None = None
) -> Path:
    """Write LoRA weights and contact head as an adapter directory of PEFT; the module is left as it is.

    Args:
        module: A trained module.
        out: The directory.
        overwrite: Replace an earlier export.
        record: What ``run.json`` says of the run, for the model card; see :func:`contactlm.modules.card.model_card`.

    Raises:
        ModelError: The module has no adapter, no named backbone, or another head than a contact head.
        ContactLMError: The directory cannot be written, or holds something else.
    """
    require_contact_head(module.head)
    if not has_adapters(module.backbone.esm):
        raise ModelError("no adapter to export: the model was trained without LoRA; use --merge for the whole model")
    pretrained = module.hparams["pretrained"]
    if pretrained is None:
        raise ModelError("an adapter must name its backbone, which is randomly initialised; use --merge instead")
    folder = Path(located(pretrained)).expanduser()
    backbone = str(folder.resolve()) if folder.is_dir() else pretrained
    with _new_directory(Path(out), overwrite) as (directory, final):
        save_adapter(module.backbone.esm, backbone, directory)
        if module.pair is not None:
            write_pair_head(directory, module.pair)
        _save_tokenizer(module, directory)
        _describe(module, directory, model_card(module, False, final.name, backbone, record))
    return final


def export_merged(
    module: ContactModule, out: str | Path, overwrite: bool = False, record: Record | None = None
) -> Path:
    """Write a plain Hugging Face checkpoint, LoRA merged into the weights, with its tokenizer.

    Arguments and errors are those of :func:`export_adapter`; the module may be one without LoRA.
    """
    require_contact_head(module.head)
    if module.pair is not None:
        raise ModelError(
            "a pair head fits into no plain checkpoint: export the adapter (leave out --merge), or give the run's "
            "checkpoint itself to `contactlm predict`"
        )
    with _new_directory(Path(out), overwrite) as (directory, final):
        save_merged(module.backbone.esm, directory)
        _save_tokenizer(module, directory)
        _describe(module, directory, model_card(module, True, final.name, module.hparams["pretrained"], record))
    return final


def require_contact_head(head: str) -> None:
    """Complain about a model that other libraries could load, but whose maps they could not make."""
    if head != CONTACT_HEAD:
        raise ModelError(
            f"this model reads its maps from a {head}, which PEFT and transformers do not know: only models with "
            "a contact head can be exported; give its checkpoint to `contactlm predict`"
        )


def _save_tokenizer(module: ContactModule, directory: Path) -> None:
    """Write the tokenizer of ESM's alphabet; of other families, copy the files of a local backbone."""
    pretrained = module.hparams["pretrained"]
    if module.family.tokens.letters is None and module.backbone.esm.config.model_type == "esm":
        file = directory / "vocab.txt"
        file.write_text("\n".join(VOCABULARY), encoding="utf-8")
        EsmTokenizer(str(file)).save_pretrained(str(directory))
        return
    for name in TOKENIZER_FILES:
        if pretrained is not None and (file := Path(located(pretrained)).expanduser() / name).is_file():
            shutil.copyfile(file, directory / name)
    if vocabulary := getattr(module.backbone.esm.config, "vocabulary", None):  # one folder up, or on the hub
        (directory / VOCABULARY_FILES[0]).write_text("\n".join(vocabulary) + "\n", encoding="utf-8")


def _describe(module: ContactModule, directory: Path, card: str) -> None:
    """Write the card for people, and for programs the thresholds and the calibration."""
    (directory / "README.md").write_text(card, encoding="utf-8")
    fitted = None if module.calibration is None else module.calibration.to_dict()
    about = {"version": __version__, "tuned_threshold": module.tuned_threshold, "calibration": fitted}
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
