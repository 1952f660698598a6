"""What the command line shows: its own log, tables of scores; and what it keeps quiet."""

from __future__ import annotations

import errno
import logging
import math
import os
import sys
import warnings
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from contactlm.runs.record_file import read_run
from contactlm.types import ContactLMError, singular

if TYPE_CHECKING:
    import lightning as L

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
SHOWN_SCORES = (
    "mcc_sep6",
    "mcc",
    "mcc_short",
    "mcc_medium",
    "mcc_long",
    "p_at_L_long",
    "p_at_L5_long",
    "auprc_sep6",
    "intra_mcc_sep6",
    "inter_mcc",
    "distance_mae",
    "distance_lddt",
)
FAR_BELOW = 0.1  # copying its hits, of mcc_sep6: where a model that reads them is remarked on
BESIDE = {"trivial": "trivial", "copying hits": "copy"}  # predictors that learn nothing: how they are called and logged
# Third parties' remarks that a user of the command line can do nothing about.
QUIET_WARNINGS = (
    ".*does not have many workers.*",
    "Total length of .* across ranks is zero.*",  # all maps are there, or no chain is held out: said in our own words
    "`LightningModule.configure_optimizers` returned `None`.*",  # of arms that train nothing
    "LightningCLI's args parameter is intended.*",
    ".*treespec, LeafSpec.*",
    ".*in eval mode at the start of training.*",
    ".*isinstance\\(treespec.*",
    ".*self.log\\('(dev|test)/.*sync_dist=True.*",  # these are scores of all processes already
    "The number of training batches .* is smaller than the logging interval.*",  # steps are counted across epochs
    "MLFlow only allows .* in metric name.*",  # test/mcc@id<30 becomes test/mccid30 there
)
QUIET_LOGS = ("lightning.pytorch", "lightning.fabric")  # seeds, tips and devices; warnings do not come this way


class _StandardError(logging.Handler):
    """Writes to whatever standard error is at the moment, above progress bars."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(singular(self.format(record)), file=sys.stderr)
        sys.stderr.flush()


def set_up_log() -> None:
    """Show our own log; keep third parties' remarks that users cannot act on away."""
    logger = logging.getLogger("contactlm")
    if not logger.handlers:
        logger.addHandler(_StandardError())
        logger.setLevel(logging.INFO)
        logger.propagate = False
    for name in QUIET_LOGS:
        logging.getLogger(name).setLevel(logging.WARNING)
    for text in QUIET_WARNINGS:
        warnings.filterwarnings("ignore", message=text)


def file_trouble(error: OSError) -> str:
    """The message about a file that cannot be written, or, where it is not there or closed to this user, be read."""
    name = error.filename or "a file"
    if wrong := {errno.ENOENT: "is not there", errno.EISDIR: "is a folder"}.get(error.errno or 0):
        return f"{name} {wrong}; give another path"
    if error.errno not in NO_ROOM and error.filename and not os.access(name, os.R_OK) and os.path.lexists(name):
        return f"{name} cannot be read ({error.strerror}): give files and folders that this user may read"
    return (
        f"{name} cannot be written ({error.strerror}): give a folder that can be, with room (--out, save_dir of "
        "trainer.logger, checkpoint.dirpath, cache_dir); the same command resumes packing, and --ckpt_path last "
        "resumes a fit"
    )


def score_table(prefix: str, metrics: Mapping[str, Any], remark: str = "", threshold: float = 0.5) -> str:
    """The main scores of a set as a table, one line a score, next to those of predictors that learn nothing.

    Lines such as ``test  mcc_sep6   0.412   0.466   (trivial 0.000)``: the second number is that at the tuned
    threshold, where there is one. ``metrics`` are logged values by their full names, ``remark`` is added to the head.
    """
    rows = [(name, metrics[f"{prefix}/{name}"]) for name in SHOWN_SCORES if f"{prefix}/{name}" in metrics]
    if not rows:
        return f"{prefix:<4}  not scored"
    proteins, tuned = metrics.get(f"{prefix}/proteins"), metrics.get(f"{prefix}/tuned_threshold")
    number = "" if proteins is None else singular(f" of {float(proteins):.0f} proteins")
    head = f"scores{number}{remark}"
    width = max(len(head) - 6, *(len(name) for name, _ in rows))
    lines = [f"{head:<{width + 6}}  at {threshold:g}" + ("" if tuned is None else f"  at {float(tuned):.3f} (tuned)")]
    earlier = ""
    for name, value in rows:
        if name.startswith("p_at") and not earlier.startswith("p_at"):
            lines.append(f"{prefix:<4}  ranking, without a threshold:")
        earlier = name
        at_tuned = metrics.get(f"{prefix}/{name}_tuned")
        others = {kind: metrics.get(f"{prefix}/{of}_{name}") for kind, of in BESIDE.items()}
        cells = f"{_number(value):>6}  " + ("" if tuned is None else f"{_number(at_tuned):>16}  ")
        known = [f"{kind} {_number(value)}" for kind, value in others.items() if value is not None]
        notes = f"({', '.join(known)})" if known else ""
        lines.append(f"{prefix:<4}  {name:<{width}}  {cells}{notes}".rstrip())
    ours, copied = (metrics.get(f"{prefix}/{of}mcc_sep6") for of in ("", "copy_"))
    if ours is not None and copied is not None and float(ours) < float(copied) - FAR_BELOW:
        lines.append(
            f"The model lies far below copying its hits (mcc_sep6 {_number(ours)} against {_number(copied)}): it makes "
            "little use of them yet; train longer, or copy."
        )
    return "\n".join(lines)


def about_checkpoint(path: str, checkpoint: Mapping[str, Any], resumes: bool) -> str:
    """Which checkpoint is used or resumed; of a run that did not end, also that it did not."""
    line = f"{'resuming' if resumes else 'using'} {path}, of step {checkpoint.get('global_step', 0):,}"
    folder = Path(path).absolute().parent.parent
    with suppress(ContactLMError):  # no record, or a damaged one, which ends no prediction
        if not resumes and read_run(folder).get("status") == "running":
            line += "; its run was interrupted or still runs (resumed, it continues in the folder of the next version)"
    return line


def run_line(trainer: L.Trainer, module: L.LightningModule, max_tokens: int | None) -> str:
    """What is about to be trained, and on what, in one line."""
    weights = [weight.numel() for weight in module.parameters()]
    trained = [weight.numel() for weight in module.parameters() if weight.requires_grad]
    budget = "without a budget" if max_tokens is None else f"for {max_tokens:,} tokens"
    device, processes = trainer.strategy.root_device, trainer.world_size
    where = f"{device}" if processes == 1 else f"{processes} × {device.type}"
    if trainer.max_steps == 0:
        return f"training nothing: {sum(weights):,} weights on {where}, precision {trainer.precision}"
    return f"training {sum(trained):,} of {sum(weights):,} weights {budget} on {where}, precision {trainer.precision}"


def _number(value: Any) -> str:
    if value is None:
        return ""
    return "–" if math.isnan(float(value)) else f"{float(value) + 0.0:.3f}".replace("-0.000", "0.000")
