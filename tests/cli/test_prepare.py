import json
import re
import subprocess
import sys

import cv2
import pytest
from faces import write_manifest, write_raf_db

from jaxface.data.preparation import prepare
from jaxface.data.records import read_labels
from jaxface.errors import UserError
from jaxface.prepare import main


def run(*words):
    return subprocess.run([sys.executable, "-m", "jaxface.prepare", *map(str, words)], capture_output=True, text=True, timeout=120)


def called(monkeypatch, *words):
    """The same in this process."""
    monkeypatch.setattr(sys, "argv", ["prepare", *map(str, words)])
    return main()


def test_a_prepared_set_is_summed_up_in_a_table_and_a_file(tmp_path, monkeypatch, capsys):
    write_raf_db(tmp_path / "raf")
    (tmp_path / "raf/basic/Image/aligned/train_00002_aligned.jpg").write_bytes(b"x")
    called(monkeypatch, "raf_db", tmp_path / "raf", "--out", tmp_path / "out")
    printed = capsys.readouterr()
    assert "surprise" in printed.out
    assert "left out train_00002.jpg: cannot be decoded as an image" in printed.err
    assert json.loads((tmp_path / "out/summary.json").read_text())["dropped"]["count"] == 1
    assert cv2.imread(str(tmp_path / "out/summary.png")).shape[1] > 800


def test_a_page_shows_augmented_batches_with_labels_and_the_classes_before_and_after_sampling(tmp_path, monkeypatch, capsys):
    write_manifest(tmp_path)
    rows = [f"photos/{index}.jpg,female,{'test' if index > 18 else 'train'}" for index in range(24)]
    (tmp_path / "manifest.csv").write_text("\n".join(["path,gender,split", *rows]) + "\n")
    prepare("manifest", tmp_path, tmp_path / "out")
    monkeypatch.setattr(sys, "argv", ["prepare", "--look", str(tmp_path / "out"), "--count", "6", "--image-size", "32"])
    main()
    page = (tmp_path / "out/look.html").read_text()
    assert capsys.readouterr().out.strip() == str(tmp_path / "out/look.html")
    assert page.count("data:image/jpeg;base64,") == 6
    assert (page.count("<li>female</li>"), page.count("<li>male</li>")) == (6, 0)
    labels = read_labels(tmp_path / "out", "train")["gender"]
    assert f'<th scope="row">female</th><td>{(labels == 1).sum()}</td>' in page
    assert "disgust" not in page  # no record has an emotion: no table of them
    monkeypatch.setattr(sys, "argv", ["prepare", "--look", str(tmp_path)])
    with pytest.raises(UserError, match="is not a prepared folder"):
        main()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--crop.detector", "dlib"], "no face detector 'dlib'; known: whole, ssd, yunet"),
        (["--crop.level"], "need --crop.detector NAME"),
        (["--crop.detector", "ssd", "--crop.level"], "needs a detector with landmarks"),
        (["--crop.detector", "yunet"], "needs one model file"),
        (["--against", "nowhere"], "no folder nowhere"),
        (["--engine", "hamster"], "no engine 'hamster'; known: "),
    ],
)
def test_options_that_cannot_work_are_one_line_before_any_work(tmp_path, monkeypatch, words, message):
    write_raf_db(tmp_path / "raf", train=3, test=1)
    monkeypatch.setattr(sys, "argv", ["prepare", "raf_db", str(tmp_path / "raf"), "--out", str(tmp_path / "out"), *words])
    with pytest.raises(UserError, match=re.escape(message)):
        main()
    assert {path.name for path in tmp_path.iterdir()} == {"raf"}


def test_wrong_input_ends_the_command_with_status_two_and_one_line(tmp_path):
    done = run("raf_db", tmp_path / "nowhere", "--out", tmp_path / "out")
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(r"error: no folder .*nowhere; expected basic[^\n]*\n", done.stderr)


def test_drawn_faces_can_be_prepared_by_command(tmp_path, monkeypatch, capsys):
    drawn = ("--drawn.count", 12, "--drawn.test-count", 4, "--drawn.size", 16)
    called(monkeypatch, "synthetic", "charcoal", "--out", tmp_path / "out", *drawn)
    assert "4 test" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("make", "words", "message"),
    [
        (None, ["raf_db", "F"], "no folder"),
        ("empty", ["raf_db", "F"], "is empty; expected basic"),
        ("stray", ["raf_db", "F"], "list_patition_label.txt is missing: raf_db needs"),
        ("label", ["raf_db", "F"], "list_patition_label.txt:2: emotion '8' is out of range (1 to 7)"),
        ("line", ["raf_db", "F"], "list_patition_label.txt:2: expected `train_00001.jpg 5`, got 'nonsense'"),
        ("broken", ["raf_db", "F"], "train images can be used (train_000"),
        ("good", ["rafdb", "F"], "no source 'rafdb'; known: celeba_hq, coco, synthetic, fairface, folders, "),
        ("good", ["raf_db", "F", "--outt", "x"], "--outt"),
        ("good", ["synthetic", "crayon"], "no drawing style 'crayon'"),
    ],
)
def test_wrong_input_is_one_line_and_nothing_is_written(tmp_path, monkeypatch, make, words, message):
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
    monkeypatch.setattr(sys, "argv", ["prepare", *[str(folder) if word == "F" else word for word in words], "--out", str(tmp_path / "out")])
    with pytest.raises(UserError, match=re.escape(message)) as error:
        main()
    assert "\n" not in str(error.value)
    assert {path.name for path in tmp_path.iterdir()} <= {"F"}
