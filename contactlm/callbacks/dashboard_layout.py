"""What a dashboard shows of a whole run: its charts, and the options it ran with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import lightning as L

from contactlm.callbacks.budget import TokenBudget
from contactlm.callbacks.run_facts import find_callback, optimizer_facts, run_seed, scheme_facts

BY_TOKENS = "by_tokens/"  # prefix of scores whose step is the number of tokens trained on
GFLOPS = "flops/cumulative_gflops"
PLAIN = (bool, int, float, str)
HPARAM_METRICS = ("dev/mcc_sep6", "test/mcc_sep6")


def custom_layout() -> dict[str, dict[str, list[Any]]]:
    """The custom scalars tab: the two panels of the report, and how scores and loss go along."""

    def by_tokens(*names: str) -> list[Any]:
        return ["Multiline", [f"{BY_TOKENS}dev/{name}$" for name in names]]

    return {
        "report": {
            "cumulative GFLOPs by step": ["Multiline", [f"{GFLOPS}$"]],
            "dev MCC by tokens, |i - j| >= 6": by_tokens("mcc_sep6"),
        },
        "dev by tokens": {
            "MCC by range": by_tokens("mcc_short", "mcc_medium", "mcc_long"),
            "long-range precision at L, L/5": by_tokens("p_at_L_long", "p_at_L5_long"),
            "MCC of all pairs, the trivial predictor beside": by_tokens("mcc", "trivial_mcc"),
        },
        "training": {
            "loss": ["Multiline", ["train/loss$"]],
            "tokens and residues a second": ["Multiline", ["speed/tokens_per_s$", "speed/residues_per_s$"]],
        },
    }


def run_hparams(trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, bool | int | float | str]:
    """The options that tell runs apart, as plain values; what a project does not have is left out.

    Arm (the logger's name), seed, learning rate, crop scheme and length, batch size, rank of LoRA (0 without) and
    budget first; then the trainer's as ``trainer.…`` and the module's own hyperparameters as ``model.…``. TensorBoard
    sorts them by name, and shows the first few.
    """
    budget, optimizers, hparams = find_callback(trainer, TokenBudget), optimizer_facts(trainer), pl_module.hparams
    options: dict[str, Any] = {"arm": str(trainer.loggers[0].name or "") if trainer.loggers else ""}
    options |= {"seed": run_seed(trainer), **scheme_facts(trainer)}
    if optimizers:
        options |= {"lr": optimizers[0]["lr"], "optimizer": optimizers[0]["optimizer"]}
    if "lora" in hparams:
        options["lora_r"] = (hparams["lora"] or {}).get("r", 0)
    if budget is not None:
        options["max_tokens"] = budget.max_tokens
    steps = {"accumulate_grad_batches": options.pop("accumulate_grad_batches", 1)}
    options["trainer"] = {**steps, "precision": str(trainer.precision), "processes": trainer.world_size}
    return flat({**options, "model": dict(hparams)})


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, bool | int | float | str]:
    """Nested options as one level of plain values; lists as text, null where there is none, all else left out."""
    result: dict[str, bool | int | float | str] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            result |= flat(value, f"{prefix}{name}.")
        elif isinstance(value, PLAIN):
            result[prefix + name] = value
        elif isinstance(value, (list, tuple)) and all(isinstance(item, PLAIN) for item in value):
            result[prefix + name] = ", ".join(map(str, value))
        elif value is None:
            result[prefix + name] = "null"
    return result
