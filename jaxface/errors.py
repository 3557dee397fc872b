"""Errors that a user can cause, and how a command ends on them."""

from __future__ import annotations

import contextlib
import io
import os
import re
import sys
from collections.abc import Callable


class UserError(Exception):
    """Wrong input: the message is one line that says what was wrong, where, and what to do."""


def printable(name: str) -> str:
    """A file's name as text: bytes that are no UTF-8 are written out as escapes."""
    return name.encode(errors="surrogateescape").decode(errors="backslashreplace")


CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


def one_line(text: str) -> str:
    """Text for a terminal: line feeds and whatever else would move its cursor (names of files may have them) are written out as escapes."""
    return CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), printable(text))


LONGEST = 2000
"""Characters of a line for people: what a file holds may be of any length."""


def tell(line: str) -> None:
    """Prints a line for people, beside what the command is asked for."""
    line = one_line(line)
    print(line if len(line) <= LONGEST else f"{line[: LONGEST // 2]} ... {line[-LONGEST // 4 :]}", file=sys.stderr, flush=True)


def os_line(error: OSError, path: object = None, doing: str = "used") -> str:
    """One line for what the system refused: the file, what was to be done with it, and why.

    Args:
      path: the file that was asked for, where that is not the one that the system names.
      doing: "read", "written".
    """
    name = error.filename if path is None else path
    why = error.strerror or " ".join(str(error).split()) or type(error).__name__
    return why if name is None else f"{printable(str(name))}: cannot be {doing}: {why}"


BROKEN_PIPE = 141
"""What a shell sees of a command whose reader has gone: 128 and the signal SIGPIPE."""


def run_command(main: Callable[[], int | None]) -> None:
    """Runs a command's `main` and exits: 0 for success, 2 for wrong input and for what the system refuses, 130 for Ctrl-C, 141 where
    nobody reads what is printed; without a traceback for any of them."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # names are bytes, and need be no Unicode
    try:
        status = main()
        sys.stdout.flush()
    except UserError as error:
        status = _complain(f"error: {error}")
    except BrokenPipeError:
        status = BROKEN_PIPE
    except OSError as error:
        status = _complain(f"error: {os_line(error)}")
    except MemoryError:
        status = _complain("error: out of memory")
    except KeyboardInterrupt:
        status = _complain("stopped", 130)
    _close_output()
    sys.exit(status or 0)


def _complain(line: str, status: int = 2) -> int:
    """Prints a line for people, whatever bytes are in it, and if nobody reads it, nothing."""
    with contextlib.suppress(OSError):
        tell(line)
    return status


def _close_output() -> None:
    """Lets Python end without words about output that it cannot be rid of."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            with contextlib.suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
