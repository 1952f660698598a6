"""SaProt (Su et al. 2024): ESM2's layers, with a token for every pair of residue and structure letter.

Here it is given residues alone: the structure letter is ``#``, unknown. Its vocabulary has the twenty common residues
and ``#``; X, B, Z, U and O become ``##``. Its published checkpoints have no trained contact head.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from contactlm.alphabet import LETTERS
from contactlm.model.families.esm2 import Esm2, RotaryEsm
from contactlm.model.families.family import Tokens

_SPECIAL = ("<cls>", "<pad>", "<eos>", "<unk>", "<mask>")
_RESIDUES = "ACDEFGHIKLMNPQRSTVWY#"
_STRUCTURE = "pynwrqhgdlvtmfsaeikc#"  # of Foldseek
VOCABULARY = (*_SPECIAL, *(residue + structure for residue in _RESIDUES for structure in _STRUCTURE))


def _token(letter: str) -> int:
    return VOCABULARY.index(f"{letter if letter in _RESIDUES else '#'}#")


class SaProt(RotaryEsm):
    """SaProt without structure."""

    name = "SaProt"
    tokens = Tokens(
        size=len(VOCABULARY),
        mask=VOCABULARY.index("<mask>"),
        letters={letter: _token(letter) for letter in LETTERS},
    )
    defaults: Mapping[str, Any] = {**Esm2.defaults, "vocab_size": tokens.size, "mask_token_id": tokens.mask}

    def describes(self, config: Mapping[str, Any]) -> bool:
        """Rotary, and as many tokens."""
        return super().describes(config) and config.get("vocab_size") == self.tokens.size


FAMILIES = (SaProt(),)
