"""Several processes of this machine for one job: each takes a shard of the files, its share of the cores, and writes a file of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress

from jaxface.errors import UserError
from jaxface.launchers import core_numbers

OPTION = "--processes"


def commands(words: Sequence[str], count: int) -> list[list[str]]:
    """A command for each shard: the words of the whole job's, without how many processes there are."""
    kept = [
        word
        for index, word in enumerate(words)
        if word != OPTION and not word.startswith(f"{OPTION}=") and (index == 0 or words[index - 1] != OPTION)
    ]
    return [[sys.executable, "-m", "jaxface.predict", *kept, "--shard", f"{index}/{count}"] for index in range(count)]


def run_all(started: Sequence[Sequence[str]]) -> None:
    """Runs commands side by side, each on its part of the cores, to the end of the last. Raises UserError for those that fail."""
    cores = core_numbers()
    running = []
    for index, command in enumerate(started):
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
        if len(cores) >= len(started):
            with suppress(OSError, AttributeError):  # a system without: they share them all
                os.sched_setaffinity(process.pid, cores[index :: len(started)])
        running.append(process)
    try:
        statuses = [process.wait() for process in running]
    except BaseException:  # Ctrl-C, which they have seen, too
        for process in running:
            process.terminate()
        raise
    failed = [f"{index}/{len(started)} (status {status})" for index, status in enumerate(statuses) if status]
    if failed:
        raise UserError(f"shards {', '.join(failed)} did not end well; the same command goes on where they stopped")
