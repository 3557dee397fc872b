"""Errors that a user can cause, and how a command ends on them."""

from __future__ import annotations

import sys
from collections.abc import Callable


class UserError(Exception):
    """Wrong input: the message is one line that says what was wrong, where, and what to do."""


def run_command(main: Callable[[], int | None]) -> None:
    """Runs a command's `main` and exits: 0 for success, 2 for wrong input, 130 for Ctrl-C, without a traceback for either."""
    try:
        status = main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        status = 2
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        status = 130
    sys.exit(status or 0)
