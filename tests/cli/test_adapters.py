"""Adapters by the command line: what is refused, in one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from contactlm.cli.adapters import check_adapters
from contactlm.cli.main import main
from contactlm.types import ModelError


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model.lora.use_dorra", "true"], r"lora: there is no option 'use_dorra'; did you mean use_dora\?"),
        (["--model.lora={r: 3, ranks: 4}"], "there is no option 'ranks'"),
        (["--model.lora.class_path", "peft.IA3Config"], "peft.IA3Config: .*IA.*learns a scale .*use_dora true"),
        (["--model.lora.class_path=peft.AdaLoraConfig", "--model.lora.init_args.r=3"], "budget of tokens ends it"),
        (["--model.lora.class_path", "peft.BOFTConfig"], "adapters here are LoRA's and DoRA's"),
        (["--config", "CONFIG"], "there is no option .rang. .options: r, alpha"),
    ],
)
def test_what_does_not_exist_is_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture, arguments: list[str], message: str
) -> None:
    (tmp_path / "a.yaml").write_text("model: {lora: {rank_pattern: {query: 3}, rang: 4}}")
    given = [str(tmp_path / "a.yaml") if argument == "CONFIG" else argument for argument in arguments]
    with pytest.raises(ModelError, match=message):
        check_adapters(given)
    assert main(["fit", "--config=crop200", *given]) == 1
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and told.startswith("contactlm: error: lora: ")


@pytest.mark.parametrize(
    "arguments",
    [
        ["--model.lora.r", "3", "--model.lora.rank_pattern.query=4", "--model.lora.target_modules+=value"],
        ["--model.lora", "null"],
        ["--model.lora={r: 3, alpha_pattern: {key: 4}}"],
        ["--model.lora_but_not", "3"],
    ],
)
def test_what_exists_is_left_to_the_parser(arguments: list[str]) -> None:
    check_adapters(arguments)
