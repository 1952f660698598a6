"""``contactlm plan`` on small sets."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from contactlm.cli.main import main
from contactlm.cli.plan import bytes_of
from contactlm.types import ContactLMError


def plan(tiny_esm: Path, folders: tuple[Path, Path], *more: str) -> list[str]:
    data = [f"--data.train_dir={folders[0]}", "--data.read_workers=0", "--data.batch_size=4", "--data.crop_length=40"]
    model = [f"--model.pretrained={tiny_esm}", "--trainer.accelerator=cpu"]
    return ["plan", "--config=crop200", *data, *model, *more]


@pytest.mark.slow
def test_a_plan_tells_what_a_run_takes(
    tiny_esm: Path, pdb_folders: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tiny_esm.parent / "bare").mkdir(exist_ok=True)
    bare = tiny_esm.parent / "bare"  # no weights: sizes are enough
    (bare / "config.json").write_bytes((tiny_esm / "config.json").read_bytes())
    assert main(plan(bare, pdb_folders, "--budget.max_tokens=16800", "--memory=1GB")) == 0
    told = capsys.readouterr().out
    assert "the largest 4 x 42" in told
    batches, steps = (float(re.search(p, told)[1]) for p in (r"([\d.]+) tokens on average", r"about (\d+) optimizer"))  # type: ignore[index]
    assert steps == -(-16800 // batches) or abs(steps - 16800 / batches) <= 1
    assert re.search(r"memory +\d+ MB a step of 4 x 42 tokens on cpu, precision 32-true: weights \d+ MB", told)
    rows = [int(n) for n in re.findall(r"up to (\d+) x 42 tokens", told)]
    assert len(rows) == 4 and 100 < rows[0] < min(rows[1:])  # less kept, fewer bits, both
    assert rows[2] < rows[3]
    assert not (tmp_path / "runs").exists()  # nothing was run


@pytest.mark.slow
def test_weights_in_fewer_bits_take_less(
    tiny_esm: Path, pdb_folders: tuple[Path, Path], tmp_path, capsys, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    sizes = "{num_hidden_layers: 2, hidden_size: 256, num_attention_heads: 4, intermediate_size: 1024}"
    random = ["--model.pretrained=null", f"--model.architecture={sizes}"]
    assert main(plan(tiny_esm, pdb_folders, *random, "--model.backbone_dtype=bfloat16", "--memory=1GB")) == 0
    told = capsys.readouterr().out
    weights = float(re.search(r"weights ([\d.]+) MB", told)[1])  # type: ignore[index]
    assert weights == pytest.approx(2 * 12 * 256**2 * 2 / 1e6, abs=0.6)  # 2 bytes of each of 12 width² a layer
    assert len(re.findall(r"up to \d+ x 42", told)) == 2  # fewer bits are no way to make it smaller any more


@pytest.mark.slow
def test_what_does_not_fit_is_said(
    tiny_esm: Path, pdb_folders: tuple[Path, Path], tmp_path, capsys, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(plan(tiny_esm, pdb_folders, "--memory", "100KB")) == 0
    assert capsys.readouterr().out.count("not one sequence of 42") == 4


def test_what_is_wrong_is_one_message(
    tiny_esm: Path, pdb_folders: tuple[Path, Path], tmp_path, capsys, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for arguments, message in (
        (plan(tiny_esm, pdb_folders, "--memory=much"), "--memory 'much': give a size such as 12GB"),
        (plan(tmp_path / "none", pdb_folders), "no config.json can be had"),
        (["plan", "--config=nowhere"], "there is no such file"),
        (plan(tiny_esm, pdb_folders, "--config=jacobian"), "trainer.max_steps is 0"),
    ):
        assert main(arguments) == 1
        assert message in capsys.readouterr().err
    with pytest.raises(ContactLMError, match="such as 12GB"):
        bytes_of("0GB")
