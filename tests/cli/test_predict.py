"""`python -m jaxface.predict` as a user calls it."""

import json
import os
import shutil
import signal
import subprocess
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest
from faces import write_photo, write_video

from jaxface.data.formats import Bounds
from jaxface.data.videos import read_frames
from jaxface.errors import run_command
from jaxface.predict import Options, main, predict, shard_of, shard_path


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    for index in range(40):
        write_photo(folder / f"{index // 10}" / f"{index}.jpg", seed=index, size=32)
    for index in (3, 17):
        (folder / f"{index // 10}" / f"{index}.jpg").write_bytes(b"broken")
    return folder


def call(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["predict", *map(str, words)])
    with pytest.raises(SystemExit) as ended:
        run_command(main)
    return ended.value.code


DIES = """
import os, signal, sys
from jaxface.data.formats import Bounds
from jaxface.data.videos import read_frames
from jaxface.errors import run_command
from jaxface.predict import main
from jaxface.prediction.journal import Journal

written, write = [], Journal.write

def die_in_the_middle_of_line(self, result):
    if len(written) == 7:
        self._file.write(b'{"path": "half a li')
        self._file.flush()
        os.kill(os.getpid(), signal.SIGKILL)
    written.append(result)
    write(self, result)

Journal.write = die_in_the_middle_of_line
run_command(main)
"""


def test_a_killed_job_goes_on_and_has_each_file_exactly_once(trained_run, photos, tmp_path, monkeypatch, capsys):
    out = tmp_path / "faces.jsonl"
    words = [str(trained_run), str(photos), "--faces", "whole", "--batch-size", "2", "--out", str(out)]
    assert subprocess.run([sys.executable, "-c", DIES, *words], check=False).returncode == -signal.SIGKILL
    assert out.read_bytes().endswith(b"half a li")
    assert call(monkeypatch, *words) == 0
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert sorted(row["path"] for row in rows) == sorted(map(str, photos.rglob("*.jpg")))
    assert sum(row["status"] == "unreadable" for row in rows) == 2
    assert "38 ok, 2 unreadable" in capsys.readouterr().err


def test_shards_together_have_each_file_once(trained_run, photos, tmp_path):
    out, seen = tmp_path / "faces.parquet", []
    for index in range(3):
        options = Options(trained_run, (str(photos),), out=out, shard=f"{index}/3", batch_size=8, find=whole())
        predict(options)
        seen += pq.read_table(shard_path(out, index, 3))["path"].to_pylist()
    assert sorted(seen) == sorted(map(str, photos.rglob("*.jpg")))


@pytest.mark.parametrize(
    ("word", "environment", "expected"),
    [
        (None, {}, (0, 1)),
        (None, {"SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "3"}, (3, 4)),
        (None, {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "1"}, (1, 2)),
        (None, {"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}, (0, 1)),
        ("1/3", {"SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "3"}, (1, 3)),
    ],
)
def test_a_process_knows_its_shard(word, environment, expected):
    assert shard_of(word, environment) == expected


def whole():
    from jaxface.prediction.options import FaceOptions

    return FaceOptions(faces="whole")


def test_videos_and_photos_are_drawn(trained_run, photos, tmp_path, monkeypatch, capsys):
    write_video(tmp_path / "clip.mp4", frames=6)
    words = [trained_run, tmp_path / "clip.mp4", photos / "0" / "1.jpg", "--faces", "whole", "--every", "2"]
    assert call(monkeypatch, *words, "--out", tmp_path / "o.csv", "--draw", tmp_path / "drawn") == 0
    assert "4 ok" in capsys.readouterr().err
    assert len((tmp_path / "o.csv").read_text().splitlines()) == 1 + 3 + 1 + 1
    drawn = {path.name: path for path in (tmp_path / "drawn").rglob("*") if path.is_file()}
    assert drawn.keys() == {"clip.mp4.mp4", "1.jpg.jpg"}
    *frames, end = read_frames(str(drawn["clip.mp4.mp4"]), Bounds())
    np.testing.assert_allclose([frame.seconds for frame in frames], np.arange(6) / 10, atol=2e-3)
    assert end.frames == 6


def test_a_video_in_a_folder_asks_for_a_file_of_results_before_it_is_drawn(trained_run, tmp_path, monkeypatch, capsys):
    write_video(tmp_path / "in/clip.mp4", frames=2)
    words = [trained_run, tmp_path / "in", "--faces", "whole", "--draw", tmp_path / "drawn"]
    assert call(monkeypatch, *words) == 2
    assert "--draw needs --out for videos" in capsys.readouterr().err
    assert call(monkeypatch, *words, "--out", tmp_path / "o.jsonl") == 0
    assert len(list((tmp_path / "drawn").rglob("*.mp4"))) == 1
    *rows, end = map(json.loads, (tmp_path / "o.jsonl").read_text().splitlines())
    assert [row["frame"] for row in rows] == [0, 1]
    assert (end["frame"], end["frames"], end["status"], end["error"]) == (None, 2, "whole video", None)


def test_names_that_are_not_utf_8_come_through_standard_input(trained_run, photos, tmp_path):
    name = os.fsencode(tmp_path) + b"/caf\xe9.jpg"
    shutil.copy(photos / "0/1.jpg", name)
    words = [sys.executable, "-m", "jaxface.predict", str(trained_run), "-", "--faces", "whole"]
    run = subprocess.run(words, input=name + b"\n", capture_output=True, check=False)
    assert run.returncode == 0, run.stderr
    row = json.loads(run.stdout)
    assert (os.fsencode(row["path"]), row["status"]) == (name, "ok")


def test_without_a_file_results_are_lines_on_standard_output(trained_run, photos, monkeypatch, capsys):
    assert call(monkeypatch, trained_run, photos / "0" / "*.jpg", "--faces", "whole") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [json.loads(line)["status"] for line in lines].count("ok") == 9


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["nowhere", "a.jpg"], "nowhere"),
        (["RUN"], "name photos"),
        (["RUN", "missing.jpg"], "no such file"),
        (["RUN", "PHOTOS", "--faces", "magic"], "no face detector 'magic'"),
        (["RUN", "PHOTOS", "--faces", "whole", "--out", "a.xlsx"], "the suffix says the format"),
        (["RUN", "PHOTOS", "--shard", "3/3"], "expected 0/3 to 2/3"),
        (["RUN", "PHOTOS", "--shard", "half"], "expected I/N"),
        (["RUN", "PHOTOS", "--every", "0"], "every 0"),
        (["RUN", "PHOTOS", "--serve"], "--serve takes no PATH"),
        (["RUN", "clip.mp4", "--draw", "x"], "--draw needs --out"),
    ],
)
def test_wrong_input_is_one_line_and_exit_status_2(trained_run, photos, tmp_path, monkeypatch, capsys, words, says):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.jpg").write_bytes(b"")
    (tmp_path / "clip.mp4").write_bytes(b"")
    known = {"RUN": trained_run, "PHOTOS": photos}
    assert call(monkeypatch, *(known.get(word, word) for word in words)) == 2
    printed = capsys.readouterr().err.strip()
    assert printed.startswith("error: ")
    assert says in printed
    assert "\n" not in printed


def test_pictures_are_drawn_for_a_job_that_was_finished_without(trained_run, photos, tmp_path, monkeypatch):
    words = [trained_run, photos / "0", "--faces", "whole", "--out", tmp_path / "o.csv"]
    assert call(monkeypatch, *words) == 0
    assert call(monkeypatch, *words, "--draw", tmp_path / "drawn") == 0
    assert len(list((tmp_path / "drawn").rglob("*.jpg"))) == 9


def test_another_number_of_faces_is_another_job(trained_run, photos, tmp_path, monkeypatch, capsys):
    words = [trained_run, photos / "0", "--out", tmp_path / "o.csv"]
    assert call(monkeypatch, *words) == 0
    assert call(monkeypatch, *words, "--most-faces", "1") == 2
    assert "another job (different: most_faces)" in capsys.readouterr().err
