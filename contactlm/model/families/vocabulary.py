"""Vocabularies as they lie next to published weights: which token number stands for which letter."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

from contactlm.alphabet import LETTERS
from contactlm.model.families.family import Tokens
from contactlm.types import ModelError

VOCABULARY_FILES = ("vocab.txt", "tokenizer.json")  # the first that is there is read
PROTBERT = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"LAGVESIKRDTPNQFYMHCWXUBZO")
_AMINO_ACIDS = "ACDEFGHIKLMNPQRSTVWY"
_SPECIAL = {  # as files spell them, in small letters
    "cls": ("[cls]", "<cls>", "<s>", "<bos>"),
    "pad": ("[pad]", "<pad>"),
    "eos": ("[sep]", "<sep>", "<eos>", "</s>"),
    "unk": ("[unk]", "<unk>"),
    "mask": ("[mask]", "<mask>"),
}
_WORD = re.compile(r"(##|[▁Ġ])?[A-Za-z]{2,}")


def read_vocabulary(path: Path) -> tuple[str, ...]:
    """Read a ``vocab.txt``, a token a line, or a ``tokenizer.json``: tokens in the order of their numbers.

    Raises:
        ModelError: A file that is neither, or numbers with gaps.
    """
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix != ".json":
            return tuple(line.strip() for line in text.rstrip().splitlines())
        tokenizer = json.loads(text)
        vocab = tokenizer["model"]["vocab"]  # {token: number}, or [token, score] in order
        numbers = dict(vocab) if isinstance(vocab, dict) else {token: n for n, (token, _) in enumerate(vocab)}
        numbers |= {added["content"]: added["id"] for added in tokenizer.get("added_tokens") or ()}
        tokens = {number: token for token, number in numbers.items()}
        return tuple(tokens[number] for number in range(len(tokens)))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(
            f"{path}: no vocabulary can be read from it ({type(error).__name__}: {str(error)[:100]}); give a vocab.txt "
            "with a token a line, or the tokenizer.json that belongs to the weights"
        ) from error


def tokens_of(vocabulary: Sequence[str], size: int) -> Tokens:
    """Tell the token numbers of a vocabulary with a token a residue; other tokens are never used.

    Args:
        vocabulary: Tokens in the order of their numbers.
        size: Rows of the model's embeddings, at least as many.

    Raises:
        ModelError: More tokens than embeddings, no token for an amino acid or a place, or a vocabulary of words.
    """
    if not isinstance(size, int) or len(vocabulary) > size:
        raise ModelError(f"{len(vocabulary)} tokens in the vocabulary, but vocab_size is {size}: they differ")
    if 2 * sum(bool(_WORD.fullmatch(token)) for token in vocabulary) > len(vocabulary):
        raise ModelError("the vocabulary holds words of several letters; one with a token a residue is needed")
    plain: dict[str, int] = {}
    for number, token in enumerate(vocabulary):
        plain.setdefault(token.lstrip("▁Ġ"), number)
    small = {token.lower(): number for token, number in plain.items()}
    found = {part: next((small[s] for s in spellings if s in small), None) for part, spellings in _SPECIAL.items()}
    if found["unk"] is None:
        found["unk"] = plain.get("X")
    lost = [_SPECIAL[part][0].upper() for part, number in found.items() if number is None]
    if lost := lost + [letter for letter in _AMINO_ACIDS if letter not in plain]:
        raise ModelError(f"the vocabulary lacks {', '.join(lost)}; one with a token a residue is needed")
    special = {part: number for part, number in found.items() if number is not None}
    return Tokens(size=size, letters={letter: plain[letter] for letter in LETTERS if letter in plain}, **special)
