"""Files of every known format, whole, damaged and hostile: each is the picture that people see, or one line, within its bounds."""

import io
import os
import struct
import subprocess
import sys
import threading
import time
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps

from jaxface.data import apart
from jaxface.data.cropping import Cropping
from jaxface.data.decoding import decode_photo, read_photo
from jaxface.data.formats import FORMATS, Bounds, format_of
from jaxface.data.headers import Unreadable, header
from jaxface.data.preparation import prepare
from jaxface.data.synthetic import draw_face

FACE = draw_face(3, 0, size=96).image


def saved(kind, image=FACE, **options):
    buffer = io.BytesIO()
    if kind == "HEIF":
        pillow_heif = pytest.importorskip("pillow_heif")
        pillow_heif.from_pillow(Image.fromarray(image)).save(buffer, quality=95)
    else:
        Image.fromarray(image).save(buffer, kind, **options)
    return buffer.getvalue()


SAVED = {
    "JPEG": "JPEG",
    "PNG": "PNG",
    "WebP": "WEBP",
    "BMP": "BMP",
    "netpbm": "PPM",
    "TIFF": "TIFF",
    "GIF": "GIF",
    "JPEG 2000": "JPEG2000",
    "AVIF": "AVIF",
    "HEIF": "HEIF",
}


@pytest.mark.parametrize("name", FORMATS)
def test_each_known_format_is_the_face_that_was_saved(name):
    data = saved(SAVED[name])
    assert format_of(data) is FORMATS[name]
    decoded = decode_photo(data)
    assert decoded.damage == ""
    assert np.abs(decoded.pixels.astype(int) - FACE).mean() < 8


@pytest.mark.parametrize("white", [1, 100, 255, 1023, 65535])
def test_white_of_a_netpbm_file_is_what_its_header_says(white):
    values = np.arange(0, 128) * white // 127
    data = b"P5 # of a scanner\n128\n1 %d\n" % white + values.astype("u1" if white < 256 else ">u2").tobytes()
    assert np.abs(decode_photo(data).pixels[0] - (values * 255 / white)[:, None]).max() <= 1
    if white < 255:
        with pytest.raises(Unreadable, match="cannot be decoded"):
            decode_photo(data[:-1] + b"\xff")


@pytest.mark.parametrize("kind", ["JPEG", "AVIF", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_turned_photo_is_upright(kind, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = saved(kind, FACE[:, :64], exif=exif, quality=95)
    seen = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))
    upright = decode_photo(data).pixels
    assert upright.shape == seen.shape
    assert np.abs(upright.astype(int) - seen).mean() < 2


@pytest.mark.parametrize(
    ("kind", "mode"), [*(("JPEG", mode) for mode in ("RGB", "L", "CMYK")), *(("PNG", mode) for mode in ("RGB", "L", "P", "LA", "RGBA"))]
)
def test_a_header_says_what_pillow_reads_from_it(kind, mode):
    image, exif = Image.fromarray(FACE[:, :64]).convert(mode), Image.Exif()
    exif[0x010F], exif[0x0112] = "a camera", 7
    buffer = io.BytesIO()
    image.save(buffer, kind, exif=exif, icc_profile=bytes(200_000))
    with Image.open(buffer) as opened:
        expected = (*opened.size, opened.mode, opened.getexif()[0x0112], 1)
    assert header(buffer.getvalue()) == expected


def test_a_file_of_very_many_small_parts_is_refused_before_they_are_gone_through():
    jpeg, png = saved("JPEG"), saved("PNG")
    chunk = bytes(4) + b"abCd" + zlib.crc32(b"abCd").to_bytes(4, "big")
    for data in (jpeg[:2] + b"\xff\xec\x00\x02" * 5000 + jpeg[2:], png[:33] + chunk * 5000 + png[33:]):
        with pytest.raises(Unreadable, match=r"more than [\d,]+ (segments|chunks)"):
            decode_photo(data)
    assert decode_photo(jpeg[:2] + b"\xff\xec\x00\x02" * 500 + jpeg[2:]).pixels.shape == FACE.shape


def scanned(times):
    """A progressive JPEG whose last scan comes so often."""
    data = saved("JPEG", progressive=True)
    last = data.rfind(b"\xff\xda")
    return data[:last] + data[last:-2] * times + data[-2:]


def test_a_jpeg_of_more_scans_than_a_camera_makes_is_refused_before_it_is_decoded():
    decode_photo(scanned(1))
    with pytest.raises(Unreadable, match=r"\d+ scans, at most 100"):
        decode_photo(scanned(200))


def test_a_jpeg_that_is_much_work_is_decoded_apart_and_given_up():
    data = saved("JPEG", cv2.resize(FACE, (3000, 3000)), progressive=True)
    assert decode_photo(data, Bounds(heavy=0.01)).pixels.shape == (3000, 3000, 3)
    with pytest.raises(Unreadable, match=r"takes longer than 0.05 s"):
        decode_photo(data, Bounds(seconds=0.05, heavy=0.01))
    assert decode_photo(saved("TIFF")).pixels.shape == FACE.shape  # by another process


def test_a_decoder_that_dies_is_that_files_line_and_no_others():
    decode_photo(saved("TIFF"))
    with apart.worker() as process:
        process._process.kill()
        with pytest.raises(Unreadable, match="its decoder broke down"):
            process.ask({"do": "photo", "bounds": {}}, b"", 10.0)
    assert decode_photo(saved("TIFF")).pixels.shape == FACE.shape


def test_all_decoders_can_be_ended_while_one_is_at_work():
    threading.Timer(0.05, apart.end).start()
    with apart.worker() as process, pytest.raises(Unreadable, match="its decoder broke down"):
        process.next(60.0)
    assert decode_photo(saved("TIFF")).pixels.shape == FACE.shape


def test_what_a_header_hides_takes_no_more_memory_than_it_says():
    for _ in range(2):
        with pytest.raises(Unreadable):  # 16 x 16 pixels by its header, 9000 x 9000 by its stream: 1.3 GB elsewhere
            decode_photo((Path(__file__).parent / "files/lying.avif").read_bytes())
        for kind in ("AVIF", "TIFF"):  # what these leave behind is not its to take
            decode_photo(saved(kind, cv2.resize(FACE, (1500, 1500))))


def test_a_png_too_short_for_its_pixels_is_refused_before_they_are_allocated():
    data = bytearray(saved("PNG"))
    struct.pack_into(">II", data, 16, 12_000, 12_000)
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    with pytest.raises(Unreadable, match="bytes for 12000 x 12000 pixels"):
        decode_photo(bytes(data))
    data = bytearray(saved("PNG"))
    data[33:37] = b"\x7f\xff\xff\xff"  # the length of the pixels' chunk
    with pytest.raises(Unreadable, match="cut off"):
        decode_photo(bytes(data))
    flat = saved("PNG", np.zeros((2000, 2000, 3), np.uint8), optimize=True)
    assert decode_photo(flat).pixels.shape == (2000, 2000, 3)  # as small as a file of so many pixels can be


def test_a_picture_past_the_bounds_is_refused_by_its_header(tmp_path):
    for kind in ("JPEG", "PNG", "TIFF", "AVIF", "HEIF"):
        with pytest.raises(Unreadable, match=r"too large: 96 x 96 pixels, at most 0\.005 million"):
            decode_photo(saved(kind), Bounds(megapixels=0.005))
    (tmp_path / "a.png").write_bytes(saved("PNG"))
    with pytest.raises(Unreadable, match=r"too large: 0 MB, at most 0\.001"):
        read_photo(tmp_path / "a.png", Bounds(megabytes=0.001))


def test_what_is_no_file_is_said_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    for name, says in (
        ("pipe.jpg", "no file but"),
        (".", "no file but"),
        ("none.jpg", "No such file"),
        ("x" * 300, "too long"),
        ("\0", "null"),
    ):
        with pytest.raises(Unreadable, match=says):
            read_photo(tmp_path / name)


def zeroed(data):
    """A JPEG whose pixels are wrong from the middle on."""
    middle = len(data) // 2
    return data[:middle] + bytes(len(data) // 4) + data[middle + len(data) // 4 :]


def dangling_tiff():
    """A TIFF that announces a second picture where there is none."""
    data = bytearray(saved("TIFF"))
    (start,) = struct.unpack_from("<I", data, 4)
    (count,) = struct.unpack_from("<H", data, start)
    struct.pack_into("<I", data, start + 2 + 12 * count, len(data) - 3)
    return bytes(data)


def inks():
    buffer = io.BytesIO()
    Image.fromarray(cv2.resize(FACE, (600, 600))).convert("CMYK").save(buffer, "JPEG")
    return buffer.getvalue()


DAMAGED = {"JPEG": zeroed(saved("JPEG", cv2.resize(FACE, (600, 600)))), "CMYK": zeroed(inks()), "TIFF": dangling_tiff()}


@pytest.mark.parametrize("name", DAMAGED)
def test_what_a_decoder_complains_of_is_told_with_the_pixels(name):
    decoded = decode_photo(DAMAGED[name])
    assert decoded.pixels.ndim == 3
    assert decoded.damage
    assert "\n" not in decoded.damage


def test_no_decoder_speaks_past_the_command(capfd):
    png = bytearray(saved("PNG"))
    profile = png[:33] + b"\0\0\0\5iCCPabcde" + zlib.crc32(b"iCCPabcde").to_bytes(4, "big") + png[33:]
    assert np.array_equal(decode_photo(bytes(profile)).pixels, FACE)
    png[200] ^= 1
    with pytest.raises(Unreadable, match="the checksum of IDAT is wrong"):
        decode_photo(bytes(png))
    for data in DAMAGED.values():
        decode_photo(data)
    assert capfd.readouterr().err == ""


def test_damaged_images_are_kept_and_listed_or_dropped(tmp_path):
    (tmp_path / "good.jpg").write_bytes(saved("JPEG"))
    (tmp_path / "bad.jpg").write_bytes(DAMAGED["JPEG"])
    (tmp_path / "manifest.csv").write_text("path,gender,split\ngood.jpg,m,test\nbad.jpg,f,test\n")
    kept = prepare("manifest", tmp_path, tmp_path / "kept")
    assert [entry["id"] for entry in kept["damaged"]] == ["bad.jpg"]
    assert kept["splits"]["test"]["records"] == 2
    dropped = prepare("manifest", tmp_path, tmp_path / "dropped", cropping=Cropping(damaged="drop"))
    assert [entry["id"] for entry in dropped["dropped"]["files"]] == ["bad.jpg"]
    assert dropped["dropped"]["files"][0]["reason"].startswith("damaged: ")


def test_random_damage_in_any_format_is_a_picture_or_one_line():
    rng, lines = np.random.default_rng(0), []
    for kind in SAVED.values():
        whole = saved(kind)
        for _ in range(12):
            data = bytearray(whole)
            for place in rng.integers(0, len(data), rng.integers(1, 20)):
                data[place] = rng.integers(256)
            data = data[: rng.integers(1, len(data))] if rng.random() < 0.3 else data
            try:
                assert decode_photo(bytes(data)).pixels.dtype == np.uint8
            except Unreadable as error:
                lines.append(str(error))
    assert lines
    assert not any("\n" in line for line in lines)


def test_a_process_that_decodes_ends_with_its_parent():
    code = """
import os
from jaxface.data import apart
with apart.worker() as process:
    print(process._process.pid, flush=True)
    os.kill(os.getpid(), 9)
"""
    run = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, check=False)
    for _ in range(500):
        try:
            os.kill(int(run.stdout), 0)
        except ProcessLookupError:
            return
        state = Path(f"/proc/{int(run.stdout)}/stat")
        if state.exists() and state.read_text().rpartition(") ")[2].startswith("Z"):
            return  # nobody takes its status here
        time.sleep(0.02)
    raise AssertionError("the process is still there")
