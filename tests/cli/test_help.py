"""`--help` answers at once: it imports nothing that the answer does not need."""

import json
import subprocess
import sys

import pytest

HEAVY = {"scipy", "sklearn", "matplotlib", "torch", "tensorflow_datasets", "grain", "tensorboardX", "safetensors", "onnx", "fastapi", "av"}
ARRAYS = {"jax", "flax", "optax"}
SCRIPT = """
import json, runpy, sys
module, *sys.argv[1:] = sys.argv[1:]
try:
    runpy.run_module(module, run_name="__main__", alter_sys=True)
except SystemExit as end:
    assert not end.code, end.code
print(json.dumps(sorted({name.partition(".")[0] for name in sys.modules})))
"""


@pytest.mark.parametrize(
    ("command", "needed"),
    [
        ("jaxface.train", ARRAYS),
        ("jaxface.summary", ARRAYS),
        ("jaxface.prepare", {"pyarrow", "av"}),
        ("jaxface.predict", {"av"}),
        *((f"jaxface.{name}", set()) for name in ("evaluate", "zeroshot", "compare", "export", "bench", "report")),
        ("weights_convert", set()),
    ],
)
def test_help_needs_no_heavy_package(command, needed):
    words = [sys.executable, "-c", SCRIPT, command, "--help"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    *shown, imported = done.stdout.splitlines()
    assert any(line.startswith(("usage", "python -m")) for line in shown)
    assert not set(json.loads(imported)) & ((HEAVY | ARRAYS | {"pyarrow"}) - needed)
