"""The commands of ``contactlm`` in one list: what each does, where it is, and what its ``--help`` shows first.

Nothing heavy is imported here: ``contactlm --help`` answers at once.
"""

from __future__ import annotations

import argparse
import difflib
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.resources import files
from typing import NoReturn

from contactlm.shipped import __version__

BAD_ARGUMENTS = 2  # exit status
SOME_SKIPPED = 3  # exit status of a command that did its work, but not on all of its input
STATUSES = """\
exit status:
  0    done
  1    user error, one message
  2    invalid arguments
  3    predict, index, benchmark: done, but some inputs were skipped (named above)
  130  interrupted by Ctrl-C (143: by SIGTERM)"""


@dataclass(frozen=True)
class Command:
    """One command."""

    about: str  # what it does, in one line
    examples: tuple[tuple[str, str], ...] = ()  # lines to copy, each with what it does
    # `module:function` of a command with a parser of its own, which takes the arguments after the command's name and
    # gives the exit status; empty for LightningCLI's subcommands
    entry: str = ""

    def load(self) -> Callable[[Sequence[str]], int]:
        """Import what runs the command."""
        module, name = self.entry.split(":")
        return getattr(import_module(module), name)


COMMANDS = {
    "fit": Command("train within a budget of tokens, watch the dev set, score the test set"),
    "validate": Command("score a checkpoint on the dev set"),
    "test": Command("score a checkpoint on the test set"),
    "predict": Command("write contact maps of sequences and structures"),
    "plan": Command(
        "estimate the cost of a run: steps, FLOPs, memory by part, and what fits",
        entry="contactlm.cli.plan:plan_command",
    ),
    "export": Command(
        "write a trained model for others to load: a PEFT adapter, or merged weights",
        entry="contactlm.cli.export:export_command",
    ),
    "head": Command(
        "fit a contact head to a language model that has none",
        entry="contactlm.cli.head:head_command",
    ),
    "pack": Command(
        "write the chains of many structure files as shards to train from, locally or by URL",
        (
            ("contactlm pack --structures my/train --out my/train-packed --clusters", "run again to resume"),
            ("contactlm fit --config crop200 --data.train_dir my/train-packed", "the same samples as from the folder"),
        ),
        entry="contactlm.cli.pack:pack_command",
    ),
    "index": Command(
        "make a database of known structures, for models that read them",
        (("contactlm index build --structures my/structures --out db", "again: reads new and changed files only"),),
        entry="contactlm.cli.index:index_command",
    ),
    "benchmark": Command(
        "score models on public test sets, with published figures of the same chains and contract",
        (
            ("contactlm benchmark list", "the sets, their sources and licences, and the contracts"),
            (
                "contactlm benchmark foldbench-test cameo2022 --ckpt_path best.ckpt --out benchmark",
                "fetches structures",
            ),
            (
                "contactlm benchmark my.csv --structures DIR --model.pretrained facebook/esm2_t6_8M_UR50D",
                "a list of yours",
            ),
        ),
        entry="contactlm.cli.benchmark:benchmark_command",
    ),
    "report": Command(
        "compare runs: figures, tables, and which arm wins",
        (("contactlm report runs/crop200 runs/full1020 --out report", "means over seeds, and every run"),),
        entry="contactlm.cli.report:report_command",
    ),
}
WITH_TEXTS = ("fit", "validate", "test", "predict", "plan", "head")  # a text in help_texts is what --help shows
ABOUT = "Fine-tune ESM2 for residue-residue contact prediction, and predict with it."


def overview() -> str:
    """What ``contactlm --help`` shows."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {command.about}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            "usage: contactlm COMMAND [options]",
            f"\n{ABOUT}\n",
            "commands:",
            *lines,
            "\ncontactlm COMMAND --help shows a command's options and examples; contactlm --version the version.",
            "A first try, offline and in minutes:  contactlm fit --config quickstart\n",
            STATUSES,
        ]
    )


def description(name: str) -> str:
    """The top of a command's ``--help``: what it does, and examples."""
    command = COMMANDS[name]
    lines = [f"{command.about[0].upper()}{command.about[1:]}.", *(["", "examples:"] if command.examples else [])]
    for example, remark in command.examples:
        lines += [f"  {example}", f"      {remark}"]
    return "\n".join(lines)


def short_help(name: str) -> str:
    """What ``--help`` of some commands shows: a text with the options that people use."""
    return files("contactlm.cli").joinpath("help_texts").joinpath(f"{name}.txt").read_text(encoding="utf-8")


def check_names(arguments: Sequence[str], any_model: bool) -> None:
    """End with one line on an option that a subcommand of Lightning's lacks, before imports that take seconds.

    The options of ``--help all`` are in ``options.txt``; below one of them, a class that it names has its own.

    Args:
        arguments: The subcommand and its arguments.
        any_model: Whether the model may be of another class, with options of its own.
    """
    known = files("contactlm.cli").joinpath("help_texts").joinpath("options.txt").read_text(encoding="utf-8").split()
    groups = {name.partition(".")[0] for name in known if "." in name}
    below = (*(f"{name}." for name in known if name not in groups), *(["--model."] if any_model else []))
    for argument in arguments[1:]:
        option = argument.partition("=")[0].removesuffix("+")
        if not option.startswith("--") or option in (*known, "--config") or option.startswith(below):
            continue
        command, near = f"contactlm {arguments[0]}", max(known, key=lambda name: _likeness(option, name))
        sys.stderr.write(
            f"{command}: error: unrecognized arguments: {option}; the nearest option is {near}; see {command} --help\n"
        )
        raise SystemExit(BAD_ARGUMENTS)


def answer(arguments: Sequence[str]) -> int | None:
    """Answer a call for help or the version, no command, or one that does not exist; None when there is one to run."""
    first = arguments[0] if arguments else ""
    if first in ("-h", "--help", "help"):
        sys.stdout.write(f"{overview()}\n")
        return 0
    if first in ("-V", "--version"):
        sys.stdout.write(f"contactlm {__version__}\n")
        return 0
    if not first:
        sys.stderr.write(f"{overview()}\n")
        return BAD_ARGUMENTS
    if first in COMMANDS or first.startswith("-"):
        wants_short = {"-h", "--help"} & set(arguments) and "all" not in arguments
        if first not in WITH_TEXTS or not wants_short:
            return None
        sys.stdout.write(f"{short_help(first)}\n{STATUSES}\n")
        return 0
    near = difflib.get_close_matches(first, COMMANDS, n=1)
    meant = f"; did you mean {near[0]}?" if near else ""
    sys.stderr.write(f"contactlm: error: there is no command {first!r}{meant} (commands: {', '.join(COMMANDS)})\n")
    return BAD_ARGUMENTS


class CommandParser(argparse.ArgumentParser):
    """Answers arguments that it cannot understand with one line: what is wrong, the nearest option, where help is."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Write the line, and end the process; ``ex`` is jsonargparse's, of a subcommand's parser."""
        parser, message = getattr(ex, "subcommand_parser", None) or self, in_short(message)
        name, near = parser.prog.replace(" [options]", ""), ""
        if unknown := re.search(r"unrecognized arguments:.*?(--[\w.-]+)", message):
            options = sorted(set(re.findall(r"(?<![\w-])--\w[\w.]*", parser.format_help())))
            near = f"; the nearest option is {max(options, key=lambda option: _likeness(unknown[1], option))}"
        self.exit(BAD_ARGUMENTS, f"{name}: error: {message}{near}; see {name} --help\n")


def in_short(message: str) -> str:
    """What jsonargparse says of a wrong value in one line: the option, the value, and what it can be."""
    found = re.search(r'Parser key "([\w.]+)":(.*?)(?:Got value|Given value): (.*)', message, re.DOTALL)
    if found is None:
        return " ".join(message.split())[:600]
    option, kinds, value = found.groups()
    listed = [choice.strip(" '") for each in re.findall(r"Literal\[(.*?)\]", kinds) for choice in each.split(",")]
    named = [_KINDS[kind] for kind in re.findall(r"class '(\w+)'", kinds) if kind in _KINDS]
    choices = ", ".join(dict.fromkeys([*listed, *named])) or "what --help says"
    return f"--{option} {' '.join(value.split())[:200]}: no such value; give one of: {choices}"


_KINDS = {"int": "a whole number", "float": "a number", "bool": "true, false", "NoneType": "null", "list": "a list"}


def _likeness(given: str, option: str) -> float:
    """How alike two options are, or the last parts of their names."""
    pairs = ((given, option), (re.split(r"[.-]", given)[-1], re.split(r"[.-]", option)[-1]))
    return max(difflib.SequenceMatcher(None, *pair).ratio() for pair in pairs)
