"""The ESM alphabet: letters to token numbers and back.

The order is that of the published ESM-1b and ESM2 vocabularies (Rives et al. 2021; Lin et al. 2023).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

VOCABULARY: tuple[str, ...] = (
    *("<cls>", "<pad>", "<eos>", "<unk>"),
    *"LAGVSERTIDPKQNFYMHWCXBUZO.-",
    *("<null_1>", "<mask>"),
)
CLS, PAD, EOS, UNK = 0, 1, 2, 3
MASK = VOCABULARY.index("<mask>")
LETTERS = "LAGVSERTIDPKQNFYMHWCXBUZO"  # what a chain's sequence may hold
UNKNOWN_LETTER = "X"

_TOKEN_OF_BYTE = np.full(256, UNK, dtype=np.uint8)
_TOKEN_OF_BYTE[np.frombuffer(LETTERS.encode(), dtype=np.uint8)] = [VOCABULARY.index(a) for a in LETTERS]
_BYTE_OF_TOKEN = np.full(256, ord("?"), dtype=np.uint8)
_BYTE_OF_TOKEN[[VOCABULARY.index(a) for a in LETTERS]] = np.frombuffer(LETTERS.encode(), dtype=np.uint8)


def encode(sequence: str) -> NDArray[np.uint8]:
    """Turn L letters into L token numbers, without ``<cls>`` and ``<eos>``.

    Returns:
        uint8 (L,).
    """
    tokens = _TOKEN_OF_BYTE[np.frombuffer(sequence.encode("latin-1", "replace"), dtype=np.uint8)]
    if (tokens == UNK).any():
        position = int(np.argmax(tokens == UNK))
        raise ValueError(
            f"sequence position {position + 1} is {sequence[position]!r}, not one of the letters {LETTERS}; "
            f"write unknown residues as {UNKNOWN_LETTER}"
        )
    return tokens


def decode(tokens: NDArray[np.uint8]) -> str:
    """Turn L token numbers back into L letters (the inverse of :func:`encode`)."""
    return _BYTE_OF_TOKEN[tokens].tobytes().decode("ascii")
