"""A logger of another package, as a config names it: what Lightning asks of a logger, and no more."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only


class JsonLogger(Logger):
    """Keeps what it is told in ``<store>/<run>.json``; like loggers that talk to a server, it has no folder of its own.

    Args:
        store: Folder of all runs.
        run: The run's name.
    """

    def __init__(self, store: str, run: str) -> None:
        super().__init__()
        self.path = Path(store) / f"{run}.json"
        self.run = run
        self.content: dict[str, Any] = {"hparams": {}, "metrics": {}, "status": "running"}

    @property
    def name(self) -> str:
        return "shared-project"

    @property
    def version(self) -> str:
        return self.run

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        self.content["hparams"] |= {name: str(value) for name, value in dict(params).items()}

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        for name, value in metrics.items():
            self.content["metrics"].setdefault(name, []).append([step, value])

    @rank_zero_only
    def save(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(json.dumps(self.content))

    @rank_zero_only
    def finalize(self, status: str) -> None:
        self.content["status"] = status
        self.save()
