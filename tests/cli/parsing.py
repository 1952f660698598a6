"""What the parser of the command line makes of arguments, where nothing is to be built or run."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import pytest

from contactlm.cli.arguments import chosen_class, resolve_arguments
from contactlm.cli.contact_cli import ContactCLI
from contactlm.modules.base import MapModule


def parsed(arguments: Sequence[str], model: type[MapModule] | None = None) -> dict[str, Any]:
    """The options of a command, as ``main`` would go on with.

    Args:
        arguments: Command and options.
        model: The LightningModule; if None, the one that the arguments choose.
    """
    given = resolve_arguments(list(arguments))
    command = _command(given[0], model or chosen_class(given))
    command.parse_arguments(command.parser, given)
    assert command.config["subcommand"] == given[0]
    return command.config[given[0]]


@cache
def _command(name: str, model: type[MapModule]) -> ContactCLI:
    """A command that was not run. Its parser takes all arguments: it takes longer to build than to parse."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["contactlm"])
        patch.setattr("contactlm.cli.contact_cli.chosen_class", lambda _: model)
        for step in ("before_instantiate_classes", "instantiate_classes", "_run_subcommand"):
            patch.setattr(ContactCLI, step, lambda *_: None)
        return ContactCLI([name])
