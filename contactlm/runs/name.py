"""The name of a run, which its loggers share."""

from __future__ import annotations

from typing import Any, TypeVar

from lightning.pytorch.loggers import Logger

RUN_NAME = "{name}"
"""What stands in the options of a logger for the name of the run."""
LoggerClass = TypeVar("LoggerClass", bound=Logger)


def filled_in(value: Any, name: str) -> Any:
    """The value of a logger's option: the run's name where the option leaves it to the run."""
    return name if value == RUN_NAME else value


def make_logger(name: str, logger: type[LoggerClass], /, *args: Any, **options: Any) -> LoggerClass:
    """Make a logger of a run.

    Args:
        name: The run's.
        logger: The logger's class.
        args: Arguments of the class.
        options: Arguments by name; :data:`RUN_NAME` stands for the run's name.
    """
    return logger(*args, **{key: filled_in(value, name) for key, value in options.items()})


def logger_options(loggers: Any) -> list[Any]:
    """The options of each logger of ``trainer.logger``, whichever of its forms a config has; none where it has none."""
    each = loggers if isinstance(loggers, list) else [loggers]
    return [logger.get("init_args") or {} for logger in each if logger not in (None, True, False)]


def names_instead(loggers: Any, name: str) -> list[str]:
    """The names of a run whose loggers are all called otherwise, each once; none where a logger has the run's name."""
    names = [filled_in(options["name"], name) for options in logger_options(loggers) if "name" in options]
    return [] if name in names else [str(other) for other in dict.fromkeys(names)]
