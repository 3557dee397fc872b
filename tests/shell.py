"""Which calls of python a shell makes of a piece of code: variables, loops and pipes are the shell's business."""

import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[1]

RECORDER = """
note() { for word in "$@"; do printf '%s\\0' "$word" >> "$NOTES"; done; printf '\\n\\0' >> "$NOTES"; }
python() { note "$@"; }
make() { sed -n 's/^\\([a-z]*\\):.*/\\1/p' "$ROOT/Makefile" | grep -qx "$1"; }
pip() { :; }; git() { :; }; find() { :; }; curl() { :; }; taskset() { shift 2; "$@"; }; srun() { "$@"; }
"""
"""What a shell does in place of commands: it notes ours, and leaves the rest undone; a target of make must be there."""


def command_lines(code, folder):
    """The words of every call of python, without the first, one list a call."""
    notes = folder / ".notes"
    notes.write_bytes(b"")
    environment = {"PATH": "/usr/bin:/bin", "NOTES": str(notes), "ROOT": str(ROOT)}
    done = subprocess.run(["bash", "-ec", RECORDER + code], cwd=folder, env=environment, capture_output=True, text=True, timeout=20)
    assert done.returncode == 0, done.stderr
    return [call.strip("\0").split("\0") for call in notes.read_bytes().decode().split("\n\0") if call]
