"""Every code block of the README and of the site does what the page says.

The blocks of a page are run one after another in one folder, which has what the reader is taken to have: a checkpoint, a run, photos.

- `python` is executed, in one namespace for the page; with a title (`python title="bitfit.py"`) it is a file that is written.
- `bash` is a command line that is carried out: the shell expands it, and our commands run in this process.
- `sh` needs weights, data sets or more time than a test has: its command lines are understood, option for option, and not carried out.
- `text`, `json` and `toml` are shown alone.
"""

import contextlib
import importlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import tyro
from registries import all_as_before
from shell import command_lines

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
SHOWN = ("text", "json", "toml")
BLOCK = re.compile(r'^```(?P<language>\w*)(?: +title="(?P<title>[^"]+)")?[^\n]*\n(?P<code>.*?)^```$', re.M | re.S)

DEVICES = re.compile(r"<!-- devices: (\d+) -->")
"""A page that says this is run in a process of its own that has so many devices."""


class Block(NamedTuple):
    """A fenced block of a page. `line` is its first line of code."""

    language: str
    title: str | None
    code: str
    line: int


class Understood(BaseException):
    """A command line has been parsed: no more is asked of it. Not an Exception, so that no command takes it for an error."""


def blocks_of(page):
    text = page.read_text()
    return [
        Block(found["language"], found["title"], found["code"], text[: found.start("code")].count("\n") + 1)
        for found in BLOCK.finditer(text)
    ]


def run_command(words, monkeypatch):
    """What `python WORDS` does, in this process; its exit status."""
    assert words[0] == "-m", f"python {' '.join(words)}"
    module = words[1]
    if importlib.util.find_spec(module).submodule_search_locations:
        module += ".__main__"
    monkeypatch.setattr(sys, "argv", words[1:])
    try:
        return importlib.import_module(module).main() or 0
    except SystemExit as ended:
        return ended.code or 0


@contextlib.contextmanager
def parsing_alone(monkeypatch):
    """Ends every command where its command line has been understood."""
    with monkeypatch.context() as patch:
        cli = tyro.cli

        def understand(*args, **options):
            cli(*args, **options)
            raise Understood

        patch.setattr(tyro, "cli", understand)
        yield patch


def run_page(page, monkeypatch):
    """Runs the blocks of a page in the present folder."""
    namespace = {"__name__": "page"}
    for block in blocks_of(page):
        run_block(block, namespace, Path.cwd(), page, monkeypatch)


def run_block(block, namespace, folder, page, monkeypatch):
    if block.title:
        (folder / block.title).write_text(block.code)
    elif block.language == "python":
        exec(compile("\n" * (block.line - 1) + block.code, str(page), "exec"), namespace)
    elif block.language == "bash":
        for words in command_lines(block.code, folder):
            assert run_command(words, monkeypatch) == 0, words
    elif block.language == "sh":
        for words in command_lines(block.code, folder):
            with parsing_alone(monkeypatch) as patch, contextlib.suppress(Understood):
                assert run_command(words, patch) == 0, words
    else:
        assert block.language in SHOWN, f"{page}:{block.line}: a block says what it is: python, bash, sh, {', '.join(SHOWN)}"


@pytest.fixture(scope="module")
def belongings(tmp_path_factory):
    """What a reader is taken to have, in small."""
    from reader import write_belongings

    return write_belongings(tmp_path_factory.mktemp("reader"))


@pytest.fixture
def as_before(monkeypatch, tmp_path):
    """What a page registers and imports is forgotten after it."""
    from reader import TOWERS

    from jaxface.models.variants import TEXT_VARIANTS, VARIANTS

    modules = set(sys.modules)
    monkeypatch.setattr("jaxface.imports._imported", {})
    with all_as_before():
        VARIANTS.add("PE-Small", TOWERS.vision)  # the checkpoint of a reader is of a known shape
        TEXT_VARIANTS.add("PE-Small", TOWERS.text)
        yield
    for name in set(sys.modules) - modules:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
@pytest.mark.usefixtures("as_before")
def test_every_block_of_a_page_runs(page, belongings, tmp_path, monkeypatch):
    if "import torch" in page.read_text():
        pytest.importorskip("torch")
    shutil.copytree(belongings, tmp_path, dirs_exist_ok=True, copy_function=os.link)
    for name in ("configs", "examples"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    devices = DEVICES.search(page.read_text())
    if devices:
        environment = os.environ | {"JAX_NUM_CPU_DEVICES": devices[1], "PYTHONPATH": str(ROOT / "tests")}
        command = [sys.executable, __file__, str(page)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
    else:
        run_page(page, monkeypatch)


def test_a_block_that_fails_or_says_an_unknown_option_is_noticed(tmp_path, monkeypatch):
    broken = [Block("python", None, "1 / 0\n", 1), Block("", None, "what is this\n", 1), Block("bash", None, "nonesuch\n", 1)]
    broken += [Block(language, None, "python -m jaxface.summary --bananas 3\n", 1) for language in ("bash", "sh")]
    for block in broken:
        with pytest.raises(Exception):  # noqa: B017 each in its own way
            run_block(block, {}, tmp_path, tmp_path, monkeypatch)


if __name__ == "__main__":
    run_page(Path(sys.argv[1]), pytest.MonkeyPatch())
