"""A step of training with its callbacks on an accelerator, here one without data: what it waits for."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest


@pytest.mark.slow
def test_between_two_logs_a_step_waits_for_nothing_but_its_batch_and_the_guard():
    command = [sys.executable, "-m", "tests.callbacks.on_fake_device"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    report = json.loads(done.stdout.splitlines()[-1])
    # Tokens, mask and coordinates of each batch; of both shapes, one of which the FLOPs were counted of.
    assert report["waits"] == {"aten._to_copy.default in batch_to": 3 * report["steps"]}
    assert report["asked"] == 6  # the guard's verdict, once a step
