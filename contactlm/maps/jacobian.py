"""The categorical Jacobian (Zhang et al. 2024, PNAS 121): contacts read out of a masked language model, without labels.

Each residue is changed to each of the 20 amino acids, and J[i, a, j, b] is what that does to the logit of b at
position j: mutated minus wild type, both unmasked. The mean over each of the four axes is taken off, J is made
symmetric, the Frobenius norm over (a, b) is a pair's coupling, and the average product correction takes off what is due
to its residues alone. A substitution by the residue itself gives the wild type, hence 0 without being run.

Means over a, b and j need one row (all that changes of residue i do) at a time. The mean over i, and the block across
the diagonal, need all rows: (20 n)² numbers, which lie in a temporary file and are read back a tile at a time.

Chains longer than the window take several passes, as in :mod:`contactlm.maps.full_map`, each centred on its own. Norms
are blended as probabilities are there. The average product is that of the whole map.
"""

from __future__ import annotations

import hashlib
import sys
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator, MutableMapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple
from weakref import WeakValueDictionary

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from tqdm.auto import tqdm

from contactlm.alphabet import CLS, EOS, PAD, VOCABULARY, encode
from contactlm.atomic import atomic_file
from contactlm.maps.windows import (
    LEAST_SHARE_OF_LONGEST,
    Pass,
    WindowOptions,
    checked_chains,
    context_weights,
    how_made,
    plan_passes,
    residues_of,
    token_positions,
)
from contactlm.types import DataError, ModelError

AMINO_ACIDS: tuple[int, ...] = tuple(int(token) for token in encode("LAGVSERTIDPKQNFYMHWC"))
"""Tokens of the 20 amino acids, in the order of the vocabulary: what is put in, and whose logits are read."""

LanguageModel = Callable[[Tensor, Tensor, Tensor | None], Tensor]
Change = tuple[int, int] | None  # residue of the pass, from 0, and the token put there; None: the wild type
CPU_COST = 256 * 1024  # token pairs of a batch on a CPU: larger ones fall out of its caches
_LETTERS = len(AMINO_ACIDS)
_TILE = 1_000_000  # numbers of a tile: 8 MB in float64


class JacobianMap(NamedTuple):
    """The couplings of a whole chain."""

    scores: Tensor  # (L, L) on the CPU, symmetric, 0 on the diagonal, of any sign; float32 or float64
    how: dict[str, Any]  # how it was made, in plain values, as of FullMap


def categorical_jacobian(
    lm_logits: LanguageModel,
    tokens: Tensor,
    windows: WindowOptions | None = None,
    device: torch.device | str | None = None,
    positions: Tensor | None = None,
    folder: str | Path | None = None,
    logits_of: Iterable[int] | None = None,
) -> Tensor:
    """Read contacts out of a masked language model.

    A pass of n residues takes (20 n)² numbers in a temporary file, 1.6 GB at n = 1,000, and little memory.

    Args:
        lm_logits: The model, ``(tokens int64 (B, T), attention_mask bool (B, T), positions int64 (B, T) or None) ->
            logits (B, T, V)``; in evaluation mode. Called without gradients.
        tokens: Residue tokens (L,), any integer type, without ``<cls>`` and ``<eos>``; any letters.
        windows: Windows and batches; None takes the defaults.
        device: Where the model is; None means where ``tokens`` are.
        positions: The residues' positions: integers (L,), ascending; only differences count. None: 0 … L − 1.
        folder: Where temporary files lie and norms of finished passes are kept, one folder a model. None: the system's
            folder, and nothing is kept.
        logits_of: Tokens whose logits the model gives, in its order; None: those of the whole vocabulary.

    Returns:
        Scores (L, L), symmetric, 0 on the diagonal; the larger, the likelier a contact. No probabilities. float32, or
        float64 of a model that gives float64.

    Raises:
        DataError: The chain is empty, ``tokens`` or ``positions`` are none, or the file cannot be written.
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
    return next(jacobian_maps(lm_logits, [tokens], windows, device, [positions], folder, logits_of)).scores


def jacobian_maps(
    lm_logits: LanguageModel,
    chains: Iterable[Tensor],
    windows: WindowOptions | None = None,
    device: torch.device | str | None = None,
    positions: Iterable[Tensor | None] | None = None,
    folder: str | Path | None = None,
    logits_of: Iterable[int] | None = None,
) -> Iterator[JacobianMap]:
    """Read the contacts of several chains, batching sequences of like length across positions, passes and chains.

    Arguments and errors are those of :func:`categorical_jacobian`, with the tokens and positions of each chain; maps
    come in the order given. On a CPU batches are of at most 256 × 1024 token pairs.
    """
    windows = windows or WindowOptions()
    order = tuple(range(len(VOCABULARY)) if logits_of is None else logits_of)
    if missing := set(AMINO_ACIDS) - set(order):
        raise ModelError(f"logits_of: tokens {sorted(missing)}, of amino acids, are missing")
    columns = [order.index(token) for token in AMINO_ACIDS]
    widths = range(len(order), len(order) + 1 if logits_of is not None else sys.maxsize)
    waiting: deque[_Chain] = deque()
    alike: MutableMapping[str, _Pass] = WeakValueDictionary()  # under way: chains of a homomer share theirs

    def passes() -> Iterator[_Pass]:
        """Plan chain after chain, as they are needed."""
        for tokens, own in checked_chains(chains, positions):
            on = tokens.device if device is None else torch.device(device)
            plan, tokens = plan_passes(len(tokens), windows), tokens.cpu().long()
            made = (_Pass(tokens, own, piece, folder, on) for piece in plan)
            waiting.append(_Chain(len(tokens), plan, [alike.setdefault(one.digest, one) for one in made]))
            for one in waiting[-1].passes:
                if one.begin():
                    bar.total += sum(1 for _ in one.changes())
                    bar.refresh()
                    yield one

    hidden = None if windows.progress else True  # None: unless standard error is a terminal
    with tqdm(total=0, unit="sequence", leave=False, disable=hidden, dynamic_ncols=True) as bar:
        for batch in _batches(passes(), windows.bound):
            _run_batch(lm_logits, batch, columns, widths)
            bar.update(len(batch))
            while waiting and all(one.norms is not None for one in waiting[0].passes):
                yield waiting.popleft().finish(windows)
    while waiting:
        yield waiting.popleft().finish(windows)


class _Chain(NamedTuple):
    """One chain of L residues: its plan, and a pass for each piece of it."""

    length: int
    plan: list[Pass]
    passes: list[_Pass]

    def finish(self, windows: WindowOptions) -> JacobianMap:
        norms = [one.norms for one in self.passes if one.norms is not None]
        blended = self._blended(norms)
        if (total := blended.sum()) > 0:  # the average product correction (Dunn et al. 2008)
            blended.addr_(blended.sum(1), blended.sum(0) / -total)
        scores = blended.add_(blended.T.clone()).div_(2).fill_diagonal_(0).to(norms[0].dtype)
        how = how_made(self.length, self.plan, windows, "norms, weights falling linearly towards cuts")
        return JacobianMap(scores, {**how, "symmetrise": "before"})

    def _blended(self, norms: Sequence[Tensor]) -> Tensor:
        """One map of norms, float64 (L, L)."""
        if len(norms) == 1:
            return norms[0].double()
        total = torch.zeros(self.length, self.length, dtype=torch.float64)
        weights = torch.zeros(self.length, self.length)
        for piece, own in zip(self.plan, norms, strict=True):
            rows, columns = piece.block
            weight = torch.outer(*(context_weights(side, piece, self.length) for side in piece.block))
            total[slice(*rows), slice(*columns)] += own[: rows[1] - rows[0], columns[0] - columns[1] :] * weight
            weights[slice(*rows), slice(*columns)] += weight
            if len(piece.segments) == 2:  # what is read across: a window's block holds both ways
                total[slice(*columns), slice(*rows)] += own[columns[0] - columns[1] :, : rows[1] - rows[0]] * weight.T
                weights[slice(*columns), slice(*rows)] += weight.T
        return total.div_(weights)


class _Pass:
    """One pass of a chain: its sequences, one residue changed in each, their rows, and (n, n) norms at the end."""

    def __init__(
        self, tokens: Tensor, positions: Tensor | None, piece: Pass, folder: str | Path | None, device: torch.device
    ) -> None:
        residues = residues_of(piece)
        self.residues, self.device = len(residues), device
        self.tokens = torch.cat([torch.tensor([CLS]), tokens[residues], torch.tensor([EOS])])
        self.own_positions = positions is not None or len(piece.segments) == 2
        self.positions = token_positions(residues if positions is None else positions[residues])
        digest = hashlib.sha256(f"before {AMINO_ACIDS} None".encode())  # so files of earlier versions are found
        digest.update(self.tokens.numpy().tobytes() + self.positions.numpy().tobytes())
        self.digest = digest.hexdigest()[:20]
        self.norms: Tensor | None = None
        self._folder = None if folder is None else Path(folder).expanduser()
        self._kept = None if self._folder is None else self._folder / f"{self.digest}.norms.npy"
        self._file: Any = None
        self._row: Tensor | None = None

    def begin(self) -> bool:
        """Look for finished norms, once; whether sequences are to be run for them."""
        if self.norms is not None or self._file is not None:
            return False
        with suppress(OSError, ValueError, EOFError):  # not there, or damaged
            self.norms = None if self._kept is None else torch.from_numpy(np.load(self._kept))
        if self.norms is None:
            if self._folder is not None:
                self._folder.mkdir(parents=True, exist_ok=True)
            self._file = tempfile.TemporaryFile(dir=self._folder, prefix="jacobian-")  # noqa: SIM115 - closed when all is read
        return self.norms is None

    def changes(self) -> Iterator[Change]:
        """Every sequence of the pass, in the order in which :meth:`take` wants its logits."""
        yield None
        for residue in range(self.residues):
            yield from ((residue, token) for token in self._others(residue))

    def _others(self, residue: int) -> list[int]:
        native = int(self.tokens[residue + 1])
        return [token for token in AMINO_ACIDS if token != native]

    def take(self, change: Change, logits: Tensor) -> None:
        """Take the 20 amino acids' logits at every residue, (n, 20), of one sequence."""
        if change is None:
            self._wild_type = logits
            return
        residue, token = change
        if self._row is None:
            self._row = logits.new_zeros(_LETTERS, *logits.shape)
        torch.sub(logits, self._wild_type, out=self._row[AMINO_ACIDS.index(token)])
        if token == self._others(residue)[-1]:
            self._row -= self._row.mean(0)
            self._row -= self._row.mean(2, keepdim=True)
            self._row -= self._row.mean(1, keepdim=True)
            self._append(self._row.cpu(), residue)
            self._row = None

    def _append(self, row: Tensor, residue: int) -> None:
        if not torch.isfinite(row).all():  # now, and not after hours
            raise ModelError(
                f"a sequence of {self.residues} residues: the model's logits are not finite; its weights are damaged, "
                "or half precision is too little for it (trainer.precision)"
            )
        try:
            self._file.write(row.numpy().data)
            self._file.flush()
        except OSError as error:
            raise DataError(
                f"{self._folder or tempfile.gettempdir()}: cannot be written ({error.strerror}); the Jacobian of "
                f"{self.residues} residues takes {1600 * self.residues**2 / 1e9:.1f} GB there: give a folder with room "
                "(model.cache_dir; in Python folder, or TMPDIR), or a smaller window"
            ) from error
        if residue == self.residues - 1:
            self.norms = self._pair_norms(row.numpy().dtype).to(row.dtype)
            self._file.close()
            if self._kept is not None:
                with atomic_file(self._kept) as handle:
                    np.save(handle, self.norms.numpy())

    def _pair_norms(self, dtype: np.dtype[Any]) -> Tensor:
        """Frobenius norms of (J + Jᵀ) / 2 over substitutions and logits, float64 (n, n), 0 on the diagonal."""
        n = self.residues

        def read(rows: slice, columns: slice) -> Tensor:  # a map of its own each time: no page of it stays in memory
            J = np.memmap(self._file, dtype, "r", shape=(n, _LETTERS, n, _LETTERS))
            return torch.from_numpy(J[rows, :, columns].astype(np.float64))

        mean = torch.zeros(_LETTERS, n, _LETTERS, dtype=torch.float64)
        for rows in _parts(n, _TILE // (_LETTERS * n * _LETTERS)):
            mean += read(rows, slice(0, n)).sum(0)
        mean /= n
        norms = torch.zeros(n, n, dtype=torch.float64)
        parts = _parts(n, int(_TILE**0.5 / _LETTERS))
        for k, own in enumerate(parts):
            for other in parts[k:]:
                tile = read(own, other).sub_(mean[:, other])
                across = read(other, own).sub_(mean[:, own]).permute(2, 3, 0, 1)
                tile_norms = tile.add_(across).square_().sum((1, 3)).sqrt_().div_(2)
                norms[own, other], norms[other, own] = tile_norms, tile_norms.T
        return norms.fill_diagonal_(0)


def _parts(n: int, size: int) -> list[slice]:
    return [slice(start, min(start + max(1, size), n)) for start in range(0, n, max(1, size))]


def _batches(passes: Iterable[_Pass], max_cost: int) -> Iterator[list[tuple[_Pass, Change]]]:
    """Fill batches of at most so many token pairs with sequences of like length, on one device, in order."""
    batch: list[tuple[_Pass, Change]] = []
    for one in passes:
        bound = min(max_cost, CPU_COST) if one.device.type == "cpu" else max_cost
        for change in one.changes():
            lengths = [other.residues + 2 for other, _ in (batch[:1] + batch[-1:])] + [one.residues + 2]
            fits = (len(batch) + 1) * max(lengths) ** 2 <= bound
            alike = min(lengths) ** 2 >= LEAST_SHARE_OF_LONGEST * max(lengths) ** 2
            if batch and not (fits and alike and one.device == batch[0][0].device):
                yield batch
                batch = []
            batch.append((one, change))
    if batch:
        yield batch


def _run_batch(lm_logits: LanguageModel, batch: list[tuple[_Pass, Change]], columns: list[int], widths: range) -> None:
    """Run a batch; hand each pass the logits of the amino acids: ``columns`` of as many letters as ``widths`` allow."""
    tokens, positions = _collate(batch)
    on = batch[0][0].device
    tokens = tokens.to(on)
    with torch.no_grad():
        logits = lm_logits(tokens, tokens != PAD, None if positions is None else positions.to(on))
    if logits.shape[:-1] != tokens.shape or logits.shape[-1] not in widths:
        raise ModelError(
            f"the model returned logits of shape {tuple(logits.shape)} for tokens of shape {tuple(tokens.shape)}: "
            f"expected a logit per token and letter, (B, T, {widths.start})"
        )
    if columns != list(range(logits.shape[-1])):
        logits = logits[..., columns]
    for (one, change), own in zip(batch, logits if logits.dtype == torch.float64 else logits.float(), strict=True):
        one.take(change, own[1 : one.residues + 1])


def _collate(batch: list[tuple[_Pass, Change]]) -> tuple[Tensor, Tensor | None]:
    """Tokens (B, T), padded; positions (B, T) unless all passes are contiguous."""
    tokens = pad_sequence([one.tokens for one, _ in batch], batch_first=True, padding_value=PAD)
    for row, (_, change) in enumerate(batch):
        if change is not None:
            tokens[row, change[0] + 1] = change[1]
    needed = any(one.own_positions for one, _ in batch)
    return tokens, pad_sequence([one.positions for one, _ in batch], batch_first=True) if needed else None
