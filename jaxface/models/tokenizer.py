"""CLIP's byte-pair tokenizer: text to the ids that the text tower reads. Needs no torch.

The vocabulary file lists 48,894 merges in the order of their priority (Sennrich et al. 2016, "Neural Machine Translation of Rare
Words with Subword Units"); ids count the 256 bytes, the 256 bytes at the end of a word, the merges, and the two marks of start and end.
"""

from __future__ import annotations

import gzip
import html
from collections.abc import Sequence
from functools import lru_cache
from importlib.resources import files
from itertools import pairwise
from typing import Annotated

import ftfy
import numpy as np
import regex

from jaxface.errors import UserError
from jaxface.models.sentence_pieces import SentencePieces
from jaxface.ranges import PathLike, Range, checked

MERGES = 48_894
START, END = 49_406, 49_407
MARKS = {"<start_of_text>": START, "<end_of_text>": END}
WORD = regex.compile(
    "|".join([*MARKS, "'s|'t|'re|'ve|'m|'ll|'d", r"[\p{L}]+", r"[\p{N}]", r"[^\s\p{L}\p{N}]+"]),
    regex.IGNORECASE,
)
"""A mark, an English ending, letters, one digit, or other signs."""


@checked
def tokenize(texts: str | Sequence[str], context_length: Annotated[int, Range(2, 65_536)] = 32, file: PathLike | None = None) -> np.ndarray:
    """Texts as ids [B, context_length], int32: start, text, end, zeros; a longer text is cut and its last id is the end.

    Text is repaired (ftfy), freed of HTML entities, put in lower case, and runs of white space become one blank.

    Args:
      file: of a tokenizer of sentence pieces, SigLIP's, in CLIP's place: see `jaxface.models.sentence_pieces.SentencePieces`.

    Raises UserError if the context cannot hold start and end, and as that does.
    """
    texts = [texts] if isinstance(texts, str) else list(texts)
    for text in texts:
        if not isinstance(text, str):
            raise UserError(f"texts: expected texts, got {type(text).__name__}")
    if file is not None:
        return SentencePieces(file)(texts, context_length)
    ids = np.zeros((len(texts), context_length), np.int32)
    for row, text in zip(ids, texts, strict=True):
        words = [START, *encode(text), END][:context_length]
        words[-1] = END
        row[: len(words)] = words
    return ids


def encode(text: str) -> list[int]:
    """A text's ids, without start and end."""
    clean = html.unescape(html.unescape(ftfy.fix_text(text))).strip()
    words = WORD.findall(" ".join(clean.split()).lower())
    return [token for word in words for token in _word_ids(word)]


@lru_cache(65_536)
def _word_ids(word: str) -> tuple[int, ...]:
    """The ids of one word: its bytes, neighbours joined in the order of the merges as long as one applies."""
    if word in MARKS:
        return (MARKS[word],)
    ids, ranks = _vocabulary()
    letters = _byte_letters()
    parts = [letters[byte] for byte in word.encode()]
    parts[-1] += "</w>"
    while len(parts) > 1:
        best = min(pairwise(parts), key=lambda pair: ranks.get(pair, MERGES))
        if best not in ranks:
            break
        parts = _join(parts, best)
    return tuple(ids[part] for part in parts)


def _join(parts: list[str], pair: tuple[str, str]) -> list[str]:
    """Every occurrence of the pair as one part, from the left."""
    joined: list[str] = []
    skip = False
    for left, right in pairwise([*parts, ""]):
        if skip:
            skip = False
        elif (left, right) == pair:
            joined.append(left + right)
            skip = True
        else:
            joined.append(left)
    return joined


@lru_cache(1)
def _byte_letters() -> tuple[str, ...]:
    """A printable letter for every byte: itself where it is one in Latin-1, else the next code point from 256 on."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = iter(range(256, 512))
    return tuple(chr(byte) if byte in printable else chr(next(others)) for byte in range(256))


@lru_cache(1)
def _vocabulary() -> tuple[dict[str, int], dict[tuple[str, str], int]]:
    """The id of every part, and the rank of every merge."""
    lines = gzip.decompress(files("jaxface").joinpath("models/bpe_simple_vocab_16e6.txt.gz").read_bytes()).decode().split("\n")
    merges = [(first, second) for first, second in map(str.split, lines[1 : 1 + MERGES])]
    letters = sorted(_byte_letters(), key=lambda letter: (ord(letter) >= 256, ord(letter)))
    parts = [*letters, *(letter + "</w>" for letter in letters), *("".join(merge) for merge in merges)]
    return {part: i for i, part in enumerate(parts)}, {merge: i for i, merge in enumerate(merges)}
