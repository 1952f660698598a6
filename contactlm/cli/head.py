"""``contactlm head fit``: a contact head for a backbone that has none, or another for one that has."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from typing import Any

import torch
from jsonargparse import ArgumentParser

from contactlm.cli.commands import CommandParser
from contactlm.data.datamodule import ContactDataModule
from contactlm.data.sources import check_sources
from contactlm.model.backbone import ContactBackbone, backbone_checksum, load_esm
from contactlm.model.contact_head import write_head
from contactlm.modules.head_fit import HeadFit, HeadFitOptions, fit_head, make_solver
from contactlm.shipped import __version__
from contactlm.types import ModelError

_TASK = "fit"


class HeadParser(CommandParser, ArgumentParser):
    """jsonargparse's parser."""


def head_command(arguments: Sequence[str]) -> int:
    """Run ``contactlm head``; the exit status is 0."""
    parser, given = head_parser(), list(arguments)
    if "--help" in given:  # of --help all
        given = ["--help"]
    elif given[:1] == [_TASK]:
        given = given[1:]
    elif given:
        parser.error(f"{given[0]!r}: there is one task, {_TASK}: contactlm head {_TASK} …")
    config = parser.parse_args(given)
    return _fit(parser.instantiate_classes(config), config)


def head_parser() -> HeadParser:
    """The parser of ``contactlm head fit``."""
    parser = HeadParser(
        "contactlm head fit",
        description="Fit a contact head: L1-regularised logistic regression on attention maps (Rao et al. 2021), or, "
        "with --method top, the mean of the best maps.",
    )
    parser.add_argument("--model.pretrained", type=str, required=True, help="The backbone: hub name or directory.")
    parser.add_argument("--out", type=str, required=True, help="The file to write, such as head.safetensors.")
    parser.add_argument(
        "--chain_ids", type=str, nargs="+", default=[], help="Chains to fit to, instead of random ones."
    )
    parser.add_argument("--device", type=str, default="auto", help="Device: auto, cpu, cuda, …")
    parser.add_class_arguments(HeadFitOptions, as_group=True, skip={"below"})
    parser.add_class_arguments(ContactDataModule, "data")
    return parser


def _fit(given: Any, config: Any) -> int:
    names = HeadFitOptions.__dataclass_fields__
    data: ContactDataModule = given.data
    own = {name: getattr(config, name) for name in names if name != "below"}
    options = HeadFitOptions(**own, below=data.definition.below)
    check_sources("fit", config.data)
    make_solver(1.0)  # or it is not installed: before anything is read
    data.prepare_data()
    data.setup("fit")
    if "dev" not in data.chains:
        raise ModelError("no chains are held out to choose the penalty on; raise data.dev_fraction, or give more files")
    pretrained = config.model.pretrained
    esm = load_esm(pretrained)
    checksum, backbone = backbone_checksum(esm), ContactBackbone(esm.to(_device(config.device))).eval()
    fit = fit_head(backbone, data.chains["train"], data.chains["dev"], options, config.chain_ids)
    family = backbone.family
    about = {"version": __version__, "family": family.name, "backbone": pretrained, "backbone_checksum": checksum}
    about |= {"contact": str(data.definition), "method": options.method}
    facts = {"chains": fit.ids, "strength": fit.strength, "held_out_p_at_L_long": fit.score}
    write_head(config.out, fit.head.weight[None], torch.tensor([fit.head.bias]), about | facts)
    sys.stdout.write(f"{_report(fit, family.name, options)}\n{config.out} written\n")
    return 0


def _device(name: str) -> torch.device:
    if name != "auto":
        return torch.device(name)
    if not torch.accelerator.is_available():
        return torch.device("cpu")
    return torch.accelerator.current_accelerator() or torch.device("cpu")


def _report(fit: HeadFit, family: str, options: HeadFitOptions) -> str:
    """What was fitted, on what, and how well it does."""
    maps, (pairs, contacts) = len(fit.head.weight), fit.pairs
    by = "number of maps, on the fitting chains" if options.method == "top" else "strength"
    scores = ", ".join(f"{strength:g}: {score:.3f}" for strength, score in fit.scores.items())
    lines = [
        f"{family}: {len(fit.ids)} chains, {pairs} pairs at least {options.min_separation} apart, {contacts} contacts",
        f"heads used           {int(fit.head.weight.count_nonzero())} of {maps}, bias {fit.head.bias:.3f}",
        f"P@L long, held out   {fit.score:.3f} ({fit.held_out} chains; by {by} {scores})",
    ]
    if not math.isnan(fit.own_score):
        lines.append(f"the backbone's own   {fit.own_score:.3f}")
    return "\n".join(lines)
