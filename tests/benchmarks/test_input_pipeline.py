import importlib.util
import json
import subprocess
import sys

import pytest


@pytest.mark.skipif(importlib.util.find_spec("torchvision") is None, reason="torchvision is not installed")
def test_the_input_benchmark_measures_every_size_and_torchvision_in_one_run(tmp_path):
    sizes = ["--records", "20", "60", "--face-size", "32", "--image-size", "48", "--batch-size", "8"]
    words = [*sizes, "--workers", "1", "--seconds", "0.2", "--rounds", "1", "--folder", str(tmp_path), "--against", "torch", "--json"]
    # a process of its own: torch's loader forks, which one with JAX's threads must not
    done = subprocess.run([sys.executable, "-m", "jaxface.bench", "input", *words], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["case"] for row in rows] == ["jaxface, 20 records", "jaxface, 60 records", "torchvision v2"]
    for row in rows:
        assert row["images_per_second"] > 0
        assert row["memory_bytes"] > 1e7
        assert row["cores_for_a_gpu"] == pytest.approx(400 / row["per_core"])
        assert row["ratio"] == pytest.approx(row["images_per_second"] / rows[-1]["images_per_second"])
