"""What commands import before they answer, and how idle threads wait: seconds and other jobs' cores."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from importlib.resources import files

import pytest

from contactlm.cli.main import main

QUICK = ["pack --help", "benchmark list", "benchmark --help", "index --help", "report --help", "export --help"]
QUICK += ["report nowhere", "pack nowhere --out x", "fit --config nowhere", "fit --measure 1", "nonsense"]
QUICK += ["fit --confg x", "fit --data.crop_lenght 3", "predict --data.nothing 1", "fit --help", "test --help"]
QUICK += ["head fit --help", "plan --help"]
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


def test_the_list_of_options_is_that_of_the_parsers(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["contactlm"])
    found = set[str]()
    for command in ("fit", "predict"):  # what the others have, these have as well
        with pytest.raises(SystemExit):
            main([command, "--help", "all"])
        found |= set(re.findall(r"(?m)^  (?:-\w, )?(--\w[\w.]*)", capsys.readouterr().out))
    listed = files("contactlm.cli").joinpath("help_texts").joinpath("options.txt").read_text(encoding="utf-8").split()
    assert sorted(found | {"--verbose"}) == listed


@pytest.mark.parametrize(
    ("line", "near"),
    [
        ("fit --data.crop_lenght 3", "--data.crop_length"),
        ("fit --max_tokens 3", "--budget.max_tokens"),
        ("fit --model.gamma=3", "--model."),
        ("predict --format=npz", "--formats"),
    ],
)
def test_an_unknown_option_is_answered_with_the_nearest(
    line: str, near: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        main(line.split())
    message = capsys.readouterr().err
    assert end.value.code == 2 and message.count("\n") == 1 and f"the nearest option is {near}" in message


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
