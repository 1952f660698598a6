"""Models whose weights are spread over processes, without processes; whole commands are in ``tests/devices``."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from contactlm.cli.main import main
from contactlm.modules.sharded import (
    Lockstep,
    adopt,
    check_strategy_options,
    is_last_step,
    local_part,
)
from contactlm.types import ModelError
from tests.callbacks.test_callbacks import trainer


def model_parallel(**sizes: Any) -> dict[str, Any]:
    return {"class_path": "lightning.pytorch.strategies.ModelParallelStrategy", "init_args": sizes}


@pytest.mark.parametrize(
    ("strategy", "more", "words"),
    [
        ("fsdp", {}, "FSDP 1\\) does not run on a CPU"),
        ({"class_path": "lightning.pytorch.strategies.FSDPStrategy"}, {"accelerator": "cpu"}, "FSDP 1\\) does not run"),
        ("deepspeed_stage_3", {"accelerator": "gpu"}, "needs the package deepspeed, which is not installed"),
        (model_parallel(), {}, r"tensor_parallel_size auto \(auto: the devices of a node\): layers are not split"),
        (model_parallel(data_parallel_size=1, tensor_parallel_size=2), {}, "layers are not split"),
        (model_parallel(data_parallel_size=2, tensor_parallel_size=1), {"num_nodes": 2}, "but the run has 4 processes"),
        (model_parallel(tensor_parallel_size=1), {}, "data_parallel_size 1.*but the run has 2 processes"),
    ],
)
def test_what_cannot_work_is_refused(strategy: Any, more: dict[str, Any], words: str) -> None:
    with pytest.raises(ModelError, match=words) as refusal:
        check_strategy_options({"strategy": strategy, "devices": 2, **more})
    assert "ModelParallelStrategy, init_args: {data_parallel_size: DEVICES, tensor_parallel_size: 1" in str(
        refusal.value
    )


@pytest.mark.parametrize(
    ("strategy", "devices", "nodes"),
    [
        ("auto", "auto", 1),
        ("ddp", 2, 2),
        (None, None, None),
        (model_parallel(data_parallel_size=4, tensor_parallel_size=1), "2", 2),
        (model_parallel(tensor_parallel_size=1), 1, 2),
        (model_parallel(data_parallel_size=2, tensor_parallel_size=1), "auto", 1),
    ],
)
def test_what_works_is_not(strategy: Any, devices: Any, nodes: Any) -> None:
    check_strategy_options({"strategy": strategy, "devices": devices, "num_nodes": nodes})


def test_the_command_line_says_so_before_anything_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    options = ["--trainer.strategy=ModelParallelStrategy", "--trainer.devices=2"]
    options.append(f"--data.train_dir={tmp_path}")
    for more, words in (([], "layers are not split here"), (["--trainer.strategy=fsdp"], "FSDP 1")):
        assert main(["fit", "--trainer.accelerator=cpu", *options, *more]) == 1
        text = capsys.readouterr().err
        assert text.startswith("contactlm: error: trainer.strategy: ") and words in text and text.count("error:") == 1


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
    adopt(runner)
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


@pytest.mark.parametrize(("rows", "processes"), [(7, 2), (5, 4), (1, 3), (8, 4)])
def test_each_process_takes_its_rows(rows: int, processes: int) -> None:
    class Like:
        def __init__(self, rank: int) -> None:
            self.device_mesh = self
            self.rank = rank

        def size(self) -> int:
            return processes

        def get_local_rank(self) -> int:
            return self.rank

    whole = torch.arange(3.0 * rows).view(rows, 3)
    parts = [local_part(whole, Like(rank)) for rank in range(processes)]  # type: ignore[arg-type]
    assert torch.equal(torch.cat(parts), whole) and len(parts[0]) == -(-rows // processes)
    assert local_part(whole, whole) is whole
