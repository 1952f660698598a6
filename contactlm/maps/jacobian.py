"""The categorical Jacobian (Zhang et al. 2024, PNAS 121): contacts read out of a masked language model, without labels.

Each residue is changed to each of the 20 amino acids, and J[i, a, j, b] is what that does to the logit of b at
position j: mutated minus wild type, both unmasked. The mean over each of the four axes is taken off, the Frobenius norm
over (a, b) is a pair's coupling, and the average product correction takes off what is due to its residues alone. A
substitution by the residue itself gives the wild type, hence 0 without being run.

Chains longer than the window take several passes, as they do for contact heads (:mod:`contactlm.maps.full_map`):

* *Each pass is centred on its own*, over all its residues, those of both segments where there are two. A mean over
  residues that a pass does not show cannot be known to it.
* *Norms are blended, and corrected once.* Norms are in units of logits in every pass, so they are averaged as
  probabilities are there: with weights that fall linearly towards cuts, only the cross block of two segments counting
  (in both directions: i changed and j read, j changed and i read). The average product is that of the whole map.

What fits the window takes one pass and is exact.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, MutableMapping
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor
from tqdm.auto import tqdm

from contactlm.maps.jacobian_batches import LanguageModel, batches, run_batch
from contactlm.maps.jacobian_norms import Symmetrise, corrected_for_average_product
from contactlm.maps.jacobian_pass import AMINO_ACIDS, JacobianPass
from contactlm.maps.passes import check_residue_tokens, checked_positions, context_weights, how_made, residues_of
from contactlm.maps.windows import WindowOptions, plan_passes
from contactlm.types import ModelError

__all__ = ["AMINO_ACIDS", "JacobianMap", "JacobianOptions", "categorical_jacobian", "jacobian_maps"]


@dataclass(frozen=True)
class JacobianOptions:
    """How a categorical Jacobian is taken.

    Attributes:
        symmetrise: ``"before"`` the norm, (J + Jᵀ) / 2 over (i, a) ↔ (j, b), as in the paper's script; ``"after"`` it,
            (S + Sᵀ) / 2 of the corrected map S, as in ColabBio's ``get_contacts``. None: before, and after if
            ``masked``.
        masked: Put ``<mask>`` at each position instead of each amino acid: L sequences instead of 19 L, and another
            quantity, whose only axis of substitutions is that of the logits.
        substitutions: Put only so many amino acids at each position, those that the wild type's logits there find
            likeliest; the others count as having the mean effect of these. 19 / substitutions times as fast, and no
            longer exact. None: all.
        folder: Where blocks of positions, and norms of finished passes, are kept: who calls again goes on from there.
            One folder a model. None: nowhere.
        logits_of: Tokens whose logits the model gives, in its order; None: those of the whole vocabulary.

    Raises:
        ModelError: Values that make no sense, or not together.
    """

    symmetrise: Symmetrise | None = None
    masked: bool = False
    substitutions: int | None = None
    folder: Path | None = None
    logits_of: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.symmetrise not in (None, "before", "after"):
            raise ModelError(f"symmetrise: {self.symmetrise!r} given; choose 'before' or 'after' the norm")
        if self.masked and self.symmetrise == "before":
            raise ModelError(
                "symmetrise: 'before' given with masked: a masked position has no substitutions to exchange with "
                "logits; take 'after', or leave it out"
            )
        if self.substitutions is not None and (self.masked or not 1 <= self.substitutions <= len(AMINO_ACIDS)):
            raise ModelError(
                f"substitutions: {self.substitutions} given{' with masked' if self.masked else ''}; give from 1 to "
                f"{len(AMINO_ACIDS)}, without masked, or None for all"
            )
        if self.logits_of is not None and (missing := set(AMINO_ACIDS) - set(self.logits_of)):
            raise ModelError(f"logits_of: tokens {sorted(missing)}, of amino acids, are missing")

    @property
    def when(self) -> Symmetrise:
        """``symmetrise``, its default filled in."""
        return self.symmetrise or ("after" if self.masked else "before")


@dataclass(frozen=True, eq=False)
class JacobianMap:
    """The couplings of a whole chain.

    Attributes:
        scores: (L, L) on the CPU, symmetric, 0 on the diagonal, of any sign; float32 (float64 of a float64 model).
        how: How it was made, in plain values: as of :class:`~contactlm.maps.full_map.FullMap`, with ``symmetrise``,
            ``masked`` and ``substitutions``.
    """

    scores: Tensor
    how: dict[str, Any]


def categorical_jacobian(
    lm_logits: LanguageModel,
    tokens: Tensor,
    symmetrise: Symmetrise | None = None,
    masked: bool = False,
    windows: WindowOptions | None = None,
    device: torch.device | str | None = None,
    positions: Tensor | None = None,
    folder: str | Path | None = None,
    logits_of: Iterable[int] | None = None,
    substitutions: int | None = None,
) -> Tensor:
    """Read contacts out of a masked language model.

    Memory over that of the model and one batch is a few (L, L) arrays and 0.1 GB at most: the (20 n)² numbers of a pass
    of n residues lie in memory while they take less than 64 MB, and in files otherwise (1.6 GB at n = 1,000).

    Args:
        lm_logits: The model, ``(tokens int64 (B, T), attention_mask bool (B, T), positions int64 (B, T) or None) ->
            logits (B, T, V)``; in evaluation mode. Called without gradients.
        tokens: Residue tokens (L,), any integer type, without ``<cls>`` and ``<eos>``; any letters.
        symmetrise: See :class:`JacobianOptions`; ``masked``, ``folder`` and ``logits_of`` too.
        masked: See there.
        windows: Windows and batches; None takes the defaults.
        device: Where the model is; None means where ``tokens`` are.
        positions: The residues' positions: integers (L,), ascending; only differences count. None: 0 … L − 1.
        folder: See there.
        logits_of: See there.
        substitutions: See there.

    Returns:
        Scores (L, L), symmetric, 0 on the diagonal; the larger, the likelier a contact. No probabilities. float32, or
        float64 of a model that gives float64.

    Raises:
        DataError: The chain is empty, or ``tokens`` or ``positions`` are none; or ``folder`` is of another model.
        ModelError: Options that make no sense, or logits of another shape or not finite.

    Examples:
        >>> import torch
        >>> from contactlm.maps import categorical_jacobian
        >>> def model(tokens, attention_mask, positions):  # the first and the last residue know each other
        ...     logits = torch.zeros(*tokens.shape, 33)
        ...     logits[:, -2, 4:24] = torch.eye(20)[tokens[:, 1] - 4]
        ...     return logits
        >>> scores = categorical_jacobian(model, torch.tensor([4, 5, 6, 7]))
        >>> divmod(int(scores.argmax()), 4)
        (0, 3)
    """
    given = None if logits_of is None else tuple(logits_of)
    kept_in = None if folder is None else Path(folder).expanduser()
    options = JacobianOptions(symmetrise, masked, substitutions, kept_in, given)
    return next(jacobian_maps(lm_logits, [tokens], options, windows, device, [positions])).scores


def jacobian_maps(
    lm_logits: LanguageModel,
    chains: Iterable[Tensor],
    options: JacobianOptions | None = None,
    windows: WindowOptions | None = None,
    device: torch.device | str | None = None,
    positions: Iterable[Tensor | None] | None = None,
) -> Iterator[JacobianMap]:
    """Read the contacts of several chains, batching sequences of like length across positions, passes and chains.

    Args:
        lm_logits: As of :func:`categorical_jacobian`; ``device`` and errors too.
        chains: Residue tokens (L,) of each chain.
        options: How; None takes the defaults.
        windows: Windows and batches; None takes the defaults. On a CPU batches are of at most 256 × 1024 token pairs.
        device: Where the model is.
        positions: As of :func:`categorical_jacobian`, one for each chain; None: 0 … L − 1 in all.

    Yields:
        One map for each chain, in the order given.
    """
    options, windows = options or JacobianOptions(), windows or WindowOptions()
    waiting: deque[_Chain] = deque()
    hidden = None if windows.progress else True  # None: unless standard error is a terminal
    with tqdm(total=0, unit="sequence", leave=False, disable=hidden, dynamic_ncols=True) as bar:
        passes = _passes(_chains(chains, positions, options, windows, device, waiting), bar)
        for batch in batches(passes, windows.bound):
            run_batch(lm_logits, batch, options.logits_of)
            bar.update(len(batch))
            while waiting and waiting[0].is_finished:
                yield waiting.popleft().finish(options, windows)
    while waiting:
        yield waiting.popleft().finish(options, windows)


def _chains(
    chains: Iterable[Tensor],
    positions: Iterable[Tensor | None] | None,
    options: JacobianOptions,
    windows: WindowOptions,
    device: torch.device | str | None,
    waiting: deque[_Chain],
) -> Iterator[_Chain]:
    """Plan chain after chain, when it is asked for; those planned are also put where they wait for their rows."""
    alike: MutableMapping[str, JacobianPass] = WeakValueDictionary()
    pairs = zip(chains, repeat(None)) if positions is None else zip(chains, positions, strict=True)
    for index, (tokens, own) in enumerate(pairs):
        check_residue_tokens(tokens, index)
        own = None if own is None else checked_positions(own, len(tokens), index)
        on = tokens.device if device is None else torch.device(device)
        waiting.append(_Chain(tokens.cpu().long(), own, options, windows, on, alike))
        yield waiting[-1]


def _passes(chains: Iterator[_Chain], bar: Any) -> Iterator[JacobianPass]:
    for chain in chains:
        for one in chain.passes:
            if sequences := one.begin():
                bar.total += sequences
                bar.refresh()
                yield one


class _Chain:
    """One chain: its passes, and its map when they are done.

    Args:
        tokens: Residue tokens, int64 (L,), on the CPU.
        positions: int64 (L,), or None.
        options: How the Jacobian is taken.
        windows: How passes are planned.
        device: Where the model is.
        alike: Passes under way, by digest: those of the same sequence are run once (chains of a homomer).
    """

    def __init__(
        self,
        tokens: Tensor,
        positions: Tensor | None,
        options: JacobianOptions,
        windows: WindowOptions,
        device: torch.device,
        alike: MutableMapping[str, JacobianPass],
    ) -> None:
        self.length = len(tokens)
        self.plan = plan_passes(self.length, windows)
        self.passes = []
        for piece in self.plan:
            residues = residues_of(piece)
            own = residues if positions is None else positions[residues]
            contiguous = positions is None and len(piece.segments) == 1
            kind = (options.when, options.masked, options.substitutions, options.folder)
            one = JacobianPass(tokens[residues], None if contiguous else own, *kind, device)
            self.passes.append(alike.setdefault(one.digest, one))

    @property
    def is_finished(self) -> bool:
        return all(one.norms is not None for one in self.passes)

    def finish(self, options: JacobianOptions, windows: WindowOptions) -> JacobianMap:
        norms = [one.norms for one in self.passes if one.norms is not None]
        scores = corrected_for_average_product(self._blended(norms)).to(norms[0].dtype)
        how = how_made(self.length, self.plan, windows, "norms, weights falling linearly towards cuts")
        taken = {"symmetrise": options.when, "masked": options.masked, "substitutions": options.substitutions}
        return JacobianMap(scores, {**how, **taken})

    def _blended(self, norms: list[Tensor]) -> Tensor:
        """One map of norms, float64 (L, L): row i changed, column j read."""
        if len(norms) == 1:
            return norms[0].double()
        total = torch.zeros(self.length, self.length, dtype=torch.float64)
        weights = torch.zeros(self.length, self.length)
        for piece, own in zip(self.plan, norms, strict=True):
            rows, columns = piece.block
            weight = torch.outer(*(context_weights(side, piece, self.length) for side in piece.block))
            here, there = slice(*rows), slice(*columns)
            first, last = slice(0, rows[1] - rows[0]), slice(columns[0] - columns[1], None)
            total[here, there] += own[first, last] * weight
            weights[here, there] += weight
            if len(piece.segments) == 2:  # what is read across: a window's block holds both ways
                total[there, here] += own[last, first] * weight.T
                weights[there, here] += weight.T
        return total.div_(weights)
