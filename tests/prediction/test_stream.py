"""The predictor and the stream that feeds it: right answers, in order, whatever the files are."""

from concurrent.futures import Future

import cv2
import jax
import numpy as np
import pytest
from faces import write_photo
from PIL import Image

import jaxface
from jaxface.data.faces import DETECTORS, Face
from jaxface.data.framing import resize
from jaxface.errors import UserError
from jaxface.models.encoder import normalize_images
from jaxface.prediction.items import Item
from jaxface.prediction.options import FaceOptions
from jaxface.prediction.predictor import Predictor, read_pixels
from jaxface.prediction.stream import predict_stream
from jaxface.runs.model import load_trained


@pytest.fixture(scope="module")
def predictor(trained_run):
    return Predictor(trained_run, batch_size=4)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    for index in range(11):
        write_photo(folder / f"{index:02d}.jpg", seed=index, size=16 if index % 2 else 40)
    return folder


class AsManyAsBright:
    """As many faces as the first pixel is bright: for tests that need photos of several faces."""

    def __init__(self, files, threshold=0.0): ...

    def __call__(self, image):
        return [Face((2.0 * i, 0.0, 2.0 * i + 20, 20.0), 1 - i / 100) for i in range(int(image[0, 0, 0]))]


def by_hand(run, images):
    """Probabilities of the adapted model, not merged, one image at a time."""
    trained = load_trained(run)
    model, found = jax.jit(lambda pixels: trained.model(normalize_images(pixels))), []
    for image in images:
        logits = model(resize(image, trained.image_size)[None])
        found.append({task: np.exp(v[0]) / np.exp(v[0]).sum() for task, v in ((k, np.asarray(v)) for k, v in logits.items())})
    return found


def test_a_predictor_says_what_the_model_says(trained_run, photos):
    paths = sorted(photos.iterdir())
    images = [read_pixels(path) for path in paths]
    answers = jaxface.Predictor(trained_run, batch_size=4)([*images[:6], *map(str, paths[6:])])
    for (face,), expected in zip(answers, by_hand(trained_run, images), strict=True):
        for task, shares in expected.items():
            np.testing.assert_allclose(list(face[task]["probabilities"].values()), shares, atol=2e-5)
            assert face[task]["class"] == list(face[task]["probabilities"])[shares.argmax()]
            assert face[task]["confidence"] == pytest.approx(shares.max(), abs=2e-5)  # no temperature was fitted


def test_a_stream_says_the_same_in_the_order_of_its_items(predictor, photos):
    paths = [str(path) for path in sorted(photos.iterdir())]
    results = list(predict_stream(predictor, [Item(path) for path in paths], threads=3))
    assert [result["path"] for result in results] == paths
    assert [result["faces"] for result in results] == predictor(paths)


def test_broken_files_have_a_status_and_stop_nothing(predictor, photos, tmp_path):
    whole = next(photos.iterdir()).read_bytes()
    broken = {"empty": b"", "text": b"no photo", "cut": whole[: len(whole) // 2], "head": whole[:40], "zeros": bytes(5000)}
    for name, data in broken.items():
        (tmp_path / f"{name}.jpg").write_bytes(data)
    (tmp_path / "folder.jpg").mkdir()
    paths = [str(tmp_path / f"{name}.jpg") for name in [*broken, "folder", "gone"]]
    mixed = [Item(path) for pair in zip(paths, sorted(map(str, photos.iterdir())), strict=False) for path in pair]
    results = list(predict_stream(predictor, mixed, threads=2))
    assert [result["status"] for result in results] == ["unreadable", "ok"] * len(paths)
    assert all(result["error"] and "\n" not in result["error"] for result in results[::2])
    assert all(result["error"] is None for result in results[1::2])


def test_photos_of_many_faces_and_of_none_keep_their_faces(trained_run, tmp_path):
    DETECTORS.add("as many as bright", AsManyAsBright)
    counts = [0, 3, 9, 0, 1, 4, 5]
    for index, count in enumerate(counts):
        image = np.random.default_rng(index).integers(0, 255, (32, 48, 3), dtype=np.uint8)
        image[0, 0] = count
        cv2.imwrite(str(tmp_path / f"{index}.png"), image)
    predictor = Predictor(trained_run, FaceOptions(faces="as many as bright", most_faces=6), batch_size=4)
    paths = [str(tmp_path / f"{index}.png") for index in range(len(counts))]
    results = list(predict_stream(predictor, [Item(path) for path in paths]))
    assert [len(result["faces"]) for result in results] == [min(count, 6) for count in counts]
    assert [result["status"] for result in results] == ["ok" if count else "no face" for count in counts]
    assert [result["faces"] for result in results] == predictor(paths)
    assert [face["score"] for face in results[1]["faces"]] == [1.0, 0.99, 0.98]


class AtOnce:
    """Threads that have always finished already: what is read ahead depends on no scheduler."""

    def __init__(self, threads): ...

    def __enter__(self):
        return self

    def __exit__(self, *error): ...

    def submit(self, function, *args):
        future = Future()
        future.set_result(function(*args))
        return future


def test_crowds_are_not_read_as_far_ahead_as_single_faces(trained_run, tmp_path, monkeypatch):
    DETECTORS.add("as many as bright", AsManyAsBright)
    monkeypatch.setattr("jaxface.prediction.stream.ThreadPoolExecutor", AtOnce)
    predictor = Predictor(trained_run, FaceOptions(faces="as many as bright"), batch_size=4)
    found, classify, waiting = predictor.find, predictor.classify, []

    def find(image):
        photo = found(image)
        waiting.append(waiting[-1] + len(photo.crops) if waiting else len(photo.crops))
        return photo

    def classify_and_count(crops):
        waiting.append(waiting[-1] - len(crops))
        return classify(crops)

    monkeypatch.setattr(predictor, "find", find)
    monkeypatch.setattr(predictor, "classify", classify_and_count)
    most = {}
    for faces in (1, 20):
        photo = tmp_path / f"{faces}.png"
        cv2.imwrite(str(photo), np.full((32, 64, 3), faces, np.uint8))
        waiting.clear()
        assert sum(len(result["faces"]) for result in predict_stream(predictor, [Item(str(photo))] * 40, threads=1)) == 40 * faces
        most[faces] = max(waiting)
    gathered = 4 - 1  # for the next batch
    assert most[1] == 3 * 4 + 2 + gathered  # photos read ahead: three batches and two a thread
    assert most[20] <= 8 * 4 + 4 * 20 + gathered  # once eight batches wait no more photos are read, and they are read four at a time


def test_what_finishes_an_item_runs_before_its_result_is_given(predictor, photos):
    finished = []
    items = [Item(str(path)) for path in sorted(photos.iterdir())]
    for result in predict_stream(predictor, items, threads=2, finish=lambda item, result: finished.append(item.path)):
        assert result["path"] in finished
    assert sorted(finished) == [item.path for item in items]


@pytest.mark.parametrize("image", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3)), np.zeros((0, 4, 3), np.uint8), None])
def test_an_array_that_is_no_image_is_one_line(predictor, image):
    with pytest.raises(UserError, match=r"expected uint8 \[H, W, 3\]"):
        predictor([image])


def test_an_image_of_another_library_is_answered_as_its_pixels_are(predictor):
    pixels = np.random.default_rng(0).integers(0, 256, (20, 16, 3), dtype=np.uint8)
    ours, pillows, jaxs = predictor([pixels, Image.fromarray(pixels), jax.device_put(pixels)])
    assert ours == pillows == jaxs


def test_a_batch_takes_the_smallest_program_that_holds_it(trained_run):
    small = Predictor(trained_run, batch_size=5, small_batches=True)
    assert small.sizes == [1, 2, 4, 5]
    crops = [np.full((16, 16, 3), 40 * i, np.uint8) for i in range(3)]
    assert next(iter(small.classify(crops).values())).shape[:2] == (1, 4)
    with pytest.raises(UserError, match="batch_size 0"):
        Predictor(trained_run, batch_size=0)


def test_a_damaged_photo_has_a_status_of_its_own_and_its_faces_unless_they_are_not_wanted(trained_run, tmp_path):
    write_photo(tmp_path / "a.jpg", seed=0, size=400)
    data = (tmp_path / "a.jpg").read_bytes()
    (tmp_path / "a.jpg").write_bytes(data[: len(data) // 2] + bytes(2000) + data[len(data) // 2 + 2000 :])
    for damaged, faces in (("keep", 1), ("drop", 0)):
        predictor = Predictor(trained_run, FaceOptions(faces="whole", damaged=damaged), batch_size=4)
        (row,) = predict_stream(predictor, [Item(str(tmp_path / "a.jpg"))])
        assert (row["status"], len(row["faces"])) == ("damaged", faces)
        assert "Corrupt JPEG data" in row["error"]


def test_whatever_a_detector_raises_is_the_row_of_its_photo(trained_run, photos, monkeypatch):
    monkeypatch.setattr(Predictor, "find", lambda self, image: 1 / 0)
    (row,) = predict_stream(Predictor(trained_run, batch_size=4), [Item(str(min(photos.iterdir())))])
    assert (row["status"], row["error"]) == ("unreadable", "ZeroDivisionError: division by zero")


def test_large_jpegs_may_be_decoded_smaller_where_each_face_keeps_its_pixels(trained_run, tmp_path):
    """Boxes are in the photo's own pixels, and a face that would be too small is cut out of the photo in full."""

    class Corner:
        least = 40
        seen = []  # noqa: RUF012

        def __init__(self, files, threshold=0.0): ...

        def __call__(self, image):
            self.seen.append(image.shape[:2])
            part = 2 if image[0, 0].mean() > 128 else 20
            return [Face((0.0, 0.0, image.shape[1] / part, image.shape[0] / part))]

    for index, brightness in enumerate((250, 5)):
        image = np.full((160, 320, 3), brightness, np.uint8)
        cv2.imwrite(str(tmp_path / f"{index}.jpg"), image)
    with DETECTORS.temporarily():
        DETECTORS.add("corner", Corner)
        items = [Item(str(tmp_path / f"{index}.jpg")) for index in (0, 1)]
        small, whole = (
            list(predict_stream(Predictor(trained_run, FaceOptions("corner", reduced=reduced), batch_size=4), items, threads=1))
            for reduced in (True, False)
        )
    assert Corner.seen == [(40, 80), (40, 80), (160, 320), (160, 320), (160, 320)]
    for found, expected in zip(small, whole, strict=True):
        assert [found[key] for key in ("width", "height")] == [320, 160]
        assert found["faces"][0]["box"] == expected["faces"][0]["box"]
        assert found["faces"][0]["age"]["class"] == expected["faces"][0]["age"]["class"]
