"""Full-length contact maps: run the passes of a plan and blend their blocks into one map.

Every pass is presented to the model as training crops are: ``<cls>`` right before its first residue, ``<eos>`` right
after its last. Rotary embeddings see relative positions only, so a contiguous pass needs none; a pass of two segments
gives each residue its true distance from every other, which leaves a jump in the positions between the segments. A
complex, whose positions jump between its chains, brings positions of its own: every pass keeps their differences.

How blocks are blended:

* *Probabilities, not logits.* A pass that cannot see why two residues touch is often certain that they do not. Were
  logits averaged, its −8 would outvote another pass's +2 (5 % instead of 44 %), and how far a logit lies beyond
  certainty says nothing. The mean of probabilities lies between what the passes said.
* *Weights fall linearly towards a cut.* A residue next to a cut has lost the context on that side and looks like a
  chain end, which it is not. Its weight is the number of residues to the nearest cut, up to half a window; a pair has
  the product of both. Ends of the chain itself are no cuts. Since weights reach almost zero at a cut, the map has no
  seam there.
* *Only the cross block of a two-segment pass counts.* Pairs within one segment lie in a contiguous window as well,
  with twice the context and in the form the model was trained on.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import repeat
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from contactlm.alphabet import CLS, EOS, PAD
from contactlm.maps.copies import Fetched, goes_on, sent
from contactlm.maps.windows import (
    Pass,
    WindowOptions,
    batch_by_cost,
    check_residue_tokens,
    checked_positions,
    context_weights,
    how_made,
    plan_passes,
    residues_of,
    token_positions,
)
from contactlm.types import ModelError

LogitsFn = Callable[..., Tensor]
Shown = tuple[int, Tensor]  # number of a chain, and its residues that a row of a batch shows: int64 (n,), on the CPU

_HELD_PAIRS = 32 * 1024**2  # several chains at once share batches while their maps take at most this many pairs
_ROWS = 256  # rows normalised at a time
_BLEND = "probabilities, weights falling linearly towards cuts"


@dataclass(frozen=True, eq=False)
class FullMap:
    """Contact probabilities of a whole chain.

    Attributes:
        probability: float32 (L, L), on the CPU unless ``WindowOptions.on_device`` says otherwise, each within [0, 1],
            symmetric: a blended map to the last bit, a map of one pass as the model's logits are.
        how: How it was made, in plain values: ``length``, ``window``, ``overlap`` (residues that neighbouring windows
            share at least), ``passes`` (number by kind: ``whole`` chain, contiguous ``window``, ``two_segments``),
            ``blend`` and the package's ``version``.
    """

    probability: Tensor
    how: dict[str, Any]


@dataclass(frozen=True, eq=False)
class _Chain:
    """Tokens (L,), any integer type, and positions int64 (L,) on the CPU, None where they are 0 … L − 1.

    ``number`` counts the chains from 0.
    """

    tokens: Tensor
    positions: Tensor | None
    number: int

    def __len__(self) -> int:
        return len(self.tokens)


def full_map(
    logits_fn: LogitsFn,
    tokens: Tensor,
    options: WindowOptions | None = None,
    device: torch.device | str | None = None,
    positions: Tensor | None = None,
) -> FullMap:
    """Predict the contact map of one chain of any length.

    A chain that fits the window takes one pass, and the map is the sigmoid of that pass's logits, unchanged. The memory
    on the CPU is one float32 (L, L) buffer and small change.

    Args:
        logits_fn: The model, ``(tokens int64 (B, T), attention_mask bool (B, T), positions int64 (B, T) or None) ->
            contact logits (B, T − 2, T − 2)``, symmetric; in evaluation mode. Called without gradients.
        tokens: Residue tokens (L,), any integer type, without ``<cls>`` and ``<eos>``.
        options: Windows and batches; None takes the defaults.
        device: Where the model is; None means where ``tokens`` are.
        positions: The residues' positions, for the rotary embedding: integers (L,), ascending; only differences
            count. None: 0 … L − 1.
    """
    return next(full_maps(logits_fn, [tokens], options, device, [positions]))


def full_maps(
    logits_fn: LogitsFn,
    chains: Iterable[Tensor],
    options: WindowOptions | None = None,
    device: torch.device | str | None = None,
    positions: Iterable[Tensor | None] | None = None,
    tell_shown: bool = False,
) -> Iterator[FullMap]:
    """Predict the contact maps of several chains, batching passes of similar length across chains.

    Chains are drawn and maps yielded as they are needed, in the order given, so that a long list neither has to be in
    memory nor leaves all its maps there. What a chain shares a batch with moves its map by rounding only.

    Args:
        logits_fn: As for :func:`full_map`.
        chains: Residue tokens (L,) of each chain.
        options: As for :func:`full_map`.
        device: As for :func:`full_map`.
        positions: As for :func:`full_map`, one for each chain; None: 0 … L − 1 in all.
        tell_shown: Call ``logits_fn`` with the keyword ``shown`` as well: for each row of the batch the number of its
            chain and the residues of it that the row shows, a list of :data:`Shown`. For models that know more of a
            chain than the residues at hand.

    Yields:
        One map for each chain.

    Raises:
        DataError: A chain is empty or not residue tokens, or its positions do not fit; the message counts chains
            from 0.
        ModelError: The model returns logits of another shape.
    """
    options = options or WindowOptions()
    group: list[_Chain] = []
    pairs = zip(chains, repeat(None)) if positions is None else zip(chains, positions, strict=True)
    for index, (tokens, own) in enumerate(pairs):
        check_residue_tokens(tokens, index)
        if own is not None:
            own = checked_positions(own, len(tokens), index)
        if group and sum(len(chain) ** 2 for chain in group) + len(tokens) ** 2 > _HELD_PAIRS:
            yield from _map_group(logits_fn, group, options, device, tell_shown)
            group = []
        group.append(_Chain(tokens, own, index))
    yield from _map_group(logits_fn, group, options, device, tell_shown)


def _map_group(
    logits_fn: LogitsFn,
    chains: list[_Chain],
    options: WindowOptions,
    device: torch.device | str | None,
    tell_shown: bool,
) -> Iterator[FullMap]:
    """Run all passes of a few chains, then yield their maps in order.

    While a device that goes on by itself computes a batch of passes, the probabilities of the one before come back
    and are blended.
    """
    plans = [plan_passes(len(chain), options) for chain in chains]
    stays = torch.device(device) if options.on_device and device is not None else torch.device("cpu")
    blends = [_Blend(len(chain), plan, stays) for chain, plan in zip(chains, plans, strict=True)]
    tasks = [(chain, piece) for chain, plan in enumerate(plans) for piece in plan]
    several = any(len(plan) > 1 for plan in plans)
    hidden = None if options.progress and several else True  # None: unless standard error is a terminal
    coming: deque[tuple[list[tuple[int, Pass]], Fetched]] = deque()

    def blend_next() -> None:
        members, fetched = coming.popleft()
        for (chain, piece), own in zip(members, fetched.wait(), strict=True):
            blends[chain].add(piece, own[: piece.residues, : piece.residues])
        bar.update(len(members))

    with tqdm(total=len(tasks), unit="pass", leave=False, disable=hidden, dynamic_ncols=True) as bar:
        for batch in batch_by_cost([piece.residues + 2 for _, piece in tasks], options.bound, options.token_cost):
            members = [tasks[k] for k in batch]
            logits = _run(logits_fn, [(chains[chain], piece) for chain, piece in members], device, tell_shown)
            if goes_on(logits.device) and stays.type == "cpu":
                coming.append((members, Fetched(torch.sigmoid(logits))))
                if len(coming) > 1:
                    blend_next()
                continue
            for (chain, piece), own in zip(members, logits, strict=True):
                blends[chain].add(piece, own[: piece.residues, : piece.residues], torch.sigmoid)
            bar.update(len(batch))
        while coming:
            blend_next()
    _check_finite(blends)
    for blend, plan in zip(blends, plans, strict=True):
        yield FullMap(blend.probability, how_made(blend.length, plan, options, _BLEND))


def _check_finite(blends: list[_Blend]) -> None:
    """Ask the device once whether all maps are finite."""
    sums = torch.stack([blend.probability.sum() for blend in blends]).tolist() if blends else []
    for blend, total in zip(blends, sums, strict=True):
        if not math.isfinite(total):
            raise ModelError(
                f"a map of {blend.length} residues: the model's logits are not finite; its weights are damaged, or "
                "half precision is too little for it (trainer.precision)"
            )


def _run(
    logits_fn: LogitsFn, members: list[tuple[_Chain, Pass]], device: torch.device | str | None, tell_shown: bool
) -> Tensor:
    """One batch through the model: contact logits (B, T − 2, T − 2), on the device."""
    on = members[0][0].tokens.device if device is None else torch.device(device)
    tokens, mask, positions = _collate(members)
    told = {"shown": [(chain.number, residues_of(piece)) for chain, piece in members]} if tell_shown else {}
    with torch.no_grad():
        logits = logits_fn(sent(tokens, on), sent(mask, on), None if positions is None else sent(positions, on), **told)
    B, T = tokens.shape
    if logits.shape != (B, T - 2, T - 2):
        raise ModelError(
            f"the model returned logits of shape {tuple(logits.shape)} for tokens of shape {(B, T)}: "
            f"expected one logit per residue pair, {(B, T - 2, T - 2)}"
        )
    return logits.float()


def _collate(members: list[tuple[_Chain, Pass]]) -> tuple[Tensor, Tensor, Tensor | None]:
    """Pad passes to one length: tokens int64, attention mask bool (False = padding), positions int64; all (B, T).

    Positions are None where all passes are contiguous and no chain has positions of its own.
    """
    B, T = len(members), max(piece.residues for _, piece in members) + 2
    tokens = torch.full((B, T), PAD)
    positions = torch.zeros(B, T, dtype=torch.int64)
    for row, (chain, piece) in enumerate(members):
        residues = residues_of(piece)
        n = len(residues)
        tokens[row, 0], tokens[row, n + 1] = CLS, EOS
        tokens[row, 1 : n + 1] = chain.tokens[residues.to(chain.tokens.device)].long()
        positions[row, : n + 2] = token_positions(residues if chain.positions is None else chain.positions[residues])
    needed = any(len(piece.segments) == 2 or chain.positions is not None for chain, piece in members)
    return tokens, tokens != PAD, positions if needed else None


class _Blend:
    """The map of one chain while its passes come in.

    Args:
        length: L of the chain.
        plan: All its passes.
        device: Where the map is to be.

    Attributes:
        probability: float32 (L, L), once all passes have come.
    """

    def __init__(self, length: int, plan: list[Pass], device: torch.device) -> None:
        self.length = length
        self._plan, self._device = plan, device
        self._left = len(plan)
        self.probability = torch.zeros(length, length, device=device) if len(plan) > 1 else torch.empty(0)

    def add(self, piece: Pass, values: Tensor, of: Callable[[Tensor], Tensor] = torch.clone) -> None:
        """Take what a pass over n residues gave, (n, n), on any device.

        Args:
            piece: The pass.
            values: Probabilities, or what ``of`` makes probabilities of.
            of: Asked for the part that counts alone.
        """
        self._left -= 1
        if len(self._plan) == 1:
            self.probability = of(values).to(self._device).contiguous()
        else:
            rows, columns = piece.block
            block = of(values[: rows[1] - rows[0], columns[0] - columns[1] :])
            block *= context_weights(rows, piece, self.length, block.device)[:, None]
            block *= context_weights(columns, piece, self.length, block.device)
            self.probability[slice(*rows), slice(*columns)] += block.to(self._device)
        if not self._left:
            self._finish()

    def _finish(self) -> None:
        """Divide by the sum of weights and mirror the upper triangle.

        The weights are summed again from the plan, a few rows at a time, instead of a second (L, L) buffer.
        """
        if len(self._plan) == 1:
            return
        weights = [
            tuple(context_weights(side, piece, self.length, self._device) for side in piece.block)
            for piece in self._plan
        ]
        for top in range(0, self.length, _ROWS):
            bottom = min(top + _ROWS, self.length)
            strip = self.probability[top:bottom, top:]
            total = torch.zeros_like(strip)
            for piece, (of_rows, of_columns) in zip(self._plan, weights, strict=True):
                (start, stop), (first, last) = piece.block
                low, high, left = max(start, top), min(stop, bottom), max(first, top)
                if low < high and left < last:
                    part = total[low - top : high - top, left - top : last - top]
                    part.addr_(of_rows[low - start : high - start], of_columns[left - first :])
            strip.div_(total).clamp_(0, 1)
            corner = strip[:, : bottom - top]
            corner.copy_(corner.triu() + corner.triu(1).T)
            self.probability[bottom:, top:bottom] = strip[:, bottom - top :].T
