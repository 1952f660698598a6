"""The installed command, and ``python -m contactlm``: a clean end also while the libraries are being imported."""

from __future__ import annotations

import gc
import os
import sys

from contactlm.cli import commands

SPINCOUNT = "1000"  # rounds that an idle thread of OpenMP waits before it gives its core to others
INTERRUPTED = 130  # what shells report of a command ended by Ctrl-C


def main() -> int:
    """Run a command; see :func:`contactlm.cli.main.main`."""
    try:
        if (status := commands.answer(sys.argv[1:])) is not None:
            return status
        if "OMP_WAIT_POLICY" not in os.environ:  # GNU OpenMP reads these when torch loads it
            os.environ.setdefault("GOMP_SPINCOUNT", SPINCOUNT)
        if not sys.stderr.isatty():  # no bar, of ours or others', shall fill a log file; read when tqdm is imported
            os.environ.setdefault("TQDM_MININTERVAL", "30")
        # model_class and class_path may name a file in the current folder; last, so that it hides nothing
        sys.path.append("")
        gc.disable()  # while a million objects are imported, none of which is garbage
        from contactlm.cli.main import main as run

        return run()
    except KeyboardInterrupt:
        sys.stderr.write("contactlm: interrupted\n")
        sys.stderr.flush()
        # Where it came while a library ran code of its own from C, Python would now end by the signal, not this status.
        os._exit(INTERRUPTED)


if __name__ == "__main__":
    sys.exit(main())
