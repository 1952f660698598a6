"""Batches of a categorical Jacobian: sequences of like length, of whichever position, pass or chain."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

from contactlm.alphabet import PAD, VOCABULARY
from contactlm.maps.jacobian_pass import AMINO_ACIDS, Change, JacobianPass
from contactlm.types import ModelError

LanguageModel = Callable[[Tensor, Tensor, Tensor | None], Tensor]
Member = tuple[JacobianPass, Change]
CPU_COST = 256 * 1024  # token pairs of a batch on a CPU: larger ones fall out of its caches
_LEAST_SHARE_OF_LONGEST = 0.75  # of T², in one batch


def batches(passes: Iterable[JacobianPass], max_cost: int) -> Iterator[list[Member]]:
    """Fill batches with what passes still need, in order.

    Args:
        passes: Drawn as they are needed.
        max_cost: Bound on B × T² of a batch, T that of the longest; a CPU's is lower.

    Yields:
        Passes on one device, and what to change in each.
    """
    batch: list[Member] = []
    for one in passes:
        for change in one.changes():
            lengths = [other.residues + 2 for other, _ in (batch[:1] + batch[-1:])] + [one.residues + 2]
            bound = min(max_cost, CPU_COST) if one.device.type == "cpu" else max_cost
            fits = (len(batch) + 1) * max(lengths) ** 2 <= bound and one.device == (batch or [(one, None)])[0][0].device
            if batch and not (fits and min(lengths) ** 2 >= _LEAST_SHARE_OF_LONGEST * max(lengths) ** 2):
                yield batch
                batch = []
            batch.append((one, change))
            if change is None and one.most is not None:  # what to change it to depends on its logits
                yield batch
                batch = []
    if batch:
        yield batch


def run_batch(lm_logits: LanguageModel, batch: list[Member], logits_of: tuple[int, ...] | None) -> None:
    """Run a batch and hand each pass what is its own.

    Args:
        lm_logits: The model.
        batch: Passes, and what to change in each.
        logits_of: As of :class:`~contactlm.maps.jacobian.JacobianOptions`.

    Raises:
        ModelError: Logits of another shape.
    """
    tokens, positions = _collate(batch)
    on = batch[0][0].device
    tokens = tokens.to(on)
    with torch.no_grad():
        logits = lm_logits(tokens, tokens != PAD, None if positions is None else positions.to(on))
    if logits.ndim != 3 or logits.shape[:2] != tokens.shape:
        raise ModelError(
            f"the model returned logits of shape {tuple(logits.shape)} for tokens of shape {tuple(tokens.shape)}: "
            "expected a logit per token and letter, (B, T, V)"
        )
    for (one, change), own in zip(batch, _letters(logits, logits_of), strict=True):
        one.take(change, own[1 : one.residues + 1])


def _collate(batch: list[Member]) -> tuple[Tensor, Tensor | None]:
    """Tokens (B, T), padded; positions (B, T) unless all passes are contiguous."""
    T = max(one.residues for one, _ in batch) + 2
    tokens = torch.full((len(batch), T), PAD)
    positions = torch.zeros(len(batch), T, dtype=torch.int64)
    for row, (one, change) in enumerate(batch):
        n = one.residues + 2
        tokens[row, :n], positions[row, :n] = one.tokens, one.positions
        if change is not None:
            tokens[row, change[0] + 1] = change[1]
    return tokens, positions if any(one.own_positions for one, _ in batch) else None


def _letters(logits: Tensor, logits_of: tuple[int, ...] | None) -> Tensor:
    """The amino acids' logits (B, T, 20), at least in float32."""
    order = tuple(range(len(VOCABULARY))) if logits_of is None else logits_of
    columns = [order.index(token) for token in AMINO_ACIDS]
    if logits.shape[-1] <= max(columns) or (logits_of is not None and logits.shape[-1] != len(order)):
        raise ModelError(f"the model returned logits of {logits.shape[-1]} tokens: expected those of {len(order)}")
    if columns != list(range(logits.shape[-1])):
        logits = logits[..., columns]
    return logits if logits.dtype == torch.float64 else logits.float()
