"""What comes with the package: its version, and the folder of configs and lists of identifiers."""

from __future__ import annotations

from pathlib import Path

__version__ = "0.1.0"
OPTION = "model_class"  # of commands and configs: names the LightningModule


def config_folder() -> Path:
    """The folder of the shipped configs: inside an installed package, beside it in a checkout."""
    package = Path(__file__).parent
    inside = package / "lightning_configs"
    return inside if inside.is_dir() else package.parent / "lightning_configs"
