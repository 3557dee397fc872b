"""Annotated pictures and videos."""

import cv2
import numpy as np
import pytest
from faces import write_photo, write_video

from jaxface.errors import UserError
from jaxface.prediction.annotate import annotate, draw_photo, draw_video, place

FACE = {"box": [10.0, 8.0, 40.0, 30.0], "score": 0.9, "age": {"class": "20-29", "confidence": 0.7, "probabilities": {}}}


def test_a_face_is_framed_and_the_rest_is_left_as_it_was():
    image = np.full((200, 300, 3), 255, np.uint8)
    drawn = annotate(image, [FACE], ["age"])
    assert (image == 255).all()
    assert (drawn[8, 15:35] != 255).any(-1).all()
    assert (drawn[:5] == 255).all()
    assert (drawn[:, 200:] == 255).all()


@pytest.mark.parametrize("box", [[-50.0, -50.0, 500.0, 500.0], [290.0, 190.0, 400.0, 300.0], [0.0, 0.0, 1.0, 1.0]])
def test_boxes_over_the_edge_are_drawn_as_far_as_they_go(box):
    assert annotate(np.zeros((200, 300, 3), np.uint8), [FACE | {"box": box}], ["age"]).shape == (200, 300, 3)


def test_no_two_files_share_a_picture(tmp_path):
    paths = ["a.jpg", "a.png", "b/a.jpg", "/b/a.jpg.jpg", "../b/a.jpg", "a/b.jpg"]
    assert len({place(tmp_path, path, ".jpg") for path in paths}) == len(paths)
    assert all(place(tmp_path, path, ".jpg").resolve().is_relative_to(tmp_path.resolve()) for path in paths)


def test_a_photo_with_faces_gets_a_copy_and_one_without_none(tmp_path):
    write_photo(tmp_path / "a.jpg", 0, size=64)
    result = {"path": str(tmp_path / "a.jpg"), "frame": None, "faces": [FACE]}
    draw_photo(tmp_path / "drawn", result, ["age"])
    (picture,) = (path for path in (tmp_path / "drawn").rglob("*") if path.is_file())
    assert cv2.imread(str(picture)).shape == (64, 64, 3)
    draw_photo(tmp_path / "none", result | {"faces": []}, ["age"])
    assert not (tmp_path / "none").exists()


def test_a_video_keeps_its_frames_and_the_last_boxes_between_those_looked_at(tmp_path):
    write_video(tmp_path / "clip.mp4", frames=9)
    out = draw_video(tmp_path / "drawn", str(tmp_path / "clip.mp4"), {0: [], 3: [FACE], 6: []}, ["age"])
    capture, boxed = cv2.VideoCapture(str(out)), []
    while (read := capture.read())[0]:
        boxed.append(bool(read[1].astype(int).std() > 5))
    assert boxed == [False] * 3 + [True] * 3 + [False] * 3
    assert [path.name for path in out.parent.iterdir()] == [out.name]


def test_what_is_no_video_is_one_line(tmp_path):
    (tmp_path / "clip.mp4").write_bytes(b"nothing")
    with pytest.raises(UserError, match="cannot be read as a video"):
        draw_video(tmp_path / "drawn", str(tmp_path / "clip.mp4"), {}, ["age"])


def test_the_picture_of_a_file_whose_name_is_as_long_as_can_be_has_a_shorter_one(tmp_path):
    names = ["a" * 251 + ".jpg", "a" * 250 + "b.jpg", "\N{EURO SIGN}" * 83 + ".jpg"]
    places = [place(tmp_path, f"/photos/{name}", ".jpg") for name in names]
    for path in places:
        path.parent.mkdir(exist_ok=True)
        path.touch()
    assert len(set(places)) == 3
    assert {path.suffix for path in places} == {".jpg"}
