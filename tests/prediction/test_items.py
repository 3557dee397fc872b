"""Where images come from, and in which order."""

import io
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from faces import write_photo, write_video
from hypothesis import given
from hypothesis import strategies as st

from jaxface.data.images import Unreadable
from jaxface.data.videos import End, Frame
from jaxface.errors import UserError
from jaxface.prediction.items import Item, Video, find_paths, in_shard, items_of


def test_folders_globs_files_and_standard_input_name_each_file_once(tmp_path):
    for name in ("b.jpg", "a.png", "deep/c.JPG", "notes.txt", "deep/clip.mp4"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    listed = io.StringIO(f"{tmp_path}/from stdin.jpg\n\n{tmp_path}/b.jpg\r\n")
    found = find_paths([str(tmp_path), f"{tmp_path}/**/*.jpg", f"{tmp_path}/notes.txt", "-"], listed)
    names = [path.removeprefix(f"{tmp_path}/") for path in found]
    assert names == ["a.png", "b.jpg", "deep/c.JPG", "deep/clip.mp4", "notes.txt", "from stdin.jpg"]


def test_links_are_followed_once_and_what_is_passed_over_is_counted(tmp_path, capsys):
    for name in ("set/a.JFIF", "set/b.heic", "set/notes.txt", "set/more.TXT", "set/README", "far/c.avif", "far/d.m2ts", "far/e.gif"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "set/link").symlink_to(tmp_path / "far")
    (tmp_path / "far/back").symlink_to(tmp_path / "set")
    (tmp_path / "set/gone.jpg").symlink_to(tmp_path / "nowhere")
    names = [path.removeprefix(f"{tmp_path}/set/") for path in find_paths([str(tmp_path / "set")])]
    assert names == ["a.JFIF", "b.heic", "gone.jpg", "link/c.avif", "link/d.m2ts", "link/e.gif"]
    assert capsys.readouterr().err.endswith("no photos or videos: 2 .txt, 1 without a suffix\n")


def test_a_glob_without_a_match_is_refused_beside_others(tmp_path):
    (tmp_path / "a.jpg").touch()
    with pytest.raises(UserError, match=r"\*.png: no such file"):
        find_paths([str(tmp_path / "a.jpg"), str(tmp_path / "*.png")])
    (tmp_path / "[x].jpg").touch()
    assert find_paths([str(tmp_path / "[x].jpg")]) == [str(tmp_path / "[x].jpg")]


@pytest.mark.parametrize("word", ["nowhere.jpg", "empty", "empty/*.jpg"])
def test_a_word_that_names_nothing_is_one_line(tmp_path, word):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError) as error:
        find_paths([str(tmp_path / word)])
    assert "\n" not in str(error.value)


@given(st.lists(st.text(min_size=1), unique=True), st.integers(1, 7))
def test_every_path_is_of_exactly_one_shard(paths, count):
    for path in paths:
        assert sum(in_shard(path, index, count) for index in range(count)) == 1


def load_all(items, threads=4):
    """What the items give, read by several threads, but for nothing."""
    with ThreadPoolExecutor(threads) as pool:
        return [found for found in pool.map(Item.load, items) if found is not None]


def test_frames_read_by_many_threads_are_the_right_ones(tmp_path):
    path = str(tmp_path / "clip.mp4")
    write_video(tmp_path / "clip.mp4", frames=20)
    *frames, end = load_all(items_of([path], done={(path, 6)}, every=3))
    assert [frame.number for frame in frames] == [0, 3, 9, 12, 15, 18]
    np.testing.assert_allclose([frame.pixels.mean() for frame in frames], [10 * frame.number + 20 for frame in frames], atol=4)
    np.testing.assert_allclose([frame.seconds for frame in frames], [0, 0.3, 0.9, 1.2, 1.5, 1.8], atol=1e-3)
    assert end == End(20)


def test_a_video_whose_end_has_a_row_is_not_opened_again(tmp_path):
    write_video(tmp_path / "clip.mp4", frames=4)
    path = str(tmp_path / "clip.mp4")
    assert load_all(items_of([path], {(path, 0), (path, 1)}))[0].number == 2
    assert list(items_of([path], {(path, 0), (path, None)})) == []


@pytest.mark.parametrize("content", [b"no video at all", b""])
def test_a_broken_video_is_one_item_that_says_so(tmp_path, content):
    (tmp_path / "clip.mp4").write_bytes(content)
    items = items_of([str(tmp_path / "clip.mp4")], set())
    with pytest.raises(UserError, match=r"cannot be read as a video|is empty"):
        next(items).load()
    assert list(items) == []


def test_what_is_done_is_left_out(tmp_path):
    paths = [str(write_path) for write_path in (tmp_path / "a.jpg", tmp_path / "b.jpg")]
    write_photo(tmp_path / "a.jpg", 0)
    assert [item.path for item in items_of(paths, {(paths[0], None)})] == paths[1:]


@pytest.mark.parametrize("count", [0, 3])
def test_a_video_that_cannot_be_read_on_ends_there_and_one_that_never_could_is_unreadable(monkeypatch, count):
    def frames(*_):
        yield from (Frame(number, None, np.zeros((2, 2, 3), np.uint8), "") for number in range(count))
        raise Unreadable("killed")

    monkeypatch.setattr("jaxface.prediction.items.frames_apart", frames)
    video = Video("v.mp4")
    assert [video.read(turn).number for turn in range(count)] == list(range(count))
    if count:
        assert video.read(count) == End(count, "killed")
    else:
        with pytest.raises(Unreadable, match="killed"):
            video.read(0)
    assert video.read(count + 1) is None
