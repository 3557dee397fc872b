import os
import subprocess
import sys

import pytest
from faces import write_raf_db

from jaxface.data.engines import ENGINES, register_engine
from jaxface.data.preparation import prepare
from jaxface.data.shards import write_shard
from jaxface.errors import UserError


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("engines")
    write_raf_db(folder / "raf", train=100, test=70)
    prepare("raf_db", folder / "raf", folder / "out")
    return folder


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_an_engine_of_ones_own_writes_the_same_in_any_order(base, tmp_path):
    with ENGINES.temporarily():

        @register_engine("backwards")
        def backwards(shards, workers, done):
            for shard in reversed(shards):
                write_shard(shard)
                done(shard)

        prepare("raf_db", base / "raf", tmp_path / "out", engine="backwards")
    assert content(tmp_path / "out") == content(base / "out")


def test_ray_on_this_machine_writes_what_one_process_writes(base, tmp_path):
    pytest.importorskip("ray")
    prepare("raf_db", base / "raf", tmp_path / "out", engine="ray", workers=2)
    assert content(tmp_path / "out") == content(base / "out")


def test_ray_that_is_not_installed_is_one_clear_line(base, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"pip install 'jaxface\[ray\]'"):
        prepare("raf_db", base / "raf", tmp_path / "out", engine="ray")


DEATH = """
import os, sys
from pathlib import Path
from jaxface.data import cropping
from jaxface.data.faces import register_detector
from jaxface.errors import run_command
from jaxface.prepare import main

@register_detector("deadly")
class Deadly:
    def __init__(self, files, threshold=0.5): ...
    def __call__(self, image):
        os.kill(os.getpid(), 9)

if __name__ == "__main__":
    run_command(main)
"""


def test_a_worker_that_dies_ends_the_run_with_one_line_and_does_not_hang_it(base, tmp_path):
    script = tmp_path / "deadly.py"
    script.write_text(DEATH)
    words = ["raf_db", str(base / "raf"), "--out", str(tmp_path / "out"), "--crop.detector", "deadly", "--workers", "2"]
    done = subprocess.run(
        [sys.executable, script, *words], capture_output=True, text=True, timeout=120, env={**os.environ, "PYTHONPATH": os.getcwd()}
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: a worker process died")
