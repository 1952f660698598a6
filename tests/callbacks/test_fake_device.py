"""A step of training with its callbacks on an accelerator, here one without data: what it waits for."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.callbacks.on_fake_device import run
from tests.processes import finish, start


@pytest.mark.slow
def test_between_two_logs_a_step_waits_for_its_batch_and_the_guard(tmp_path: Path) -> None:
    report = finish(start(run, folder=tmp_path), tmp_path)
    # Tokens, mask and coordinates of each batch; of both shapes, one of which the FLOPs were counted of.
    assert report["waits"] == {"aten._to_copy.default in batch_to": 3 * report["steps"]}
    assert report["looks"] == 6  # at loss and gradients, once a step: what it saw is the one number that is asked for
