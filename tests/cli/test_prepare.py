import json
import subprocess
import sys

import pytest
from faces import write_raf_db


def run(*words):
    return subprocess.run([sys.executable, "-m", "jaxface.prepare", *map(str, words)], capture_output=True, text=True, timeout=120)


def test_a_prepared_set_is_summed_up_in_a_table_and_a_file(tmp_path):
    write_raf_db(tmp_path / "raf")
    (tmp_path / "raf/basic/Image/aligned/train_00002_aligned.jpg").write_bytes(b"x")
    done = run("raf_db", tmp_path / "raf", "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert "surprise" in done.stdout
    assert "left out train_00002.jpg: cannot be decoded as an image" in done.stderr
    assert json.loads((tmp_path / "out/summary.json").read_text())["dropped"]["count"] == 1


def test_drawn_faces_can_be_prepared_by_command(tmp_path):
    done = run("synthetic", "charcoal", "--out", tmp_path / "out", "--drawn.count", 12, "--drawn.test-count", 4, "--drawn.size", 16)
    assert done.returncode == 0, done.stderr
    assert "4 test" in done.stdout


@pytest.mark.parametrize(
    ("make", "words", "message"),
    [
        (None, ["raf_db", "F"], "no folder"),
        ("empty", ["raf_db", "F"], "is empty; expected basic"),
        ("stray", ["raf_db", "F"], "list_patition_label.txt is missing: raf_db needs"),
        ("label", ["raf_db", "F"], "list_patition_label.txt:2: emotion '8' is out of range (1 to 7)"),
        ("line", ["raf_db", "F"], "list_patition_label.txt:2: expected `train_00001.jpg 5`, got 'nonsense'"),
        ("broken", ["raf_db", "F"], "train images can be used (train_000"),
        ("good", ["rafdb", "F"], "no source 'rafdb'; known: celeba_hq, fairface, lagenda, manifest, raf_db, synthetic, utkface, vggface2"),
        ("good", ["raf_db", "F", "--outt", "x"], "--outt"),
        ("good", ["synthetic", "crayon"], "no drawing style 'crayon'"),
    ],
)
def test_wrong_input_is_one_line_exit_status_two_and_nothing_written(tmp_path, make, words, message):
    folder = tmp_path / "F"
    if make is not None:
        folder.mkdir()
    if make not in (None, "empty"):
        folder.joinpath("readme").write_text("x")
    if make in ("label", "line", "broken", "good"):
        write_raf_db(folder)
    table = folder / "basic/EmoLabel/list_patition_label.txt"
    if make in ("label", "line"):
        table.write_text("train_00001.jpg 5\n" + {"label": "train_00002.jpg 8", "line": "nonsense"}[make] + "\n")
    if make == "broken":
        for path in (folder / "basic/Image/aligned").iterdir():
            path.write_bytes(b"")
    done = run(*[folder if word == "F" else word for word in words], "--out", tmp_path / "out")
    assert done.returncode == 2, done.stderr
    lines = [line for line in done.stderr.strip().splitlines() if "images/s" not in line]
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("error: ")
    assert message in lines[0]
    assert {path.name for path in tmp_path.iterdir()} <= {"F"}
