"""Tokenizers of sentence pieces, as SigLIP's text towers read them: the user's own `tokenizer.json`, by the library `tokenizers`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxface.errors import UserError
from jaxface.files import read_object

NAME, BESIDE = "tokenizer.json", "tokenizer_config.json"
"""As Hugging Face's libraries write them into a checkpoint's folder."""
LIMIT = 64 * 2**20
"""Bytes of the latter, which may describe every added token."""


class SentencePieces:
    """A tokenizer from its file, for texts in lower case, which is what SigLIP and SigLIP 2 were trained with.

    What stands before and behind a text's pieces is as the file says. Ids are padded with the padding token, and on the side, that
    `tokenizer_config.json` beside it says or, where there is none, the file itself.

    Args:
      path: of `tokenizer.json`, or of a folder with it.

    Raises UserError without the library, for a file that holds no tokenizer, or one that does not say its padding token.
    """

    def __init__(self, path: str | Path) -> None:
        try:
            from tokenizers import Tokenizer
        except ImportError:
            raise UserError("a tokenizer's file needs tokenizers: pip install 'jaxface[siglip]'") from None
        self.path, *self.beside = files_of(path)
        try:
            self.tokenizer = Tokenizer.from_file(str(self.path))
        except Exception as error:  # the library raises nothing more special
            hint = ", not sentencepiece's own model" if self.path.suffix == ".model" else ""
            raise UserError(f"{self.path}: no tokenizer: expected a {NAME}{hint} ({' '.join(str(error).split())[:160]})") from None
        self.pad = self._padding()

    def _padding(self) -> dict[str, Any]:
        """The options of `Tokenizer.enable_padding` but for the length."""
        said = self.tokenizer.padding or {}
        config = read_object(self.beside[0], limit=LIMIT) if self.beside else {}
        token = config.get("pad_token") or said.get("pad_token")
        token = token.get("content") if isinstance(token, dict) else token
        number = self.tokenizer.token_to_id(token) if isinstance(token, str) else None
        if number is None:
            found = f"{token!r}, which it does not have" if token else "none"
            raise UserError(f"{self.path}: its padding token is {found}: expected `pad_token` in a {BESIDE} beside it")
        side = config.get("padding_side") or said.get("direction") or "right"
        if side not in ("left", "right"):
            raise UserError(f"{BESIDE} beside {self.path}: padding_side is {side!r}: expected left or right")
        return {"pad_id": number, "pad_token": token, "direction": side}

    def __call__(self, texts: Sequence[str], context: int) -> np.ndarray:
        """Texts as ids [B, context], int32. Raises UserError if the context cannot hold what stands before and behind every text."""
        added = self.tokenizer.num_special_tokens_to_add(False)
        if added >= context:
            raise UserError(f"{self.path}: a context of {context} ids has no room for a text: it adds {added} to each")
        if odd := next((text for text in texts if any("\ud800" <= letter <= "\udfff" for letter in text)), None):
            raise UserError(f"texts: {odd[:60]!r} holds half a character (a lone surrogate)")
        self.tokenizer.enable_truncation(context)
        self.tokenizer.enable_padding(length=context, **self.pad)
        return np.array([found.ids for found in self.tokenizer.encode_batch([text.lower() for text in texts])], np.int32)


def files_of(path: str | Path) -> list[Path]:
    """A tokenizer's file, and what is to be heeded beside it. Raises UserError if it is not there."""
    path = Path(path) / NAME if Path(path).is_dir() else Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file; expected a {NAME} as Hugging Face's libraries write one")
    return [path, *(beside for beside in [path.with_name(BESIDE)] if beside.is_file())]
