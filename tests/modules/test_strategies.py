"""Strategies that cannot work are refused at the start, with the one that does."""

from pathlib import Path
from typing import Any

import pytest

from contactlm.cli.main import main
from contactlm.modules.strategies import check_strategy_options
from contactlm.types import ModelError


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
