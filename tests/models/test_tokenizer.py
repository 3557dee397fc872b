import random
import subprocess
import sys

import numpy as np
import pytest

from jaxface.errors import UserError
from jaxface.models.tokenizer import encode, tokenize
from jaxface.originals.reference import import_torch

PIECES = (
    "abcdefghijklmnopqrstuvwxyz ABCDEFGHIJ  ",
    "éßñçÅØœÆ漢字かなカナ한국어العربيةРусскийελληνικά",
    "😀👩‍👩‍👧🇮🇹✨🧑🏽‍🚀♥",
    "\t\n\r \u00a0\u2003\u200b\x1c\x85\x00",
    "0123456789½Ⅷ²",
    "!?.,;:-_()[]{}'\"#@$%^&*<>/\\|`~",
    ("&amp;", "&lt;b&gt;", "&eacute;", "&#128512;", "&amp;amp;", "&nbsp;", "&unknown;"),
    ("'s", "'LL", "don't", "they've", "I'm", " hello world ", "â€™", "Ã©", "ﬁ", "<start_of_text>", "<END_OF_TEXT>"),
    ("a photo of a person between 20-29 years old ",),
)


def strings(count, seed=0):
    """Texts of 0 to 60 pieces: words, scripts, emoji, white space, entities, broken encodings, and longer than any context."""
    chosen = random.Random(seed)
    for _ in range(count):
        yield "".join(chosen.choice(chosen.choice(PIECES)) for _ in range(chosen.randrange(61)))


def test_two_thousand_strings_have_the_ids_that_open_clip_gives():
    _, open_clip = import_torch("open_clip")
    texts = ["", " ", *strings(1998)]
    ours = tokenize(texts, 32)
    theirs = open_clip.SimpleTokenizer(context_length=32)(texts).numpy()
    assert (ours != 0).all(axis=1).sum() > 100  # many are cut
    np.testing.assert_array_equal(ours, theirs)


def test_a_prompt_has_the_ids_of_the_published_tokenizer():
    ids = tokenize("A photo of a person between 20-29 years old")
    assert ids.shape == (1, 32)
    assert ids.dtype == np.int32
    assert ids[0, :12].tolist() == [49406, 320, 1125, 539, 320, 2533, 1957, 273, 271, 268, 273, 280]
    assert ids[0].argmax() == 14


def test_a_text_too_long_is_cut_and_ends_in_the_end_mark():
    ids = tokenize(["word " * 100, "word"], context_length=8)
    assert ids[0].tolist()[-1] == 49407
    assert (ids[0] != 0).all()
    assert ids[1].tolist() == [49406, encode("word")[0], 49407, 0, 0, 0, 0, 0]


def test_a_context_without_room_is_refused():
    with pytest.raises(UserError, match="context_length 1: expected 2"):
        tokenize("a", context_length=1)


def test_tokenizing_and_converting_need_no_torch_and_no_jax():
    code = "import sys, jaxface, weights_convert.checkpoint; jaxface.tokenize('a'); print(*{'torch', 'jax', 'flax'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == ""
