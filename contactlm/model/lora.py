"""LoRA adapters on a backbone (Hu et al. 2022), through PEFT, with the contact head trained in full."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import nn

from contactlm.model.families.registry import family_of
from contactlm.model.remade import CheapDropout
from contactlm.types import ModelError


@dataclass
class LoraOptions:
    """How the adapters are made.

    Attributes:
        r: Rank of the update.
        alpha: The update is scaled by ``alpha / r``.
        dropout: Probability with which an input of the update is zeroed while training.
        target_modules: Names of the linear layers that get an adapter; None: those that make queries and keys, by the
            names of the backbone's family.
    """

    r: int = 8
    alpha: float = 8
    dropout: float = 0.05
    target_modules: Sequence[str] | None = None


def add_lora(esm: Any, options: LoraOptions) -> PeftModel:
    """Put LoRA adapters into a backbone, in place; only they and the contact head stay trainable.

    ``save_pretrained`` of the result writes an adapter directory with the contact head in it, which
    ``peft.PeftModel.from_pretrained`` puts onto a stock model of the same weights.

    Args:
        esm: The backbone. It is changed: its linear layers now hold the adapters.
        options: Rank, scale, dropout, targets.

    Returns:
        PEFT's model around ``esm``.

    Raises:
        ModelError: No such target module, or a rank or dropout out of range.
    """
    if options.r < 1 or not 0 <= options.dropout < 1:
        raise ModelError(f"lora: r={options.r}, dropout={options.dropout}; r must be at least 1 and dropout in [0, 1)")
    targets = lora_targets(esm, options)
    names = {name.rsplit(".", 1)[-1] for name, module in esm.named_modules() if isinstance(module, nn.Linear)}
    missing = [target for target in targets if target.rsplit(".", 1)[-1] not in names]
    if missing or not targets:
        raise ModelError(
            f"lora: target_modules {targets}: {missing or 'none given'} not in the backbone; it has {sorted(names)}"
        )
    config = LoraConfig(
        r=options.r,
        lora_alpha=options.alpha,
        lora_dropout=options.dropout,
        target_modules=targets,
        modules_to_save=["contact_head"],
    )
    with warnings.catch_warnings():
        # PEFT asks transformers for a name that transformers has renamed.
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        made = get_peft_model(esm, config)
    _keep_less(esm)
    return made


def _keep_less(esm: Any) -> None:
    """Let the adapters' dropout keep which entries it kept, not what became of them."""
    for module in esm.modules():
        if isinstance(module, LoraLayer):
            for name, dropout in module.lora_dropout.items():
                if type(dropout) is nn.Dropout:
                    module.lora_dropout[name] = CheapDropout(dropout.p).train(dropout.training)


def lora_targets(esm: Any, options: LoraOptions) -> list[str]:
    """The names that the options give, or the family's."""
    return list(family_of(esm.config).lora_targets if options.target_modules is None else options.target_modules)


def contact_regression(esm: Any) -> nn.Linear:
    """Return the contact head's linear layer (C -> 1): PEFT's trained copy where there is one."""
    head = esm.contact_head
    copies = getattr(head, "modules_to_save", None)
    if copies is not None:
        adapters = head.active_adapters
        head = copies[adapters[0]] if adapters and not head.disable_adapters else head.original_module
    return head.regression
