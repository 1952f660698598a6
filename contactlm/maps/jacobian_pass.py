"""One pass of a categorical Jacobian: its sequences, one residue changed in each, and what comes back of them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from filelock import BaseFileLock, FileLock, Timeout
from torch import Tensor

from contactlm.alphabet import CLS, EOS, MASK, encode
from contactlm.maps.jacobian_norms import Symmetrise, centred_row, pair_norms
from contactlm.maps.jacobian_rows import RowStore, keep
from contactlm.maps.passes import token_positions
from contactlm.types import DataError, ModelError

AMINO_ACIDS: tuple[int, ...] = tuple(int(token) for token in encode("LAGVSERTIDPKQNFYMHWC"))
"""Tokens of the 20 amino acids, in the order of the vocabulary: what is put in, and whose logits are read."""

_SAME_MODEL = 0.1  # of the logits' spread: batches and devices differ by less, models by more
Change = tuple[int, int] | None  # residue of the pass, from 0, and the token put there; None: the wild type


class JacobianPass:
    """The rows of one pass while they come in, and their norms at the end.

    Args:
        tokens: The residues' tokens, int64 (n,), on the CPU.
        positions: Their positions, int64 (n,); None: 0 … n − 1.
        symmetrise: As of :func:`~contactlm.maps.jacobian_norms.pair_norms`.
        masked: Put ``<mask>`` at each position instead of each amino acid.
        substitutions: Put the so many amino acids there that the wild type's logits find likeliest; None: all.
        folder: Where rows and norms are kept for a later process; None: nowhere.
        device: Where the model is.
    """

    def __init__(
        self,
        tokens: Tensor,
        positions: Tensor | None,
        symmetrise: Symmetrise,
        masked: bool,
        substitutions: int | None,
        folder: Path | None,
        device: torch.device,
    ) -> None:
        n = len(tokens)
        self.residues, self.device = n, device
        self.tokens = torch.cat([torch.tensor([CLS]), tokens, torch.tensor([EOS])])
        self.own_positions = positions is not None
        self.positions = token_positions(torch.arange(n) if positions is None else positions)
        self.symmetrise = symmetrise
        self.substitutes = (MASK,) if masked else AMINO_ACIDS
        self.most = substitutions
        digest = hashlib.sha256(f"{symmetrise} {self.substitutes} {substitutions}".encode())
        digest.update(self.tokens.numpy().tobytes() + self.positions.numpy().tobytes())
        self.digest = digest.hexdigest()[:20]
        self.norms: Tensor | None = None
        self._folder = folder
        self._kept_as: Path | None = None
        self._lock: BaseFileLock | None = None
        self._rows: RowStore | None = None
        self._wild_type: Tensor | None = None
        self._row: Tensor | None = None
        self._missing = 0

    def begin(self) -> int:
        """Find what is known of the pass; return how many sequences are still to be run, 0 when called again."""
        if self.norms is not None or self._rows is not None:
            return 0
        self._kept_as = self._claimed()
        self.norms = self._read("norms")
        if self.norms is not None:
            self._release()
            return 0
        self._rows = RowStore((len(self.substitutes), self.residues, len(AMINO_ACIDS)), self._kept_as)
        left = range(len(self._rows), self.residues)
        return 1 + sum(min(len(self._others(residue)), self.most or len(AMINO_ACIDS)) for residue in left)

    def _claimed(self) -> Path | None:
        """Beginning of the names of the pass's files; None where another process is at it, or none are wanted."""
        if self._folder is None:
            return None
        self._folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self._folder / f"{self.digest}.lock")
        try:
            lock.acquire(blocking=False)
        except Timeout:
            return None
        self._lock = lock
        return self._folder / self.digest

    def _release(self) -> None:
        if self._lock is not None:
            self._lock.release()

    def changes(self) -> Iterator[Change]:
        """Every sequence of the pass that is still to be run, in the order in which :meth:`take` wants its logits.

        A substitution by the residue itself is the wild type again: J is 0 there and nothing is run. Where only the
        likeliest are put in, the wild type has to be taken before what follows it is asked for.
        """
        if self._rows is None:
            return
        yield None
        for residue in range(len(self._rows), self.residues):
            yield from ((residue, token) for token in self._changed(residue))

    def _others(self, residue: int) -> list[int]:
        native = int(self.tokens[residue + 1])
        return [token for token in self.substitutes if token != native or token == MASK]

    def _changed(self, residue: int) -> list[int]:
        others = self._others(residue)
        if self.most is None or self.most >= len(others) or self._wild_type is None:
            return others
        likely = self._wild_type[residue].tolist()
        return sorted(others, key=lambda token: -likely[AMINO_ACIDS.index(token)])[: self.most]

    def take(self, change: Change, logits: Tensor) -> None:
        """Take the 20 amino acids' logits at every residue, (n, 20), of one sequence.

        Raises:
            DataError: Rows of an earlier process are of another model, or rows cannot be written.
            ModelError: Logits that are not finite.
        """
        if change is None:
            self._take_wild_type(logits)
            return
        residue, token = change
        if self._row is None:
            self._row = logits.new_zeros(len(self.substitutes), *logits.shape)
            self._missing = len(self._changed(residue))
        torch.sub(logits, self._wild_type, out=self._row[self.substitutes.index(token)])  # type: ignore[arg-type]
        self._missing -= 1
        if not self._missing and self._rows is not None:
            row = centred_row(self._with_skipped(self._row, residue)).cpu()
            if not torch.isfinite(row).all():  # now, and not after hours
                raise _not_finite(self.residues)
            self._rows.append(row)
            self._row = None
            self._finish_if_complete(self._rows)

    def _with_skipped(self, row: Tensor, residue: int) -> Tensor:
        """Let substitutions that were skipped have the mean effect of the others: 0, once centred."""
        run = {*self._changed(residue), int(self.tokens[residue + 1])}
        skipped = [a for a, token in enumerate(self.substitutes) if token not in run]
        if skipped and self.most is not None:
            kept = [a for a in range(len(row)) if a not in skipped]
            row[skipped] = row[kept].mean(0)
        return row

    def _take_wild_type(self, wild_type: Tensor) -> None:
        """Keep the wild type's logits; by them rows of an earlier process are known to be of the same model."""
        if not torch.isfinite(wild_type).all():
            raise _not_finite(self.residues)
        self._wild_type = wild_type
        before = self._read("wild_type")
        if self._rows and before is not None:
            off = float((before - wild_type.cpu()).abs().max())
            if off > _SAME_MODEL * float(before.std()):
                raise DataError(
                    f"{self._kept_as}.rows-…: rows of a Jacobian by another model (its logits differ by up to "
                    f"{off:.3g}); give each model a folder of its own"
                )
        self._write("wild_type", wild_type.cpu())
        if self._rows is not None:
            self._finish_if_complete(self._rows)

    def _finish_if_complete(self, rows: RowStore) -> None:
        if len(rows) < self.residues or self._wild_type is None:
            return
        self.norms = pair_norms(rows, self.symmetrise).to(self._wild_type.dtype)
        self._write("norms", self.norms)
        rows.close()
        if self._kept_as is not None:
            _file(self._kept_as, "wild_type").unlink(missing_ok=True)
        self._release()

    def _read(self, what: str) -> Tensor | None:
        if self._kept_as is None:
            return None
        with suppress(OSError, ValueError, EOFError):  # not there, or damaged
            return torch.from_numpy(np.load(_file(self._kept_as, what)))
        return None

    def _write(self, what: str, values: Tensor) -> None:
        if self._kept_as is not None:
            keep(_file(self._kept_as, what), values, self.residues)


def _file(kept_as: Path, what: str) -> Path:
    return kept_as.with_name(f"{kept_as.name}.{what}.npy")


def _not_finite(residues: int) -> ModelError:
    return ModelError(
        f"a sequence of {residues} residues: the model's logits are not finite; its weights are damaged, or half "
        "precision is too little for it (trainer.precision)"
    )
