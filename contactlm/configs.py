"""Finding the shipped configuration files, by path or by name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from contactlm.types import ContactLMError

BASE = "base.yaml"


def config_folder() -> Path:
    """The folder of the shipped configs: inside an installed package, beside it in a checkout."""
    package = Path(__file__).parent
    inside = package / "lightning_configs"
    return inside if inside.is_dir() else package.parent / "lightning_configs"


def resolve_config(name: str) -> str:
    """Find a config by its path or, when nothing lies there, by the name of a shipped one.

    Args:
        name: Such as ``my.yaml``, ``lightning_configs/crop200.yaml`` or ``quickstart``.

    Raises:
        ContactLMError: There is neither.
    """
    if Path(name).is_file():
        return name
    shipped = config_folder() / f"{Path(name).name.removesuffix('.yaml')}.yaml"
    if not shipped.is_file():
        names = ", ".join(sorted(path.stem for path in config_folder().glob("*.yaml")))
        raise ContactLMError(f"--config {name}: there is no such file, and no shipped config of that name ({names})")
    return str(shipped)


def resolve_arguments(arguments: Sequence[str]) -> list[str]:
    """Replace the values of ``--config`` and ``-c`` by the paths of the files."""
    resolved: list[str] = []
    for argument in arguments:
        if resolved and resolved[-1] in ("--config", "-c"):
            resolved.append(resolve_config(argument))
        elif argument.startswith("--config="):
            resolved.append(f"--config={resolve_config(argument.removeprefix('--config='))}")
        else:
            resolved.append(argument)
    return resolved
