"""What docs/thesis.md says of defaults and counts is what the program has."""

import ast
import re
from functools import cache, reduce
from pathlib import Path

import pytest

from jaxface import summary
from jaxface.runs.command_line import read_command_line
from jaxface.runs.config import Config

PAGE = (Path(__file__).parents[2] / "docs" / "thesis.md").read_text()
ROWS = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in PAGE.splitlines() if line.startswith("| ")]
DEFAULTS = [row for row in ROWS if len(row) == 4 and re.fullmatch(r"`[\w.]+`", row[0]) and "." in row[0] + "."]
COUNTS = [row for row in ROWS if not row[0].startswith("`") and re.fullmatch(r"[\d,]+", row[min(2, len(row) - 1)])]


def test_the_page_has_the_rows_that_are_checked():
    assert len(DEFAULTS) > 25
    assert len(COUNTS) == 12


@pytest.mark.parametrize("row", DEFAULTS, ids=lambda row: row[0].strip("`"))
def test_a_default_is_the_programs(row):
    value = reduce(getattr, row[0].strip("`").split("."), Config())
    assert value == ast.literal_eval(row[2])


@cache
def found(method, *words):
    return summary.describe(read_command_line(["--config", f"configs/{method}.py", *words]))


@pytest.mark.parametrize("row", COUNTS, ids=lambda row: row[0])
def test_a_count_is_the_summarys(row):
    which, _, name = row[0].rpartition(": ")
    method, _, tasks = (which or "lp, all").partition(", ")
    described = found(method, *(("--tasks", "age") if tasks == "age" else ()))
    value = {**described["parts"], **described["model"]}[name]
    assert value == int(row[2].replace(",", ""))
    shares = {"lp": "0.33 %", "ap": "4.29 %", "ft4": "20.13 %", "dora": "8.47 %"}
    if name == "trained" and method in shares:
        assert row[3].startswith(shares[method])
        assert f"{described['model']['trained, %']:.2f} %" == shares[method]
