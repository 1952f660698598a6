"""Low-rank adapters on a backbone (LoRA, Hu et al. 2022), through PEFT, with the contact head trained in full."""

from __future__ import annotations

import difflib
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import nn

from contactlm.model.families.family import family_of
from contactlm.model.remade import CheapDropout
from contactlm.types import ModelError

ALL_LINEAR = "all-linear"
INITS = (True, False, "gaussian", "orthogonal")
BIASES = ("none", "lora_only")
_OTHERS = (
    "pissa and its like, olora, corda and loftq begin by changing the frozen weights, to which checkpoints and exports "
    "point by checksum, and eva by looking at data"
)


@dataclass
class LoraOptions:
    """How the adapters are made; names and meanings are those of ``peft.LoraConfig``, but for three that are shorter.

    Attributes:
        r: Rank of the update.
        alpha: The update is scaled by ``alpha / r`` (PEFT: ``lora_alpha``).
        dropout: Probability with which an input of the update is zeroed while training (PEFT: ``lora_dropout``).
        target_modules: Names of the linear layers that get an adapter, or their ends (``value``, ``output.dense``);
            ``all-linear``: all of every layer; None: those that make queries and keys, by the names of the backbone's
            family.
        layers_to_transform: The layers that get adapters, counted from 0; None: all.
        rank_pattern: Other ranks, by the names of target modules, their ends or regular expressions.
        alpha_pattern: Other values of ``alpha``, likewise.
        use_rslora: Scale by ``alpha / sqrt(r)``, for large ranks (Kalajdzievski 2023).
        use_dora: Learn the length of every row of a weight apart from its direction (DoRA, Liu et al. 2024): a little
            better at small ranks, slower.
        init_lora_weights: First values: True, A as a linear layer's and B zero; ``gaussian``, ``orthogonal``; False,
            both at random, so that an untrained model predicts something else.
        bias: ``lora_only`` trains the biases of target modules as well.
    """

    r: int = 8
    alpha: float = 8
    dropout: float = 0.05
    target_modules: Sequence[str] | str | None = None
    layers_to_transform: Sequence[int] | None = None
    rank_pattern: Mapping[str, int] | None = None
    alpha_pattern: Mapping[str, float] | None = None
    use_rslora: bool = False
    use_dora: bool = False
    init_lora_weights: bool | str = True  # no Literal: others are refused with a reason
    bias: Literal["none", "lora_only"] = "none"


def read_options(given: Mapping[str, Any]) -> LoraOptions:
    """Make options of plain values, which a checkpoint holds or a user gives."""
    names = [*LoraOptions.__dataclass_fields__]
    for name in given:
        if name not in names:
            raise ModelError(f"lora: there is no option {name!r}{_near(name, names)} (options: {', '.join(names)})")
    return LoraOptions(**given)


def add_lora(esm: Any, options: LoraOptions) -> PeftModel:
    """Put LoRA adapters into a backbone, in place; only they and the contact head stay trainable.

    ``save_pretrained`` of the result writes an adapter directory with the contact head in it, which
    ``peft.PeftModel.from_pretrained`` puts onto a stock model of the same weights.
    """
    _check(options)
    targets = lora_targets(esm, options)
    config = LoraConfig(
        r=options.r,
        lora_alpha=options.alpha,
        lora_dropout=options.dropout,
        target_modules=targets,
        modules_to_save=["contact_head"],
        rank_pattern=_patterns("rank_pattern", options.rank_pattern, esm, targets),
        alpha_pattern=_patterns("alpha_pattern", options.alpha_pattern, esm, targets),
        use_rslora=options.use_rslora,
        use_dora=options.use_dora,
        init_lora_weights=options.init_lora_weights,
        bias=options.bias,
    )
    with warnings.catch_warnings():
        # PEFT asks transformers for a name that transformers has renamed.
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        made = get_peft_model(esm, config)
    for module in esm.modules():  # their dropout shall keep which entries it kept, not what became of them
        if isinstance(module, LoraLayer):
            for name, dropout in module.lora_dropout.items():
                if type(dropout) is nn.Dropout:
                    module.lora_dropout[name] = CheapDropout(dropout.p).train(dropout.training)
    return made


def _check(options: LoraOptions) -> None:
    ranks = [options.r, *(options.rank_pattern or {}).values()]
    if min(ranks) < 1 or not 0 <= options.dropout < 1:
        raise ModelError(f"lora: r={min(ranks)}, dropout={options.dropout}; r must be at least 1 and dropout in [0, 1)")
    if options.init_lora_weights not in INITS:
        raise ModelError(
            f"lora: init_lora_weights: {options.init_lora_weights!r} given; choose from true, false, gaussian and "
            f"orthogonal: {_OTHERS}"
        )
    if options.init_lora_weights == "orthogonal" and any(rank % 2 for rank in ranks):
        raise ModelError(f"lora: init_lora_weights orthogonal needs even ranks; {ranks} given")
    if options.bias not in BIASES:
        raise ModelError(f"lora: bias: {options.bias!r} given; choose from {', '.join(BIASES)}")


def lora_targets(esm: Any, options: LoraOptions) -> list[str]:
    """The names of the linear layers that get an adapter: as given, or the family's.

    Where not all layers of the model get some, or a word stands for them, they are named in full.
    """
    family, given = family_of(esm.config), options.target_modules
    whole = _linear_names(esm)
    if isinstance(given, str) and given != ALL_LINEAR:
        raise ModelError(f"lora: target_modules: {given!r} given; give a list of names, or {ALL_LINEAR}")
    targets = [*family.lora_targets] if given is None else whole if given == ALL_LINEAR else [*given]
    known = {name.rsplit(".", 1)[-1] for name in whole}
    missing = [target for target in targets if not _ending(whole, target)]
    if missing or not targets:
        near = _near(missing[0].rsplit(".", 1)[-1], known) if missing else ""
        raise ModelError(
            f"lora: target_modules {targets}: {missing or 'none given'} not in the backbone; it has "
            f"{sorted(known)}{near}"
        )
    if options.layers_to_transform is None:
        return targets
    return _of_layers(esm, options.layers_to_transform, [name for target in targets for name in _ending(whole, target)])


def _linear_names(esm: Any) -> list[str]:
    """Full names of the layers' linear maps, adapters' own left out."""
    inside = set(family_of(esm.config).layers(esm).modules())
    linear = [name for name, part in esm.named_modules() if isinstance(part, nn.Linear) and part in inside]
    return [name.removesuffix(".base_layer") for name in linear if "lora_" not in name]


def _ending(names: Iterable[str], end: str) -> list[str]:
    return [name for name in names if f".{name}".endswith(f".{end}")]


def _of_layers(esm: Any, numbers: Sequence[int], names: Sequence[str]) -> list[str]:
    layers = family_of(esm.config).layers(esm)
    outside = [number for number in numbers if not 0 <= number < len(layers)]
    if outside or not numbers:
        raise ModelError(
            f"lora: layers_to_transform {list(numbers)}: {outside or 'none given'}; the backbone has layers 0 to "
            f"{len(layers) - 1}"
        )
    prefix = next(name for name, part in esm.named_modules() if part is layers)
    return [name for name in names if any(name.startswith(f"{prefix}.{number}.") for number in numbers)]


def _patterns(option: str, given: Mapping[str, Any] | None, esm: Any, targets: Sequence[str]) -> dict[str, Any]:
    """Refuse a pattern that no target module has, which PEFT would pass over."""
    names = [name for target in targets for name in _ending(_linear_names(esm), target)]
    for pattern in given or {}:
        try:
            found = any(re.match(rf"(.*\.)?({pattern})$", name) for name in names)
        except re.error as error:
            raise ModelError(f"lora: {option}: {pattern!r} is no regular expression: {error}") from error
        if not found:
            near = _near(pattern, {name.rsplit(".", 1)[-1] for name in names})
            raise ModelError(f"lora: {option}: no target module is called {pattern!r}{near}; they are {list(targets)}")
    return dict(given or {})


def _near(name: str, names: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(names), n=1)
    return f"; did you mean {close[0]}?" if close else ""


def warn_of_idle_adapters(esm: Any, unread: Sequence[nn.Module]) -> None:
    """Warn of adapters in parts that feed no attention map, which cannot learn; refuse where all are there."""
    idle = {id(part) for whole in unread for part in whole.modules() if isinstance(part, LoraLayer)}
    every = {id(part): name for name, part in esm.named_modules() if isinstance(part, LoraLayer)}
    names = [name for part, name in every.items() if part in idle]
    if not names:
        return
    why = "come after the last attention map that the contact head reads"
    if len(names) == len(every):
        raise ModelError(f"lora: all adapters ({', '.join(names)}) {why}: nothing would be learnt; choose other layers")
    some = f"{names[0]} and {len(names) - 1} more" if len(names) > 1 else names[0]
    last = len(family_of(esm.config).layers(esm)) - 1
    warnings.warn(
        f"lora: {len(names)} of {len(every)} adapters learn nothing ({some}): they {why}. Queries and keys of the last "
        f"layer do learn; to leave the others out, give target_modules in full, or layers_to_transform without {last}",
        stacklevel=2,
    )


def contact_regression(esm: Any) -> nn.Linear:
    """Return the contact head's linear layer (C -> 1): PEFT's trained copy where there is one."""
    head = esm.contact_head
    copies = getattr(head, "modules_to_save", None)
    if copies is not None:
        adapters = head.active_adapters
        head = copies[adapters[0]] if adapters and not head.disable_adapters else head.original_module
    return head.regression
