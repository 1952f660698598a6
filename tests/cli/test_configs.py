"""Arguments as users write them."""

from pathlib import Path

import pytest

from contactlm.cli.arguments import REMOVED, resolve_arguments
from contactlm.cli.main import main
from contactlm.shipped import config_folder
from contactlm.types import ContactLMError
from tests.cli.parsing import parsed
from tests.conftest import random_sequence


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["contactlm"])


def predict(*arguments: str) -> dict[str, object]:
    """What the parser makes of the arguments of ``predict``."""
    config = parsed(["predict", *arguments])
    return {"paths": config["data"]["predict_paths"], "out": config["out"], "overwrite": config["overwrite"]}


@pytest.mark.parametrize(
    "arguments",
    [
        ["--data.predict_paths", "a.fasta", "b.cif.gz", "dir/", "--out", "results"],
        ["--out", "results", "--data.predict_paths", "a.fasta", "b.cif.gz", "dir/"],
        ["--data.predict_paths=a.fasta", "b.cif.gz", "dir/", "--out=results"],
        ["--data.predict_paths=[a.fasta, b.cif.gz, dir/]", "--out", "results"],
        ["--data.predict_paths", "[a.fasta, b.cif.gz, dir/]", "--out", "results"],
        ["--data.predict_paths", "a.fasta", "--out=results", "--data.predict_paths", "b.cif.gz", "dir/"],
        ["--data.predict_paths", "a.fasta", "--out=results", "--data.predict_paths+=[b.cif.gz, dir/]"],
        ["--data.predict_paths=a.fasta", "--data.predict_paths=b.cif.gz", "--data.predict_paths=dir/", "--out=results"],
    ],
)
def test_paths_in_every_form_make_one_list(arguments: list[str]) -> None:
    expected = {"paths": ["a.fasta", "b.cif.gz", "dir/"], "out": "results", "overwrite": False}
    assert predict(*arguments) == expected


@pytest.mark.parametrize("name", ["1.5", "null", "a: b.fasta", "a b.fasta", 'q"uote.fasta', "ä.fa", "x,y.fa", "[a].fa"])
def test_a_path_stays_what_it_is(name: str) -> None:
    assert predict("--data.predict_paths", name, "b.fa")["paths"] == [name, "b.fa"]
    assert predict(f"--data.predict_paths={name}")["paths"] == [name]


def test_a_file_named_like_a_list_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "[a, b]").mkdir()
    assert predict("--data.predict_paths", "[a, b]")["paths"] == ["[a, b]"]


def test_paths_replace_those_of_a_config_unless_appended(tmp_path: Path) -> None:
    (tmp_path / "my.yaml").write_text("data:\n  predict_paths: [c.fa, d.fa]\n")
    assert predict("--config=my.yaml")["paths"] == ["c.fa", "d.fa"]
    assert predict("--config=my.yaml", "--data.predict_paths", "a.fa")["paths"] == ["a.fa"]
    assert predict("--config", "my.yaml", "--data.predict_paths+=a.fa")["paths"] == ["c.fa", "d.fa", "a.fa"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--overwrite"], True),
        (["--overwrite", "--out=x"], True),
        (["--overwrite", "--data.predict_paths", "a.fa"], True),
        (["--data.predict_paths", "a.fa", "--overwrite"], True),
        (["--overwrite", "true"], True),
        (["--overwrite", "false"], False),
        (["--overwrite=false"], False),
        ([], False),
    ],
)
def test_a_bare_flag(arguments: list[str], expected: bool) -> None:
    assert predict(*arguments)["overwrite"] is expected


def test_configs_keep_their_names() -> None:
    path = str(config_folder() / "quickstart.yaml")
    for given in (["--config", "quickstart"], ["-c", "quickstart"]):
        assert resolve_arguments(["fit", *given, "--x=1"]) == ["fit", given[0], path, "--x=1"]
    assert resolve_arguments(["fit", "--config=quickstart"]) == ["fit", f"--config={path}"]


def test_a_config_comes_after_those_it_is_laid_over() -> None:
    paths = [str(config_folder() / f"{name}.yaml") for name in ("ids", "crop200", "cut200")]
    for given in (["--config", "cut200"], ["-c", "cut200"]):
        expected = [word for path in paths for word in (given[0], path)]
        assert resolve_arguments(["fit", *given, "--x=1"]) == ["fit", *expected, "--x=1"]
    assert resolve_arguments(["fit", "--config=cut200"]) == ["fit", *(f"--config={path}" for path in paths)]


def test_a_config_changes_some_options_of_a_group_below_it(tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "low.yaml").write_text("data: {crop: cut, batch_size: 3}\nmodel: {window: 300}\n")
    (tmp_path / "below" / "mid.yaml").write_text("config: low.yaml\nname: mid\ndata: {batch_size: 4}\n")
    (tmp_path / "top.yaml").write_text("config: below/mid.yaml\nname: top\ndata: {crop_length: 77}\n")
    config = parsed(["fit", "--config=full1020", "--config=top.yaml"])
    data = config["data"]
    assert (config["name"], data["crop"], data["batch_size"], data["crop_length"]) == ("top", "cut", 4, 77)
    assert config["model"]["window"] == 300 and config["trainer"]["accumulate_grad_batches"] == 8


@pytest.mark.parametrize(
    ("below", "message"), [("nowhere.yaml", "there is no such file"), ("my.yaml", "laid over itself")]
)
def test_a_config_that_cannot_be_laid_over_another(below: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "my.yaml").write_text(f"config: {below}\n")
    with pytest.raises(ContactLMError, match=f"my.yaml: config: {below}: .*{message}"):
        resolve_arguments(["fit", "--config", str(tmp_path / "my.yaml")])


@pytest.mark.parametrize("content", ["", "# nothing yet\n"])
def test_an_empty_config_is_called_that(tmp_path: Path, content: str) -> None:
    (tmp_path / "my.yaml").write_text(content)
    with pytest.raises(ContactLMError, match=r"my\.yaml: an empty config"):
        resolve_arguments(["fit", "--config", str(tmp_path / "my.yaml")])


def test_a_config_with_a_nul_is_refused(tmp_path: Path) -> None:
    (tmp_path / "my.yaml").write_text('name: mine\nckpt_path: "a\\0.ckpt"\n')
    with pytest.raises(ContactLMError, match=r"my\.yaml: line 2 holds a NUL character"):
        resolve_arguments(["fit", "--config", str(tmp_path / "my.yaml")])


@pytest.mark.parametrize(
    "name",
    ["my/experiments/crop200.yaml", "my/crop200", "./crop200.yaml", "../lightning_configs/crop200.yaml", "/crop200"],
)
def test_a_mistyped_path_does_not_run_a_shipped_config(name: str) -> None:
    with pytest.raises(ContactLMError, match="for the shipped one: --config crop200") as error:
        resolve_arguments(["fit", "--config", name])
    assert name in str(error.value)


@pytest.mark.parametrize("name", ["crop200", "crop200.yaml", "lightning_configs/crop200.yaml"])
def test_shipped_configs_are_found_by_name(name: str) -> None:
    path = str(config_folder() / "crop200.yaml")
    assert resolve_arguments(["fit", f"--config={name}"])[-1] == f"--config={path}"


def test_an_own_file_comes_before_a_shipped_config(tmp_path: Path) -> None:
    for name in ("crop200", "crop200.yaml", "lightning_configs/crop200.yaml"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("budget: {max_tokens: 1}\n")
        assert resolve_arguments(["fit", f"--config={name}"]) == ["fit", f"--config={name}"]


def test_a_config_that_is_no_text_is_named(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path = tmp_path / "a.yaml"
    path.write_bytes(b"data:\n  crop_length: 40 # \x85\n")
    for arguments in (["--config", str(path)], [f"--config={path}"], ["-c", str(path)]):
        assert main(["fit", *arguments]) == 1
        assert f"--config {path}: cannot be read as text" in capsys.readouterr().err


@pytest.mark.parametrize("below", ["7", "null", "[x]", "{a: 1}", "x" * 100_000])
def test_what_cannot_lie_below_a_config_is_named(tmp_path: Path, capsys: pytest.CaptureFixture, below: str) -> None:
    (tmp_path / "a.yaml").write_text(f"config: {below}\n")
    assert main(["fit", "--config", str(tmp_path / "a.yaml")]) == 1
    error = capsys.readouterr().err
    assert "there is no such file" in error and len(error) < 1000


def test_a_config_may_lie_over_a_shipped_one_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "my.yaml").write_text("config: whole1\nname: mine\n")
    found = resolve_arguments(["fit", "--config", str(tmp_path / "my.yaml")])[2::2]
    assert [Path(path).name for path in found] == ["ids.yaml", "crop200.yaml", "whole1.yaml", "my.yaml"]


def test_no_path_is_an_error() -> None:
    with pytest.raises(ContactLMError, match="no path follows"):
        resolve_arguments(["predict", "--data.predict_paths", "--out=results"])


def test_several_paths_are_predicted(tmp_path: Path, tiny_esm: Path, capsys: pytest.CaptureFixture) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.fasta").write_text(f">{name}\n{random_sequence(0, 30)}\n")
    command = ["predict", f"--model.pretrained={tiny_esm}", "--data.predict_paths", "a.fasta", "b.fasta"]
    assert main([*command, "--out", "results", "--trainer.accelerator=cpu", "--overwrite"]) == 0
    assert "2 maps written to results" in capsys.readouterr().out


def test_one_size_of_batches_only() -> None:
    for given in (
        ["--data.batch_size=4", "--data.batch_tokens", "900"],
        ["--data.batch_tokens=9", "--data.batch_pairs=9"],
    ):
        with pytest.raises(ContactLMError, match="in different ways; give one of them"):
            resolve_arguments(["fit", *given])
    for allowed in (["--data.batch_size=4", "--data.batch_tokens=null"], ["--data.batch_pairs", "900"]):
        assert resolve_arguments(["fit", *allowed]) == ["fit", *allowed]


@pytest.mark.parametrize("flag", REMOVED)
@pytest.mark.parametrize("command", ["fit", "export", "head"])
def test_a_removed_flag_says_what_to_do_instead(command: str, flag: str, capsys: pytest.CaptureFixture) -> None:
    assert main([command, *flag.split("=")]) == 1
    shown = capsys.readouterr().err
    assert shown.count("\n") == 1
    assert f"{flag.split('=')[0]} is no longer an option: {REMOVED[flag]}" in shown
