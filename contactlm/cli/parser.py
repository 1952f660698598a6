"""The parser of LightningCLI's subcommands."""

from __future__ import annotations

from typing import Any

from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.loggers import Logger

from contactlm.runs.directory import RUN_NAME


class ContactParser(LightningArgumentParser):
    """Lightning's parser; a logger whose name is not given takes the run's, in place of its class's default.

    A default of our own, since a name that was given may be that of the class (``lightning_logs``), or none.
    """

    def add_class_arguments(self, theclass: type, *args: Any, **options: Any) -> list[str]:
        """Add the arguments of a class; see jsonargparse. Each class that a config names has a parser of its own."""
        added = super().add_class_arguments(theclass, *args, **options)
        if isinstance(theclass, type) and issubclass(theclass, Logger) and "name" in added:
            self.set_defaults({"name": RUN_NAME})
        return added
