"""jaxface COMMAND ...: the commands, each also `python -m jaxface.COMMAND`; `jaxface COMMAND --help` says what one takes."""

from __future__ import annotations

import ast
import importlib.util
import os
import runpy
import sys
from pathlib import Path

COMMANDS = {
    "train": "jaxface.train",
    "evaluate": "jaxface.evaluate",
    "report": "jaxface.report",
    "predict": "jaxface.predict",
    "prepare": "jaxface.prepare",
    "export": "jaxface.export",
    "assemble": "jaxface.assemble",
    "summary": "jaxface.summary",
    "zeroshot": "jaxface.zeroshot",
    "compare": "jaxface.compare",
    "bench": "jaxface.bench",
    "convert": "weights_convert",
}
"""The module that each command runs."""


def main() -> int:
    """Runs the command named first with the words behind it."""
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in ("-h", "--help"):
        print(__doc__)
        for command, module in COMMANDS.items():
            print(f"  {command:10} {about(module)}")
        return 0 if len(sys.argv) > 1 else 2
    if name == "--version":
        from jaxface import __version__

        print(__version__)
        return 0
    if name not in COMMANDS:
        print(f"error: no command {name!r}; known: {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    module = COMMANDS[name]
    if sys.path[0] != os.getcwd():  # what it starts shall look for modules in the folder that it was called in as little as it does
        os.environ.setdefault("PYTHONSAFEPATH", "1")
    sys.argv = [f"jaxface {name}", *sys.argv[2:]]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
    return 0


def about(module: str) -> str:
    """What a command's first line says it does, read without running it."""
    spec = importlib.util.find_spec(module)
    source = Path(spec.origin or "") if spec is not None else Path()
    path = source.with_name("__main__.py") if source.name == "__init__.py" else source
    return (ast.get_docstring(ast.parse(path.read_text())) or "").splitlines()[0].partition(": ")[2]


if __name__ == "__main__":
    sys.exit(main())
