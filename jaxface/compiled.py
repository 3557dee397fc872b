"""Compiled programs kept in the user's cache folder, so that a command that was run before answers at once."""

from __future__ import annotations

import hashlib
import os
import platform
import sys
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

SWITCH = "JAXFACE_COMPILED"
"""Environment variable: another folder, or "off"."""
MOST = 512e6
"""Bytes that all programs may have, of all versions together; the oldest go first."""


def use_compiled_programs() -> None:
    """Has JAX, which must not be imported yet, keep what it compiles and take what is kept.

    The folder's name holds the version of the compiler and the processor's abilities: a program is for these alone. What the user tells
    JAX itself (JAX_COMPILATION_CACHE_DIR, JAX_ENABLE_COMPILATION_CACHE) stands.
    """
    told = os.environ.get(SWITCH, "")
    if told == "off" or "JAX_COMPILATION_CACHE_DIR" in os.environ or "jax" in sys.modules:
        return
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser())
    folder = Path(told) if told else caches / "jaxface" / "compiled"
    with suppress(OSError, PackageNotFoundError, RuntimeError):  # no home, or none to write to: then nothing is kept
        own = folder / f"{version('jaxlib')}-{abilities()}"
        own.mkdir(parents=True, exist_ok=True)
        bound(folder, MOST)
        os.environ["JAX_COMPILATION_CACHE_DIR"] = str(own)
        os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
        os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")


def abilities() -> str:
    """A name for what this machine's processor can do: a home may be shared by machines of several kinds."""
    words = platform.machine()
    with suppress(OSError), open("/proc/cpuinfo") as file:
        words += next((line for line in file if line.startswith(("flags", "Features"))), "")
    return hashlib.sha256(words.encode()).hexdigest()[:12]


def bound(folder: Path, most: float) -> None:
    """Takes the oldest files below a folder away until the rest has at most so many bytes. Others may do the same at once."""
    found = []
    for path in folder.rglob("*"):
        with suppress(OSError):
            if path.is_file():
                found.append((path.stat().st_mtime, path.stat().st_size, path))
    total = sum(size for _, size, _ in found)
    for _, size, path in sorted(found):
        if total <= most:
            return
        with suppress(OSError):
            path.unlink()
            total -= size
