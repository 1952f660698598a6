"""What evaluation needs where processes share weights; whole commands that do are in ``tests/devices``."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from contactlm.modules.lockstep import Lockstep, evaluate_without_inference_mode, is_last_step
from tests.callbacks.test_callbacks import trainer


class Group:
    """Stands for a strategy: knows how often the others want another pass."""

    root_device = torch.device("cpu")

    def __init__(self, others: int) -> None:
        self.others, self.asked = others, 0

    def reduce(self, wish: torch.Tensor, reduce_op: str) -> torch.Tensor:
        assert reduce_op == "max"
        self.asked += 1
        self.others -= 1
        return torch.maximum(wish, torch.tensor(int(self.others >= 0)))


@pytest.mark.parametrize(("own", "others"), [(3, 0), (3, 3), (2, 5), (0, 4), (0, 0)])
def test_a_process_makes_as_many_passes_as_the_one_with_most(own: int, others: int) -> None:
    network, group, passes = nn.Identity(), Group(others), [0]
    network.register_forward_hook(lambda *_: passes.__setitem__(0, passes[0] + 1))
    lockstep = Lockstep(network, lambda: SimpleNamespace(strategy=group), lambda: network(torch.ones(1)))  # type: ignore[arg-type,return-value]
    network(torch.ones(1))  # of training: nobody is asked
    assert group.asked == 0
    for n in range(max(own, 1)):
        with lockstep.step(is_last=n + 1 >= own):
            if own:
                network(torch.ones(1))
    assert passes[0] == 1 + max(own, others)
    assert group.asked == max(own, others) + 1  # each pass, and once to hear that none follows


def test_what_is_done_within_a_step_belongs_to_it() -> None:
    network, group = nn.Identity(), Group(4)
    lockstep = Lockstep(network, lambda: SimpleNamespace(strategy=group), lambda: network(torch.ones(1)))  # type: ignore[arg-type,return-value]
    with lockstep.step(is_last=True):
        with lockstep.step(is_last=True):
            network(torch.ones(1))
        assert group.asked == 1  # the others are not waited for before this one is through
        network(torch.ones(1))
    assert group.asked == 5


def test_an_error_amid_a_step_is_not_waited_for() -> None:
    network, group = nn.Identity(), Group(10)
    lockstep = Lockstep(network, lambda: SimpleNamespace(strategy=group), lambda: None)  # type: ignore[arg-type,return-value]
    with pytest.raises(ZeroDivisionError), lockstep.step(is_last=True):
        raise ZeroDivisionError
    assert group.asked == 0


def test_no_loop_evaluates_in_inference_mode(tmp_path: Path) -> None:
    runner = trainer(tmp_path)
    loops = [runner.fit_loop.epoch_loop.val_loop, runner.validate_loop, runner.test_loop, runner.predict_loop]
    assert any(loop.inference_mode for loop in loops)
    evaluate_without_inference_mode(runner)
    assert not any(loop.inference_mode for loop in loops)


@pytest.mark.parametrize("stage", ["sanity_checking", "testing", "predicting", "validating"])
def test_the_last_batch_is_known(stage: str) -> None:
    numbers = {
        "num_sanity_val_batches": [1],
        "num_test_batches": [2],
        "num_predict_batches": [3],
        "num_val_batches": [4],
    }
    stages = dict.fromkeys(("sanity_checking", "testing", "predicting", "validating"), False) | {stage: True}
    runner: Any = SimpleNamespace(**numbers, **stages)
    last = ["sanity_checking", "testing", "predicting", "validating"].index(stage)
    assert [is_last_step(runner, n) for n in range(5)] == [n >= last for n in range(5)]
