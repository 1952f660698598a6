"""What comes with the package: its version, the folder of configs and lists of identifiers; and its cache folder."""

from __future__ import annotations

import os
from pathlib import Path

__version__ = "0.1.0"
OPTION = "model_class"  # of commands and configs: names the LightningModule


def config_folder() -> Path:
    """The folder of the shipped configs: inside an installed package, next to it in a checkout."""
    package = Path(__file__).parent
    inside = package / "lightning_configs"
    return inside if inside.is_dir() else package.parent / "lightning_configs"


def default_cache_dir() -> Path:
    """``$CONTACTLM_CACHE``, or ``~/.cache/contactlm`` (following ``$XDG_CACHE_HOME``)."""
    if "CONTACTLM_CACHE" in os.environ:
        return Path(os.environ["CONTACTLM_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "contactlm"


def checkpoint_of(path: str, kind: str = "best") -> str:
    """The checkpoint that a run's folder, or a folder of runs, stands for; another path stands for itself.

    The newest of the kind counts, ``best`` or ``last``. Of a run without a dev set, which has no best one, it is what
    the run learnt on dev without training, else the last.
    """
    folder = Path(path)
    places = ("", "checkpoints/", "version_*/checkpoints/") if folder.is_dir() else ()
    for name in dict.fromkeys((kind, "calibrated", "last")):
        found = (list(folder.glob(f"{place}{name}*.ckpt")) for place in places)
        newest = next((max(files, key=lambda file: file.stat().st_mtime) for files in found if files), None)
        if newest is not None:
            return str(newest)
    return path
