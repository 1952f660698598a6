"""What commands import before they answer, and how idle threads wait: seconds and other jobs' cores."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

QUICK = ["pack --help", "benchmark list", "benchmark --help", "index --help", "report --help", "export --help"]
QUICK += ["report nowhere", "pack nowhere --out x", "fit --config nowhere", "fit --measure 1", "nonsense"]
RUN = """
import json, sys
from contactlm.__main__ import main
for line in json.loads(sys.argv.pop()):
    sys.argv = ["contactlm", *line.split()]
    try:
        main()
    except SystemExit:
        pass
    sys.stderr.write(f"{line}: {sorted({'torch', 'lightning', 'transformers', 'peft'} & set(sys.modules))}\\n")
"""


def test_commands_that_compute_nothing_do_not_wait_for_torch() -> None:
    done = subprocess.run([sys.executable, "-c", RUN, json.dumps(QUICK)], capture_output=True, text=True, check=True)
    loaded = [line for line in done.stderr.splitlines() if line.endswith("]")]
    assert loaded == [f"{line}: []" for line in QUICK]


SPIN = """
import os, sys
from contactlm.__main__ import main
sys.argv = ["contactlm", "report", "nowhere"]
main()
print(os.environ.get("GOMP_SPINCOUNT"))
"""


@pytest.mark.parametrize(
    ("chosen", "told"), [({}, "1000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "passive"}, "None")]
)
def test_idle_threads_wait_for_a_moment_only_unless_the_user_says_how(chosen: dict[str, str], told: str) -> None:
    kept = {name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    done = subprocess.run([sys.executable, "-c", SPIN], env=kept | chosen, capture_output=True, text=True, check=True)
    assert done.stdout.split()[-1] == told
