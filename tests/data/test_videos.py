"""Videos whose headers lie, that are cut or have holes: the frames that are there, under their right numbers and times."""

import os
from fractions import Fraction

import av
import numpy as np
import pytest

from jaxface.data.apart import frames_apart
from jaxface.data.formats import Bounds
from jaxface.data.images import Unreadable
from jaxface.data.videos import End, read_frames, upright

GREYS = [20 + 9 * index for index in range(24)]
STEADY = [index / 12 for index in range(24)]
UNSTEADY = [index / 12 + 0.004 * index * index + 0.013 * (index % 3) for index in range(24)]


def write(path, times=STEADY):
    """Frames that each stand alone and are told apart by their brightness; noise, so that each takes some bytes."""
    noise = np.random.default_rng(0).integers(-15, 16, (48, 64, 3))
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mjpeg", rate=12)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuvj420p"
        if times is UNSTEADY:
            stream.codec_context.time_base = Fraction(1, 1000)
        for index, (grey, time) in enumerate(zip(GREYS, times, strict=True)):
            frame = av.VideoFrame.from_ndarray((grey + noise).clip(0, 255).astype(np.uint8))
            frame.pts, frame.time_base = (round(1000 * time), Fraction(1, 1000)) if times is UNSTEADY else (index, Fraction(1, 12))
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def check(path, times=STEADY):
    """Each frame's number is that of its brightness, and its time that of its number. Returns the numbers and the end."""
    *frames, end = read_frames(str(path), Bounds())
    seen = [int(np.argmin([abs(frame.pixels.mean() - grey) for grey in GREYS])) for frame in frames]
    assert [frame.number for frame in frames] == seen
    np.testing.assert_allclose([frame.seconds for frame in frames], [times[number] for number in seen], atol=2e-3)
    assert end.frames == len(frames)
    return seen, end


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".avi", ".mov"])
def test_a_whole_video_gives_all_frames(tmp_path, suffix):
    assert check(write(tmp_path / f"a{suffix}")) == ([*range(24)], End(24))


def test_a_rate_that_varies_moves_no_number_and_no_time(tmp_path):
    assert check(write(tmp_path / "a.mkv", UNSTEADY), UNSTEADY) == ([*range(24)], End(24))


def destroy(path, number):
    """Wipes a frame's bytes out of the file, and leaves the rest where it is."""
    with av.open(str(path)) as container:
        packet = next(p for index, p in enumerate(container.demux(video=0)) if index == number)
        place, size = packet.pos, packet.size
    data = bytearray(path.read_bytes())
    start = data.find(b"\xff\xd8\xff", place)
    data[start : start + size - 16] = bytes(size - 16)
    path.write_bytes(data)


@pytest.mark.parametrize(("suffix", "times"), [(".mp4", STEADY), (".mkv", STEADY), (".avi", STEADY), (".mkv", UNSTEADY)])
def test_frames_behind_a_hole_keep_their_numbers_and_times(tmp_path, suffix, times):
    path = write(tmp_path / f"a{suffix}", times)
    for number in (7, 15):
        destroy(path, number)
    seen, end = check(path, times)
    assert seen == [number for number in range(24) if number not in (7, 15)]
    assert "22 of 24 frames" in end.broken


@pytest.mark.parametrize("suffix", [".mkv", ".avi", ".mp4"])
def test_a_video_that_was_cut_gives_what_is_there_and_says_what_is_not(tmp_path, suffix):
    path = write(tmp_path / f"a{suffix}")
    data = path.read_bytes()
    if suffix == ".mp4":  # its table stands at the end
        path.write_bytes(data[: len(data) // 2])
        with pytest.raises(Unreadable, match="cannot be read as a video"):
            list(read_frames(str(path), Bounds()))
        return
    path.write_bytes(data[: 2 * len(data) // 3])
    seen, end = check(path)
    assert seen == [*range(len(seen))]
    assert 12 <= len(seen) <= 20
    assert " of 2.0 s" in end.broken or " of 24 frames" in end.broken


def test_a_video_decoded_apart_is_the_same_and_passes_over_what_is_done(tmp_path):
    path = str(write(tmp_path / "a.mkv"))
    *frames, end = frames_apart(path, Bounds(), every=5, done={10})
    here = {frame.number: frame for frame in read_frames(path, Bounds()) if isinstance(frame, type(frames[0]))}
    assert [frame.number for frame in frames] == [0, 5, 15, 20]
    assert all(np.array_equal(frame.pixels, here[frame.number].pixels) for frame in frames)
    assert end == End(24)


def test_a_video_that_takes_too_long_is_given_up(tmp_path):
    path = str(write(tmp_path / "a.mkv"))
    with pytest.raises(Unreadable, match="takes longer than"):
        list(frames_apart(path, Bounds(seconds=1e-6)))
    with pytest.raises(Unreadable, match="too large: 64 x 48 pixels"):
        list(frames_apart(path, Bounds(megapixels=0.001)))


@pytest.mark.parametrize(
    "text",
    ["#EXTM3U\n#EXTINF:1,\nother.mkv\n", "ffconcat version 1.0\nfile other.mkv\n", "v=0\nc=IN IP4 127.0.0.1\nm=video 9 RTP/AVP 96\n"],
)
def test_a_file_that_names_other_files_is_no_video(tmp_path, text):
    write(tmp_path / "other.mkv")
    (tmp_path / "a.mp4").write_text(text)
    with pytest.raises(Unreadable, match="cannot be read as a video"):
        list(frames_apart(str(tmp_path / "a.mp4"), Bounds()))


def test_what_is_no_file_is_said_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.mp4")
    for name in ("pipe.mp4", "."):
        with pytest.raises(Unreadable, match="no file but"):
            list(read_frames(str(tmp_path / name), Bounds()))


def test_frames_are_turned_as_their_container_says():
    frame = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    assert upright(frame, 90)[0, 0].tolist() == frame[0, 1].tolist()  # counterclockwise: the right upper corner becomes the left one
    assert upright(frame, -90)[0, 0].tolist() == frame[1, 0].tolist()
    assert np.array_equal(upright(frame, 0), frame)
