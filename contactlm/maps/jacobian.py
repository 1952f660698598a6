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
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from contactlm.alphabet import CLS, EOS, PAD, VOCABULARY, encode
from contactlm.atomic import atomic_file
from contactlm.maps.windows import (
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
CPU_COST = 256 * 1024  # token pairs of a batch on a CPU: larger ones fall out of its caches
_LETTERS = len(AMINO_ACIDS)
_TILE = 1_000_000  # numbers of a tile: 8 MB in float64


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
        windows: Windows and batches (on a CPU of at most 256 × 1024 token pairs); None takes the defaults.
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
    return next(jacobian_maps(lm_logits, [tokens], windows, device, [positions], folder, logits_of))[0]


def jacobian_maps(
    lm_logits: LanguageModel,
    chains: Iterable[Tensor],
    windows: WindowOptions | None = None,
    device: torch.device | str | None = None,
    positions: Iterable[Tensor | None] | None = None,
    folder: str | Path | None = None,
    logits_of: Iterable[int] | None = None,
) -> Iterator[tuple[Tensor, dict[str, Any]]]:
    """Read the contacts of several chains, in the order given: scores, and how they were made, as of ``FullMap``.

    Arguments and errors are those of :func:`categorical_jacobian`, with the tokens and positions of each chain.
    """
    windows = windows or WindowOptions()
    letters = _letter_logits(lm_logits, logits_of)
    kept = None if folder is None else Path(folder).expanduser()
    hidden = None if windows.progress else True  # None: unless standard error is a terminal
    for tokens, own in checked_chains(chains, positions):
        on = tokens.device if device is None else torch.device(device)
        cost = min(windows.bound, CPU_COST) if on.type == "cpu" else windows.bound
        plan = plan_passes(len(tokens), windows)
        total = sum(piece.residues for piece in plan)
        with tqdm(total=total, unit="residue", leave=False, disable=hidden, dynamic_ncols=True) as bar:
            passes = [_Pass(tokens.cpu().long(), own, piece, on, cost) for piece in plan]
            norms = [one.norms(letters, kept, bar) for one in passes]
        how = how_made(len(tokens), plan, windows, "norms, weights falling linearly towards cuts")
        yield _scores(len(tokens), plan, norms), {**how, "symmetrise": "before"}


def _letter_logits(
    lm_logits: LanguageModel, logits_of: Iterable[int] | None
) -> Callable[[Tensor, Tensor | None], Tensor]:
    """What gives, of tokens and positions (B, n + 2), the residues' logits of the 20 amino acids, (B, n, 20)."""
    order = list(range(len(VOCABULARY)) if logits_of is None else logits_of)
    if missing := set(AMINO_ACIDS) - set(order):
        raise ModelError(f"logits_of: tokens {sorted(missing)}, of amino acids, are missing")
    columns = [order.index(token) for token in AMINO_ACIDS]
    widths = range(len(order), len(order) + 1 if logits_of is not None else sys.maxsize)

    def letters(tokens: Tensor, positions: Tensor | None) -> Tensor:
        with torch.no_grad():
            logits = lm_logits(tokens, tokens != PAD, positions)
        if logits.shape[:-1] != tokens.shape or logits.shape[-1] not in widths:
            raise ModelError(
                f"the model returned logits of shape {tuple(logits.shape)} for tokens of shape {tuple(tokens.shape)}: "
                f"expected a logit per token and letter, (B, T, {widths.start})"
            )
        own = logits[:, 1:-1, columns]
        return own if own.dtype == torch.float64 else own.float()

    return letters


class _Pass:
    """One pass of a chain, n residues between ``<cls>`` and ``<eos>``, and how batches of it are run."""

    def __init__(
        self, tokens: Tensor, positions: Tensor | None, piece: Pass, device: torch.device, max_cost: int
    ) -> None:
        residues = residues_of(piece)
        self.device, self.max_cost = device, max_cost
        self.tokens = torch.cat([torch.tensor([CLS]), tokens[residues], torch.tensor([EOS])])
        places = token_positions(residues if positions is None else positions[residues])
        self.positions = places if positions is not None or len(piece.segments) == 2 else None
        digest = hashlib.sha256(f"before {AMINO_ACIDS} None".encode())  # so files of earlier versions are found
        digest.update(self.tokens.numpy().tobytes() + places.numpy().tobytes())
        self.name = f"{digest.hexdigest()[:20]}.norms.npy"

    def norms(self, letters: Callable[..., Tensor], folder: Path | None, bar: tqdm[Any]) -> Tensor:
        """Norms (n, n) that a folder keeps; else they are computed, and kept there."""
        n = len(self.tokens) - 2
        if folder is not None:
            with suppress(OSError, ValueError, EOFError):  # not there, or damaged
                kept = torch.from_numpy(np.load(folder / self.name))
                bar.update(n)
                return kept
            folder.mkdir(parents=True, exist_ok=True)
        file = tempfile.TemporaryFile(dir=folder, prefix="jacobian-")  # noqa: SIM115 - closing it may fail once more
        sequences = self._sequences(letters)
        wild_type = next(sequences)
        for native in self.tokens[1:-1].tolist():
            row = torch.stack([wild_type if letter == native else next(sequences) for letter in AMINO_ACIDS])
            row -= wild_type
            row -= row.mean(0)
            row -= row.mean(2, keepdim=True)
            row -= row.mean(1, keepdim=True)
            _append(row.cpu().numpy(), file, folder)
            bar.update()
        norms = _pair_norms(file, n, row.cpu().numpy().dtype).to(row.dtype)
        if folder is not None:
            with atomic_file(folder / self.name) as handle:
                np.save(handle, norms.numpy())
        return norms

    def _sequences(self, letters: Callable[..., Tensor]) -> Iterator[Tensor]:
        """Logits (n, 20) of the wild type, then with each residue changed to each other amino acid."""
        residues = enumerate(self.tokens[1:-1].tolist(), 1)
        changes = [(at, letter) for at, native in residues for letter in AMINO_ACIDS if letter != native]
        for part in torch.tensor([(0, CLS), *changes]).split(max(1, self.max_cost // len(self.tokens) ** 2)):
            tokens = self.tokens.expand(len(part), -1).scatter(1, part[:, :1], part[:, 1:])
            positions = None if self.positions is None else self.positions.repeat(len(part), 1).to(self.device)
            yield from letters(tokens.to(self.device), positions)


def _append(row: np.ndarray[Any, Any], file: IO[bytes], folder: Path | None) -> None:
    n = row.shape[1]
    if not np.isfinite(row).all():  # now, and not after hours
        raise ModelError(
            f"a sequence of {n} residues: the model's logits are not finite; its weights are damaged, "
            "or half precision is too little for it (trainer.precision)"
        )
    try:
        file.write(row.data)
        file.flush()
    except OSError as error:
        raise DataError(
            f"{folder or tempfile.gettempdir()}: cannot be written ({error.strerror}); the Jacobian of {n} residues "
            f"takes {1600 * n**2 / 1e9:.1f} GB there: give a folder with room (model.cache_dir; in Python folder, or "
            "TMPDIR), or a smaller window"
        ) from error


def _pair_norms(file: IO[bytes], n: int, dtype: np.dtype[Any]) -> Tensor:
    """Frobenius norms of (J + Jᵀ) / 2 over substitutions and logits, float64 (n, n), 0 on the diagonal."""

    def read(rows: slice, columns: slice) -> Tensor:  # a map of its own each time: no page of it stays in memory
        J = np.memmap(file, dtype, "r", shape=(n, _LETTERS, n, _LETTERS))
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
    return [slice(start, start + max(1, size)) for start in range(0, n, max(1, size))]


def _scores(length: int, plan: Sequence[Pass], norms: Sequence[Tensor]) -> Tensor:
    """Blend the norms of all passes, and take the average product off."""
    blended, weights = torch.zeros(length, length, dtype=torch.float64), torch.zeros(length, length)
    for piece, own in zip(plan, norms, strict=True):
        residues = residues_of(piece)
        side = torch.cat([context_weights(segment, piece, length) for segment in piece.segments])
        weight = torch.outer(side, side)
        if len(piece.segments) == 2:  # what is read across alone
            half = piece.segments[0][1] - piece.segments[0][0]
            weight[:half, :half], weight[half:, half:] = 0, 0
        blended[residues[:, None], residues] += own * weight
        weights[residues[:, None], residues] += weight
    blended /= weights
    if (total := blended.sum()) > 0:  # the average product correction (Dunn et al. 2008)
        blended.addr_(blended.sum(1), blended.sum(0) / -total)
    return blended.add_(blended.T.clone()).div_(2).fill_diagonal_(0).to(norms[0].dtype)
