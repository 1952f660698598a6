"""``--help`` of LightningCLI's subcommands: what a command does and examples first, then our options.

LightningCLI would print a usage of a hundred lines, and the trainer's options before all others.
"""

from __future__ import annotations

import argparse

from jsonargparse import DefaultHelpFormatter
from lightning.pytorch.cli import LightningArgumentParser

from contactlm.cli.commands import STATUSES, description

# Groups of options in the order they are shown in, each with a title; other groups follow, then the trainer's.
GROUPS = {
    "model": "the model",
    "data": "structures, crops and batches",
    "budget": "how long to train",
    "checkpoint": "what is saved, and when",
    "evaluation": "scores on dev and test",
    "guard": "losses that are not finite",
    "speed": "speed and utilisation",
    "dashboard": "what TensorBoard shows",
    "record": "run.json, which contactlm report reads",
    "memory": "advice when memory runs out",
    "auto_batch_size": "data.batch_size auto",
    "flops": "floating point operations",
}
LAST = {"trainer": "the run: devices, precision, validation, loggers (options of lightning.Trainer)"}
PLAINER = {  # than what Lightning says, for a user of this command
    "ckpt_path": "Checkpoint: fit goes on from its state, the others use its weights and options. last: the newest "
    "last.ckpt of runs of this name (none: fit begins).",
    "weights_only": "Refuse checkpoints that hold more than plain values; those of this package hold nothing else.",
    "seed_everything": "Seed of weights, dropout, the order of proteins and their crops; true: a random one.",
    "trainer.callbacks": "Further callbacks; those of the groups above are there anyway.",
}
USAGE = "contactlm {name} [--config NAME_OR_FILE ...] [--GROUP.OPTION VALUE ...]"
MORE = """\
Options may be collected in a YAML file for --config, alone or on top of a shipped one; what comes later counts.
A file whose first line is config: OTHER.yaml is laid over that one. A group may also be given as a file:
--data my_data.yaml. --print_config shows what a command would run with."""


class HelpFormatter(DefaultHelpFormatter):
    """Keeps the line breaks of descriptions."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        if "\n" in text:
            return "".join(f"{indent}{line}" for line in text.splitlines(keepends=True))
        return super()._fill_text(text, width, indent)


def arrange_help(parser: LightningArgumentParser, name: str) -> None:
    """Make a subcommand's ``--help`` short at the top and put our groups of options first.

    The main parser's ``formatter_class`` has to be :class:`HelpFormatter`: subcommands take it over.

    Args:
        parser: The subcommand's, with all its arguments.
        name: ``fit``, ``validate``, ``test`` or ``predict``.
    """
    parser.usage = USAGE.format(name=name)
    parser.description = f"{description(name)}\n\n{MORE}"
    parser.epilog = STATUSES
    order = [*GROUPS, *LAST]
    titles = GROUPS | LAST

    def rank(group: argparse._ArgumentGroup) -> int:
        key = _key(group)
        if group.title == "Linked arguments":
            return len(order)
        if not key:
            return -1  # options of the command itself
        return order.index(key) if key in order else len(GROUPS)

    for action in parser._actions:
        action.help = PLAINER.get(action.dest, action.help)
    for group in parser._action_groups:
        key = _key(group)
        if any(action.dest == "ckpt_path" for action in group._group_actions):
            group.title = "a checkpoint"
        if key in titles and _is_whole(group, key):
            group.title = f"--{key}.…: {titles[key]}"
    parser._action_groups.sort(key=rank)


def _key(group: argparse._ArgumentGroup) -> str:
    """The first part of the names of a group's options, such as ``data``; empty where they have but one part."""
    names = [action.dest for action in group._group_actions]
    return next((name.partition(".")[0] for name in names if "." in name), "")


def _is_whole(group: argparse._ArgumentGroup, key: str) -> bool:
    """Whether this is the group of ``--key`` itself, not one nested in it."""
    return any(action.dest == key for action in group._group_actions)
