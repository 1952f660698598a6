"""Arguments as users write them, turned into what LightningCLI's parser takes, and the LightningModule they ask for.

A config is named by its path or by the name of a shipped one; several paths follow one flag; a flag that the package
no longer has is answered with what to do instead. LightningCLI's own form of naming a class, ``model: {class_path: …,
init_args: …}``, says the same as ``model_class: …`` with ``model: …``, and is read as that.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from contactlm.shipped import OPTION, checkpoint_of, config_folder
from contactlm.types import ContactLMError

if TYPE_CHECKING:
    from contactlm.modules.base import MapModule

BASE = "base.yaml"
SHIPPED = "lightning_configs"  # what the folder of the shipped configs is called in commands
PATHS = "--data.predict_paths"
FLAGS = ("--overwrite",)
VALUELESS = (*FLAGS, "--help", "-h", "--print_config")  # options that no value need follow
NUMBERS = ("--budget.max_tokens", "--data.batch_tokens", "--data.batch_pairs")  # that may be written as 5M or 5e6
TRUTH_VALUES = ("true", "false", "yes", "no")
NOT_PATHS = ("best", "last", "hpc", "registry")  # what Lightning takes for ckpt_path besides a path
CONFIG = ("--config", "-c")
_MODEL, _CLASS, _INIT = "--model", "--model.class_path", "--model.init_args"
REMOVED: dict[str, str] = {
    "--beside": "predict with both models into two folders, and compare the .npz files",
    "--data.batch_size=auto": "contactlm plan --memory 12GB prints the largest batch that fits; give that number",
    "--draws": "one set of chains is drawn; another --seed shows how stable the head is",
    "--evaluation.calibration=temperature": "give platt, or null for none",
    "--measure": "contactlm plan estimates memory and FLOPs; a short contactlm fit logs speed/…",
    "--model.shuffled_hits": "the control experiment was removed",
    "--plain": "a checkpoint is always one file",
    "--trainer.strategy.save_distributed_checkpoint=true": "a checkpoint is always one file",
    "--trainer.strategy.init_args.save_distributed_checkpoint=true": "a checkpoint is always one file",
}
"""Flags of earlier versions, by ``--flag`` or ``--flag=value``, with what to do instead."""
REFUSED: dict[str, str] = {
    "BatchSizeFinder": "give a size; contactlm plan --memory 12GB prints the largest batch that fits",
    "LearningRateFinder": "it sets one rate for all weights; compare short runs by --model.optimizer.init_args.lr",
    "ModelPruning": "it masks frozen weights as well; prune what contactlm export --merge writes",
    "SpikeDetection": "no run with it resumes; give the guard of steps that are not finite (--guard.max_skipped)",
    "StochasticWeightAveraging": "it counts epochs and replaces the scheduler; give EMAWeightAveraging",
    "Timer": "no config can hold its default interval; give --trainer.max_time 00:12:00:00",
    "barebones": "it leaves the budget out; give --trainer.logger false --trainer.enable_checkpointing false",
    "overfit_batches": "each epoch draws other crops; give few files, --data.crop cut and --data.dev_fraction 0",
}
"""Lightning's callbacks and trainer flags that do not run here, with why, and what to give instead."""
SIZES = ("--data.batch_size", "--data.batch_tokens", "--data.batch_pairs")


def resolve_config(name: str) -> str:
    """Find a config by its path or, when nothing lies there, by the name of a shipped one.

    A path that is mistyped must not run something else: only a bare name and ``lightning_configs/NAME.yaml`` stand for
    shipped configs.
    """
    if Path(name).is_file():
        return name
    last = Path(name).name
    shipped = config_folder() / f"{last.removesuffix('.yaml')}.yaml"
    if shipped.is_file() and (name == last or (name == f"{SHIPPED}/{last}" and last == shipped.name)):
        return str(shipped)
    if shipped.is_file():
        raise ContactLMError(f"--config {name}: there is no such file (for the shipped one: --config {shipped.stem})")
    names = ", ".join(sorted(path.stem for path in config_folder().glob("*.yaml")))
    raise ContactLMError(f"--config {name}: there is no such file, and no shipped config of that name ({names})")


def layers(config: str, above: Sequence[str] = ()) -> list[str]:
    """The configs that one config is: those it is laid over, the lowest first, and itself.

    A file says what it is laid over by its first key, ``config``: a file, as seen from its own folder, or the name of
    a shipped config.
    """
    _require_text(config)
    loaded = _loaded(config)
    if loaded is None and _is_file(config):
        raise ContactLMError(f"{config}: an empty config; give one with options, or leave it out")
    if not isinstance(loaded, dict) or "config" not in loaded:
        return [config]
    below = loaded["config"]
    path = str(Path(config).parent / str(below))
    if not _is_file(path) and _is_file(shipped := str(config_folder() / f"{below}.yaml")):
        path = shipped
    if not isinstance(below, str) or not _is_file(path):
        raise ContactLMError(
            f"{config}: config: {str(below)[:200]}: there is no such file next to {config}, and no shipped config"
        )
    if path in (*above, config):
        raise ContactLMError(f"{config}: config: {below}: it is laid over itself")
    return [*layers(path, (*above, config)), config]


def content_of(config: str) -> dict[str, Any]:
    """What a config, a path or its text, says; what is wrong with it is for the parser to say."""
    content = _loaded(config)
    return content if isinstance(content, dict) else {}


def _loaded(config: str) -> Any:
    try:
        return yaml.safe_load(Path(config).read_text(encoding="utf-8") if _is_file(config) else config)
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return {}


def _is_file(text: str) -> bool:
    try:
        return Path(text).is_file()
    except (OSError, ValueError):  # too long for a name, or with a NUL
        return False


def resolve_arguments(arguments: Sequence[str]) -> list[str]:
    """Turn what users write into what LightningCLI's parser takes.

    The values of ``--config`` and ``-c`` become the paths of files, each after those it is laid over; what follows
    ``--data.predict_paths``, however often and in whichever form it is given, becomes one list; a bare
    ``--overwrite`` becomes true.
    """
    _check_sizes(arguments)
    asked_all = "--help" in arguments or "-h" in arguments  # --help all: what Lightning's parser has to say
    given = [word for word in arguments if not (asked_all and word == "all")]
    return _resolve_flags(_resolve_configs(_gather_paths(_write_out(_name_paths(given)))))


def _name_paths(arguments: Sequence[str]) -> list[str]:
    """Write what stands alone after ``predict`` as its paths, a checkpoint or a run's folder as ``--ckpt_path``."""
    if list(arguments[:1]) != ["predict"]:
        return list(arguments)
    named, option = ["predict"], ""  # the option whose value comes next
    for argument in arguments[1:]:
        if argument.startswith("-"):
            option = "" if "=" in argument or argument in VALUELESS else argument
            named.append(argument)
        elif option or (named[-1] in FLAGS and argument.lower() in TRUTH_VALUES):
            option = option if option == PATHS else ""
            named.append(argument)
        else:
            is_checkpoint = argument.endswith(".ckpt") or checkpoint_of(argument) != argument
            named += ["--ckpt_path" if is_checkpoint else PATHS, argument]
    return named


def _write_out(arguments: Sequence[str]) -> list[str]:
    """Write values as people give them the way the parser takes them: 5M, ``npz,html``, the folder of a run."""
    written: list[str] = []
    for argument in arguments:
        option, has_value, value = argument.partition("=")
        if has_value and option.startswith("--"):
            written.append(f"{option}={_written(arguments[0], option, value)}")
        else:
            written.append(_written(arguments[0], written[-1] if written else "", argument))
    return written


def _written(command: str, option: str, value: str) -> str:
    if option in NUMBERS and (number := re.fullmatch(r"(\d+(?:\.\d+)?(?:e\d\d?)?)([kKMG]?)", value.replace("_", ""))):
        count = float(number[1]) * {"": 1, "k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9}[number[2]]
        return str(int(count)) if count == int(count) else value
    if option == "--formats" and value:
        return json.dumps([word for each in value.strip("[]").split(",") if (word := each.strip(" '\""))])
    if option == "--ckpt_path":
        return checkpoint_of(value, "last" if command == "fit" else "best")
    return value


def _resolve_configs(arguments: Sequence[str]) -> list[str]:
    resolved: list[str] = []
    for argument in arguments:
        if resolved and resolved[-1] in ("--config", "-c"):
            option = resolved.pop()
            resolved += [word for path in layers(resolve_config(argument)) for word in (option, path)]
        elif argument.startswith("--config="):
            found = layers(resolve_config(argument.removeprefix("--config=")))
            resolved += [f"--config={path}" for path in found]
        else:
            resolved.append(argument)
    return resolved


def _require_text(config: str) -> None:
    """Refuse a config that is no text, or holds a NUL, of which the parser would show a traceback."""
    try:
        text = Path(config).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ContactLMError(f"--config {config}: cannot be read as text ({error})") from error
    try:
        lines = [event.start_mark.line for event in yaml.parse(text) if "\0" in getattr(event, "value", "")]
    except yaml.YAMLError:
        return  # for the parser to say
    if lines:
        raise ContactLMError(f"--config {config}: line {lines[0] + 1} holds a NUL character, which no value can")


def _gather_paths(arguments: Sequence[str]) -> list[str]:
    """Write all paths as one list that begins empty and is appended to, as jsonargparse spells it."""
    gathered: list[str] = []
    others: list[str] = []
    collecting = False
    for argument in arguments:
        if not argument.startswith("-"):
            if collecting:
                gathered.append(_appended(argument))
            else:
                others.append(argument)
            continue
        option, _, value = argument.partition("=")
        collecting = option in (PATHS, f"{PATHS}+")
        if not collecting:
            others.append(argument)
            continue
        if not gathered and option == PATHS:
            gathered.append(f"{PATHS}=[]")
        gathered += [_appended(value)] if value else []
    if gathered == [f"{PATHS}=[]"]:
        raise ContactLMError(f"{PATHS}: no path follows; give FASTA or structure files, or folders of them")
    return [*others, *gathered]


def _appended(text: str) -> str:
    is_list = text.startswith("[") and text.endswith("]") and not Path(text).exists()
    return f"{PATHS}+={text if is_list else json.dumps([text])}"


def check_removed(arguments: Sequence[str]) -> None:
    """Refuse flags of earlier versions; raises ContactLMError with what to do instead."""
    for option, value in option_pairs(arguments):
        instead = REMOVED.get(option) or REMOVED.get(f"{option}={value}")
        if instead is not None:
            raise ContactLMError(f"{option} is no longer an option: {instead}")


def check_trainer_options(trainer: Mapping[str, Any]) -> None:
    """Refuse callbacks and flags of a trainer, as a config has them, that would not do here what they promise."""
    callbacks = trainer.get("callbacks") or []
    given = {name: f"trainer.{name}" for name in REFUSED if trainer.get(name)}
    for callback in callbacks if isinstance(callbacks, list) else [callbacks]:
        name = callback.get("class_path", "").rpartition(".")[2]
        given |= {name: f"trainer.callbacks: {name}"} if name in REFUSED else {}
    for name, option in given.items():
        raise ContactLMError(f"{option} does not run here: {REFUSED[name]}")


def _check_sizes(arguments: Sequence[str]) -> None:
    """Refuse flags of which one would be ignored; over a config's ``batch_size`` the other two have precedence."""
    values = dict(option_pairs(arguments))
    given = [f"{name} {values[name]}" for name in SIZES if values.get(name, "null") not in ("null", "None")]
    if len(given) > 1:
        raise ContactLMError(f"{' and '.join(given)}: the size of a batch in different ways; give one of them")


def _resolve_flags(arguments: Sequence[str]) -> list[str]:
    following = [*arguments[1:], ""]
    return [
        f"{argument}=true" if argument in FLAGS and after.lower() not in TRUTH_VALUES else argument
        for argument, after in zip(arguments, following, strict=True)
    ]


def chosen_class(arguments: Sequence[str]) -> type[MapModule]:
    """Find the class that a command line asks for, before its options can be parsed.

    The last ``model_class`` of configs and flags decides; where none says, the checkpoint does.
    """
    from contactlm.modules.checkpoint import CHECKPOINT_KEY, check_checkpoint, check_head
    from contactlm.modules.contact import ContactModule
    from contactlm.modules.predict import checkpoint_class, import_module_class

    given: dict[str, Any] = {}
    for option, value in option_pairs(arguments):
        if option in CONFIG:
            content = content_of(value)
            given.update({name: content[name] for name in (OPTION, "ckpt_path") if name in content})
        elif option in (f"--{OPTION}", "--ckpt_path"):
            given[option.removeprefix("--")] = value
    name, checkpoint = given.get(OPTION), given.get("ckpt_path")
    if checkpoint in (None, "null", *NOT_PATHS):
        return ContactModule if name is None else import_module_class(name)
    if name is None:
        return checkpoint_class(checkpoint)
    chosen = import_module_class(name)
    check_head(check_checkpoint(checkpoint)[CHECKPOINT_KEY], chosen.head)
    return chosen


def plain_arguments(arguments: Sequence[str]) -> list[str]:
    """Write LightningCLI's form of naming a class, in flags and in configs, as ``model_class`` and plain options."""
    plain: list[str] = []
    skip = False
    for argument, after in zip(arguments, [*arguments[1:], ""], strict=True):
        if skip:
            skip = False
            continue
        option, has_value, value = argument.partition("=")
        value = value if has_value else after
        written = _plain(option, value)
        plain += [argument] if written is None else written
        skip = written is not None and not has_value
    return plain


def _plain(option: str, value: str) -> list[str] | None:
    """What stands for an option and its value; None: they themselves."""
    if option == _CLASS:
        return [f"--{OPTION}={value}"]
    if option.startswith(f"{_INIT}."):
        return [f"{_MODEL}.{option.removeprefix(f'{_INIT}.')}={value}"]
    if option in CONFIG:
        content = content_of(value)
        model = content.get("model")
        if isinstance(model, dict) and "class_path" in model:
            content.pop("config", None)  # what it is laid over comes before it, and text has no folder to look from
            rest = {**content, OPTION: model["class_path"], "model": model.get("init_args") or {}}
            return [f"--config={yaml.safe_dump(rest, sort_keys=False)}"]
    elif option == _MODEL:
        model = content_of(value)
        if "class_path" in model:
            return [f"--{OPTION}={model['class_path']}", f"{_MODEL}={json.dumps(model.get('init_args') or {})}"]
        if not model and value not in ("", "null") and not Path(value).exists():
            return [f"--{OPTION}={value}"]
    return None


def may_be_any_model(arguments: Sequence[str]) -> bool:
    """Whether a class other than the usual one may be asked for, by a flag, a config or a checkpoint."""
    return any(
        option in (f"--{OPTION}", _MODEL, "--ckpt_path") or (option in CONFIG and OPTION in content_of(value))
        for option, value in option_pairs(arguments)
    )


def option_pairs(arguments: Sequence[str]) -> list[tuple[str, str]]:
    """Every option with its value; of an option without one, the next argument."""
    split = [argument.partition("=") for argument in arguments]
    return [
        (option, value if has_value else after)
        for (option, has_value, value), after in zip(split, [*arguments[1:], ""], strict=True)
    ]
