"""The parser of LightningCLI's commands: what they have beyond Lightning's options, and readable help."""

from __future__ import annotations

import argparse
import re
from typing import Any, Literal

from jsonargparse import DefaultHelpFormatter
from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.loggers import Logger

from contactlm.callbacks.prediction_files import DEFAULT_FORMATS, FORMATS
from contactlm.cli.commands import STATUSES, CommandParser, description
from contactlm.maps.contact_map import RR_PAIRS_PER_RESIDUE
from contactlm.maps.restraints import RestraintOptions
from contactlm.runs.directory import RUN_NAME

KINDS = (
    "Files per map; html: a page; csv: its pairs; pml, cxc, pdb: on its structure (PyMOL, ChimeraX, B-factors); "
    "boltz, chai, protenix, haddock, rosetta, pairs: restraints for other programs."
)


USAGE = "contactlm {name} [--config NAME_OR_FILE ...] [--GROUP.OPTION VALUE ...]"
MORE = """\
Options can go into a YAML file for --config, alone or after a shipped config; later values override earlier ones.
A file whose first line is config: OTHER.yaml extends that file. A group can be a file, too: --data my_data.yaml.
--print_config shows the resulting options."""


class HelpFormatter(argparse.RawDescriptionHelpFormatter, DefaultHelpFormatter):
    """Keeps the line breaks of descriptions."""


class ContactParser(CommandParser, LightningArgumentParser):
    """Lightning's parser; a logger whose name is not given takes the run's, in place of its class's default.

    A default of our own, since a name that was given may be that of the class (``lightning_logs``), or none.
    """

    def format_help(self) -> str:
        """All options, without addresses of functions and marks of other documentation."""
        text = re.sub(r"<(?:function|class)\s+'?([\w.]+)'?[^>]*>", r"\1", super().format_help())
        return re.sub(r":\w+:`~?([^`]+)`", r"\1", text)

    def add_class_arguments(self, theclass: type, *args: Any, **options: Any) -> list[str]:
        """Add the arguments of a class; see jsonargparse. Each class that a config names has a parser of its own."""
        added = super().add_class_arguments(theclass, *args, **options)
        if isinstance(theclass, type) and issubclass(theclass, Logger) and "name" in added:
            self.set_defaults(name=RUN_NAME)
        return added

    def add_method_arguments(self, theclass: type, themethod: str, *args: Any, **options: Any) -> list[str]:
        """Add the arguments of a method of the trainer, a subcommand, and what only that one has."""
        added = super().add_method_arguments(theclass, themethod, *args, **options)
        parser: Any = self  # argparse's own types know less
        if themethod == "predict":
            parser.set_defaults({"return_predictions": False})  # maps are written as they come, not kept
            parser.add_argument("--out", type=str, default="predictions", help="Folder for maps and summary.csv.")
            kinds = list[Literal[FORMATS]]  # type: ignore[valid-type]  # one list of them, for the writers too
            parser.add_argument("--formats", type=kinds, default=list(DEFAULT_FORMATS), help=KINDS)
            parser.add_argument("--overwrite", type=bool, default=False, help="Recompute unchanged predictions.")
            parser.add_argument(
                "--dtype",
                type=Literal["float16", "float32"],
                default="float32",
                help="Dtype of probabilities in .npz files.",
            )
            parser.add_argument(
                "--pairs_per_residue",
                type=float | None,
                default=RR_PAIRS_PER_RESIDUE,
                help="Maximum pairs in an .rr file, times L, most probable first; null: all with p at least 0.01.",
            )
            parser.add_argument(
                "--structure", type=str | None, default=None, help="Structure file to show the maps of sequences on."
            )
            parser.add_class_arguments(RestraintOptions, "restraints")
        if themethod in ("validate", "test"):
            parser.set_defaults({"verbose": False})  # we have a table of our own
        self.usage = USAGE.format(name=themethod)
        self.description = f"{description(themethod)}\n\n{MORE}"
        self.epilog = STATUSES
        return added
