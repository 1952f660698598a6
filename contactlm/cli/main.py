"""The command ``contactlm``: what runs it, and the exit status; commands are named in commands.py."""

from __future__ import annotations

import gc
import sys
from collections.abc import Sequence

from contactlm.cli.arguments import check_removed, may_be_any_model, plain_arguments, resolve_arguments
from contactlm.cli.commands import COMMANDS, answer, check_names
from contactlm.cli.console import NO_ROOM, file_trouble, set_up_log
from contactlm.runs.signals import Stopped
from contactlm.types import ContactLMError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Returns:
        The exit status: 0 when all went well, 1 for a user error (with one message), 3 when some inputs of
        ``predict`` had to be skipped, 143 and 130 when SIGTERM or Ctrl-C ended a ``fit``, whose state is then saved for
        ``--ckpt_path last``. Arguments that cannot be parsed end the process with 2.
    """
    set_up_log()
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        if (status := answer(given)) is not None:
            return status
        check_removed(given)
        if given[0] in COMMANDS and COMMANDS[given[0]].entry:
            command = COMMANDS[given[0]].load()
            _begin()
            return command(given[1:])
        plain = plain_arguments(resolve_arguments(given))
        if given[0] in COMMANDS:
            check_names(plain, may_be_any_model(plain))
        return _run_lightning(plain)
    except Stopped as stop:
        return int(stop.code or 0)
    except _mendable() as error:
        return _tell_error(str(error))
    except OSError as error:
        if error.filename is None and error.errno not in NO_ROOM:
            raise
        return _tell_error(file_trouble(error))
    except SystemExit as end:
        if isinstance(end.__context__, KeyboardInterrupt):  # Lightning makes an exit status of 1 of Ctrl-C
            raise KeyboardInterrupt from end
        raise
    except (RuntimeError, MemoryError) as error:
        from contactlm.callbacks.memory import memory_advice

        if (advice := memory_advice(error)) is None:
            raise
        return _tell_error(advice)


def _run_lightning(arguments: Sequence[str]) -> int:
    """Run a command of LightningCLI, whose imports take seconds."""
    from contactlm.cli.contact_cli import ContactCLI

    _begin()
    return ContactCLI(arguments).status


def _begin() -> None:
    """Collect garbage again, and quieten what imports made speak: Lightning gives its logs a level."""
    if not gc.isenabled() and "triton" not in sys.modules:  # which complains of what is not collected in the end
        gc.freeze()  # what was imported stays: no later collection looks at it, nor the one at the end of the process
    gc.enable()
    set_up_log()


def _mendable() -> tuple[type[Exception], ...]:
    """User errors, which are one message; Lightning's where it is loaded."""
    loaded = sys.modules.get("lightning.fabric.utilities.exceptions")
    return (ContactLMError,) if loaded is None else (ContactLMError, loaded.MisconfigurationException)


def _tell_error(text: str) -> int:
    sys.stderr.write(f"contactlm: error: {text}\n")
    return 1
