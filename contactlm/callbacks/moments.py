"""What is the case at the end of a training batch: whether values are logged now, and whether a look at dev follows."""

from __future__ import annotations

from typing import Any

import lightning as L


def is_time_to_log(trainer: L.Trainer) -> bool:
    """Whether a value that is logged now will be read.

    That is so where loggers write (``log_every_n_steps``), before a look at dev, and at the end of an epoch and of
    training. Logging one number takes Lightning as long as several operations of a network: between these moments it
    is left out.
    """
    due = trainer._logger_connector.should_update_logs or trainer.fast_dev_run  # type: ignore[attr-defined]  # a connector sets it
    return bool(due) or trainer.fit_loop.epoch_loop.batch_progress.is_last_batch or validation_follows(trainer)


def validation_follows(trainer: L.Trainer) -> bool:
    """Whether a validation comes right after this training batch."""
    loop = trainer.fit_loop
    if loop._data_fetcher is None or not sum(_as_list(trainer.num_val_batches)):
        return False
    return loop.epoch_loop._should_check_val_fx(loop._data_fetcher)


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]
