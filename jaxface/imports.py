"""Files of a user's own that register methods, kernels, tasks, losses, sources: run where the user names them, and nowhere else.

No run, data set or checkpoint has code run by being opened. What it needs it names, with a hash; `--import FILE.py` runs that file.
"""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from jaxface.errors import UserError

IMPORT, TRUST = "--import", "--trust"
IMPORT_HELP = f"""
every command also takes
  {IMPORT} FILE.py    run this file first: it registers methods, kernels, tasks, losses, ... of your own (repeatable)
  {TRUST} FOLDER      run the files in there that a run asks for, if they are, by hash, the very ones it was trained with (repeatable)"""

_imported: dict[str, Path] = {}
"""Files that were run, by their SHA-256, in that order."""
_trusted: list[Path] = []


def take_imports(words: Sequence[str]) -> list[str]:
    """The words of a command line without `--import FILE` and `--trust FOLDER`; the files have been run, the folders are remembered.

    Raises UserError for a file that cannot be run, and a folder that is not there.
    """
    left: list[str] = []
    rest = iter(words)
    for word in rest:
        option, equals, value = word.partition("=")
        if option not in (IMPORT, TRUST):
            left.append(word)
            continue
        value = value if equals else next(rest, "")
        if not value:
            raise UserError(f"{option} needs a {'file' if option == IMPORT else 'folder'}")
        if option == IMPORT:
            import_file(value)
        elif Path(value).is_dir():
            _trusted.append(Path(value))
        else:
            raise UserError(f"{TRUST} {value}: no such folder")
    return left


def import_file(path: str | Path) -> None:
    """Runs a Python file, once in a process, so that what it registers is known. Raises UserError if it cannot be run."""
    path = Path(path).resolve()
    if path.suffix != ".py" or not path.is_file():
        raise UserError(f"{IMPORT} {path}: {'not a Python file' if path.exists() else 'no such file'}; expected FILE.py")
    digest = _digest(path)
    if digest not in _imported:
        run_file(path, f"jaxface_import_{path.stem}_{digest[:8]}")
        _imported[digest] = path


def import_files(paths: Iterable[Path]) -> None:
    """Runs those of the files that this process has not run yet."""
    for path in paths:
        import_file(path)


def run_file(path: Path, name: str) -> ModuleType:
    """The module of a Python file under a name of its own. Raises UserError if it cannot be run."""
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise UserError(f"{path}: not a Python file")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except Exception as error:
        del sys.modules[name]
        raise UserError(f"{path}: {type(error).__name__}: {error}") from error
    return module


def remember(path: Path) -> None:
    """Counts a file among the imported ones that was run in another way: a configuration that registers something."""
    _imported[_digest(path)] = path.resolve()


def imported_files() -> tuple[Path, ...]:
    """The files that were run, for other processes to run as well."""
    return tuple(_imported.values())


def imported() -> dict[str, str]:
    """The SHA-256 of the files that were run, by their names."""
    return {path.name: digest for digest, path in _imported.items()}


def require_imports(needed: Mapping[str, str], who: str) -> None:
    """Sees to it that the files which something needs were run: by `--import`, from a trusted folder, or by an `import` of the program.

    Says so where a file of that name was run and is another one.

    Args:
      needed: SHA-256 by name.
      who: needs them, for messages.

    Raises UserError that names the first one that is missing.
    """
    for name, digest in needed.items():
        if digest in _imported or _is_loaded(name, digest):
            continue
        trusted = next((path for folder in _trusted for path in sorted(folder.rglob(Path(name).name)) if _digest(path) == digest), None)
        if trusted is not None:
            import_file(trusted)
        elif name in imported():
            print(f"note: {who} was made with another {name} (SHA-256 {digest[:12]}...) than the one given", file=sys.stderr, flush=True)
        else:
            raise UserError(f"{who} needs {name} (SHA-256 {digest[:12]}...), code of its maker's own: add {IMPORT} {name} if you trust it")


def _is_loaded(name: str, digest: str) -> bool:
    files = (getattr(module, "__file__", None) for module in list(sys.modules.values()))
    return any(_digest(Path(file)) == digest for file in files if file and Path(file).name == name and Path(file).is_file())


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


class Imported:
    """What goes to worker processes: what the user's files register is known there, too."""

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"user_files": imported_files()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        import_files(state["user_files"])
        self.__dict__.update((name, value) for name, value in state.items() if name != "user_files")
