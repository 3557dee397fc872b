"""What a user's type checker sees of the package, and what `dir` shows."""

import ast
import re
import subprocess
import sys
import typing
from pathlib import Path

import pytest
from ty import find_ty_bin

import jaxface
from jaxface.adapters.options import AdapterOptions, Keywords
from jaxface.weights import EncoderKeywords, load_encoder

HERE = Path(__file__).parent


def complaints(name):
    """The lines of a file that the type checker has an error in."""
    command = [find_ty_bin(), "check", "--python", sys.prefix, "--output-format", "concise", HERE / name]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, cwd=HERE.parents[1], timeout=120)
    assert done.returncode in (0, 1), done.stderr
    return {int(line) for line in re.findall(rf"{name}:(\d+):\d+: error", done.stdout)}


def test_public_functions_have_types_and_every_wrong_one_is_reported():
    statements = ast.parse((HERE / "wrong.py").read_text()).body
    assert complaints("wrong.py") == {statement.lineno for statement in statements[2:]}
    assert complaints("right.py") == set()


def test_keywords_are_the_fields_and_parameters_that_they_stand_for():
    assert typing.get_type_hints(Keywords) == {n: h for n, h in typing.get_type_hints(AdapterOptions).items() if n != "factor"}
    hints = typing.get_type_hints(load_encoder)
    assert typing.get_type_hints(EncoderKeywords) == {name: hint for name, hint in hints.items() if name not in ("path", "return")}


def test_the_package_shows_its_public_names_alone():
    assert dir(jaxface) == sorted(dir(jaxface))
    for name in dir(jaxface):
        assert getattr(jaxface, name) is not None
    assert not [name for name in dir(jaxface) if name.startswith("_") and name != "__version__"]
    with pytest.raises(AttributeError, match="no attribute 'bananas'"):
        jaxface.bananas  # noqa: B018
