"""Full-length contact maps: run the passes of a plan and blend their blocks into one map.

Every pass is presented to the model as training crops are: ``<cls>`` right before its first residue, ``<eos>`` right
after its last. Rotary embeddings see relative positions only, so a contiguous pass needs none; a pass of two segments
gives each residue its true distance from every other, which leaves a jump in the positions between the segments. A
complex, whose positions jump between its chains, brings positions of its own: every pass keeps their differences.

How blocks are blended:

* *Probabilities, not logits.* A pass that cannot see why two residues touch is often certain that they do not: its −8
  would outvote another pass's +2. The mean of probabilities lies between what the passes said.
* *Weights fall linearly towards a cut.* A residue next to a cut looks like a chain end, which it is not. Its weight is
  the number of residues to the nearest cut, up to half a window; a pair has the product of both. Ends of the chain
  itself are no cuts.
* *Only the cross block of a two-segment pass counts.* Pairs within one segment lie in a contiguous window as well,
  with twice the context and in the form the model was trained on.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from tqdm.auto import tqdm

from contactlm.alphabet import CLS, EOS, PAD
from contactlm.maps.copies import Fetched, goes_on, sent
from contactlm.maps.windows import (
    Pass,
    WindowOptions,
    batch_by_cost,
    checked_chains,
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
        probability: float32 (L, L), symmetric, in [0, 1]; on the CPU unless ``WindowOptions.on_device`` says otherwise.
        how: How it was made, in plain values: ``length``, ``window``, ``overlap``, ``passes`` (number by kind),
            ``blend`` and the package's ``version``.
        distance: Expected distances in Å, float32 (L, L), symmetric, of a model that predicts them; likewise.
        distance_bins: How probable each bin is, float32 (BINS, L, L), of a model that is asked for that; likewise.
    """

    probability: Tensor
    how: dict[str, Any]
    distance: Tensor | None = field(default=None, kw_only=True)
    distance_bins: Tensor | None = field(default=None, kw_only=True)


class _Chain(NamedTuple):
    tokens: Tensor  # (L,), any integer type
    positions: Tensor | None  # int64 (L,) on the CPU; None: 0 … L − 1
    number: int  # counted from 0


def full_maps(
    logits_fn: LogitsFn,
    chains: Iterable[Tensor],
    options: WindowOptions | None = None,
    device: torch.device | str | None = None,
    positions: Iterable[Tensor | None] | None = None,
    tell_shown: bool = False,
) -> Iterator[FullMap]:
    """Predict the contact maps of several chains of any length, batching passes of similar length across chains.

    A chain that fits the window takes one pass, and the map is the sigmoid of that pass's logits, unchanged. Chains are
    drawn and maps yielded as they are needed, in order. What a chain shares a batch with changes its map by rounding.

    Args:
        logits_fn: The model, ``(tokens int64 (B, T), attention_mask bool (B, T), positions int64 (B, T) or None) ->
            contact logits (B, T − 2, T − 2)``, symmetric; in evaluation mode. Called without gradients. One that
            predicts distances as well gives both, (B, 2, T − 2, T − 2), or their bins after that.
        chains: Residue tokens (L,) of each chain, any integer type, without ``<cls>`` and ``<eos>``.
        options: Windows and batches; None takes the defaults.
        device: Where the model is; None means where a chain's tokens are.
        positions: Of each chain its residues' positions, for the rotary embedding: integers (L,), ascending; only
            differences count. None: 0 … L − 1.
        tell_shown: Call ``logits_fn`` with the keyword ``shown`` as well: a list of :data:`Shown`, for each row.

    Raises:
        DataError: A chain or its positions do not fit; the message counts chains from 0.
        ModelError: The model returns logits of another shape, or not finite.
    """
    options = options or WindowOptions()
    group: list[_Chain] = []
    for number, (tokens, own) in enumerate(checked_chains(chains, positions)):
        if group and sum(len(chain.tokens) ** 2 for chain in group) + len(tokens) ** 2 > _HELD_PAIRS:
            yield from _map_group(logits_fn, group, options, device, tell_shown)
            group = []
        group.append(_Chain(tokens, own, number))
    yield from _map_group(logits_fn, group, options, device, tell_shown)


def _map_group(
    logits_fn: LogitsFn,
    chains: list[_Chain],
    options: WindowOptions,
    device: torch.device | str | None,
    tell_shown: bool,
) -> Iterator[FullMap]:
    """Run all passes of a few chains, then yield their maps in order.

    While a GPU computes a batch of passes, the probabilities of the one before come back and are blended.
    """
    plans = [plan_passes(len(chain.tokens), options) for chain in chains]
    stays = torch.device(device) if options.on_device and device is not None else torch.device("cpu")
    blends = [_Blend(len(chain.tokens), plan, stays) for chain, plan in zip(chains, plans, strict=True)]
    others: list[list[_Blend]] = [[] for _ in chains]  # expected distances, and bins
    tasks = [(chain, piece) for chain, plan in enumerate(plans) for piece in plan]
    several = any(len(plan) > 1 for plan in plans)
    hidden = None if options.progress and several else True  # None: unless standard error is a terminal
    coming: deque[tuple[list[tuple[int, Pass]], Fetched]] = deque()

    def take(members: list[tuple[int, Pass]], values: Tensor, of: Callable[[Tensor], Tensor]) -> None:
        for (chain, piece), own in zip(members, values, strict=True):
            own = own[..., : piece.residues, : piece.residues]
            if own.ndim == 3:
                if not others[chain]:
                    most = [math.inf, *[1.0] * (len(own) - 2)]
                    others[chain] = [_Blend(blends[chain].length, plans[chain], stays, each) for each in most]
                for blend, channel in zip(others[chain], own[1:], strict=True):
                    blend.add(piece, channel)
                own = own[0]
            blends[chain].add(piece, own, of)
        bar.update(len(members))

    with tqdm(total=len(tasks), unit="pass", leave=False, disable=hidden, dynamic_ncols=True) as bar:
        for batch in batch_by_cost([piece.residues + 2 for _, piece in tasks], options.bound, options.token_cost):
            members = [tasks[k] for k in batch]
            shown = [(chains[chain], piece) for chain, piece in members]
            logits = _run(logits_fn, shown, device, tell_shown)
            if goes_on(logits.device) and stays.type == "cpu":
                coming.append((members, Fetched(_probabilities(logits))))
                if len(coming) > 1:
                    before, fetched = coming.popleft()
                    take(before, fetched.wait(), torch.clone)
            else:
                take(members, logits, torch.sigmoid)
        for before, fetched in coming:
            take(before, fetched.wait(), torch.clone)
    _check_finite(blends)
    for blend, plan, more in zip(blends, plans, others, strict=True):
        how = how_made(blend.length, plan, options, _BLEND)
        bins = torch.stack([each.probability for each in more[1:]]) if len(more) > 1 else None
        yield FullMap(blend.probability, how, distance=more[0].probability if more else None, distance_bins=bins)


def _probabilities(logits: Tensor) -> Tensor:
    """Of logits alone (B, L, L), or with distances (B, 2 or more, L, L), which stay."""
    if logits.ndim == 3:
        return torch.sigmoid(logits)
    return torch.cat([torch.sigmoid(logits[:, :1]), logits[:, 1:]], 1)


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
    shown = {"shown": [(chain.number, residues_of(piece)) for chain, piece in members]} if tell_shown else {}
    with torch.no_grad():
        logits = logits_fn(
            sent(tokens, on), sent(mask, on), None if positions is None else sent(positions, on), **shown
        )
    B, T = tokens.shape
    several = logits.ndim == 4 and logits.shape[1] > 1
    if (len(logits), *logits.shape[-2:]) != (B, T - 2, T - 2) or not (several or logits.ndim == 3):
        raise ModelError(
            f"the model returned logits of shape {tuple(logits.shape)} for tokens of shape {(B, T)}: "
            f"expected one logit per residue pair, {(B, T - 2, T - 2)}"
        )
    return logits.float()


def _collate(members: list[tuple[_Chain, Pass]]) -> tuple[Tensor, Tensor, Tensor | None]:
    """Pad passes to one length: tokens int64, attention mask bool (False = padding), positions int64; all (B, T).

    Positions are None where all passes are contiguous and no chain has positions of its own.
    """
    rows, places = [], []
    for chain, piece in members:
        residues = residues_of(piece)
        inner = chain.tokens[residues.to(chain.tokens.device)].long().cpu()
        rows.append(torch.cat([torch.tensor([CLS]), inner, torch.tensor([EOS])]))
        places.append(token_positions(residues if chain.positions is None else chain.positions[residues]))
    tokens = pad_sequence(rows, batch_first=True, padding_value=PAD)
    needed = any(len(piece.segments) == 2 or chain.positions is not None for chain, piece in members)
    return tokens, tokens != PAD, pad_sequence(places, batch_first=True) if needed else None


class _Blend:
    """The map of one chain of a length, float32 (L, L) on a device, complete once all passes of the plan have come."""

    def __init__(self, length: int, plan: list[Pass], device: torch.device, most: float = 1.0) -> None:
        self.length, self._most = length, most
        self._plan, self._device = plan, device
        self._left = len(plan)
        self.probability = torch.zeros(length, length, device=device) if len(plan) > 1 else torch.empty(0)

    def add(self, piece: Pass, values: Tensor, of: Callable[[Tensor], Tensor] = torch.clone) -> None:
        """Take what a pass over n residues gave, (n, n), which ``of`` makes probabilities, of the part that counts."""
        if len(self._plan) == 1:
            self.probability = of(values).to(self._device).contiguous()
            self._mirror()
            return
        rows, columns = piece.block
        block = of(values[: rows[1] - rows[0], columns[0] - columns[1] :])
        block *= context_weights(rows, piece, self.length, block.device)[:, None]
        block *= context_weights(columns, piece, self.length, block.device)
        self.probability[slice(*rows), slice(*columns)] += block.to(self._device)
        self._left -= 1
        if not self._left:
            self._divide()
            self._mirror()

    def _divide(self) -> None:
        """Divide the upper triangle by the weights, summed from the plan a few rows at a time."""
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
            strip.div_(total).clamp_(0, self._most)

    def _mirror(self) -> None:
        """Copy the upper triangle: what a model says of (i, j) and (j, i) may differ in the last bit."""
        for top in range(0, self.length, _ROWS):
            bottom = min(top + _ROWS, self.length)
            strip = self.probability[top:bottom, top:]
            corner = strip[:, : bottom - top]
            corner.copy_(corner.triu() + corner.triu(1).T)
            self.probability[bottom:, top:bottom] = strip[:, bottom - top :].T
