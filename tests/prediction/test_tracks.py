"""Faces followed through a video."""

import json
import sys

import numpy as np
import pytest

from jaxface.data.task_files import tasks_told
from jaxface.prediction.tracks import Tracker, followed

CLASSES = {"gender": ["male", "female"]}
ABOUT = {"classes": CLASSES, "temperatures": {"gender": 2.0}}
LANES = {"A": (0, 40, 9, 0), "B": (300, 100, -9, 0), "C": (100, 200, 0, -2)}
"""x, y at the start, and pixels a frame: A and B cross in the middle, on two lanes that overlap; C rises slowly."""
FEMALE = {"A": 0.9, "B": 0.2, "C": 0.6}


def face(name, number, score=0.9):
    x, y, dx, dy = LANES[name]
    x, y, p = x + dx * number, y + dy * number, FEMALE[name]
    answer = {"class": "female" if p > 0.5 else "male", "confidence": 0.0, "probabilities": {"male": 1 - p, "female": p}}
    return {"box": [x, y, x + 50, y + 60], "score": score, "gender": answer, "name": name}


def frame(number, names="ABC", seconds=None):
    faces = [face(name, number) for name in names]
    return {"path": "v", "frame": number, "seconds": number / 25 if seconds is None else seconds, "faces": faces}


def end():
    return {"path": "v", "frame": None, "frames": 33, "faces": []}


def names_of(rows):
    """Which faces each track holds."""
    held = {}
    for row in rows:
        for one in row["faces"] if row["frame"] is not None else ():
            held.setdefault(one["track"], set()).add(one["name"])
    return held


def test_three_moving_faces_are_three_tracks_through_a_crossing_and_in_any_order():
    rng = np.random.default_rng(0)
    rows = [frame(number, "".join(rng.permutation(list("ABC")))) for number in range(33)]
    held = names_of(followed([*rows, end()], ABOUT))
    assert sorted(map(sorted, held.values())) == [["A"], ["B"], ["C"]]


def test_a_face_unseen_for_a_moment_stays_itself_and_for_long_does_not():
    missing = range(5, 15)
    rows = [frame(number, "C" if number in missing else "AC") for number in range(30)]
    assert sorted(map(sorted, names_of(followed(rows, ABOUT)).values())) == [["A"], ["C"]]
    rows = [frame(0, "AC"), *(frame(number, "C") for number in range(1, 40)), frame(40, "AC")]
    assert sorted(map(sorted, names_of(followed(rows, ABOUT)).values())) == [["A"], ["A"], ["C"]]


def test_frames_without_a_time_are_counted_at_25_a_second():
    rows = [frame(0, "AC"), *(frame(number, "C") for number in range(1, 40)), frame(40, "AC")]
    timeless = [row | {"seconds": None} for row in rows]
    assert [[one["track"] for one in row["faces"]] for row in followed(timeless, ABOUT)] == [
        [one["track"] for one in row["faces"]] for row in followed(rows, ABOUT)
    ]


def test_a_tracks_answer_is_the_mean_over_its_frames_and_its_confidence_at_the_temperature():
    tracker = Tracker(tasks_told(CLASSES, {}), ABOUT["temperatures"])
    for number, (score, p) in enumerate([(0.5, 0.2), (1.0, 0.8)]):
        row = frame(number, "A")
        row["faces"][0] |= {"score": score, "gender": {"probabilities": {"male": 1 - p, "female": p}}}
        tracker.add(row)
    (one,) = tracker.answers()
    assert one["gender"]["class"] == "female"
    assert one["gender"]["probabilities"]["female"] == pytest.approx((0.5 * 0.2 + 1.0 * 0.8) / 1.5, abs=1e-6)
    cold = [p**0.5 / (p**0.5 + (1 - p) ** 0.5) for p in (0.2, 0.8)]
    assert one["gender"]["confidence"] == pytest.approx((0.5 * cold[0] + 1.0 * cold[1]) / 1.5, abs=1e-6)
    assert (one["track_frames"], one["track_start"], one["track_end"], one["score"]) == (2, 0.0, 0.04, 1.0)


def test_a_job_that_goes_on_gives_the_tracks_that_it_would_have_given():
    def rows():
        return [frame(number) for number in range(20)] + [end()]

    whole = list(followed(rows(), ABOUT))
    before = json.loads(json.dumps(whole[:9]))
    assert list(followed(rows()[9:], ABOUT, before)) == whole[9:]


def test_tracks_have_columns_of_their_own(trained_run, tmp_path, monkeypatch):
    import csv

    from faces import write_video

    from jaxface.errors import run_command
    from jaxface.predict import main

    write_video(tmp_path / "clip.mp4", frames=5)
    words = [trained_run, tmp_path / "clip.mp4", "--faces", "whole", "--tracks", "--out", tmp_path / "o.csv"]
    monkeypatch.setattr(sys, "argv", ["predict", *map(str, words)])
    with pytest.raises(SystemExit, match="0"):
        run_command(main)
    *rows, last = csv.DictReader((tmp_path / "o.csv").read_text().splitlines())
    assert [row["track"] for row in rows] == ["0"] * 5
    assert (last["frame"], last["frames"], last["track"], last["track_frames"], last["track_end"]) == ("", "5", "0", "5", "0.4")
    assert float(last["age_confidence"]) > 0
