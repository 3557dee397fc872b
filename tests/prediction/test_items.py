"""Where images come from, and in which order."""

import io
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest
from faces import write_photo, write_video
from hypothesis import given
from hypothesis import strategies as st

from jaxface.errors import UserError
from jaxface.prediction.items import Item, find_paths, in_shard, items_of


def test_folders_globs_files_and_standard_input_name_each_file_once(tmp_path):
    for name in ("b.jpg", "a.png", "deep/c.JPG", "notes.txt", "deep/clip.mp4"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    listed = io.StringIO(f"{tmp_path}/from stdin.jpg\n\n{tmp_path}/b.jpg\r\n")
    found = find_paths([str(tmp_path), f"{tmp_path}/**/*.jpg", f"{tmp_path}/notes.txt", "-"], listed)
    names = [path.removeprefix(f"{tmp_path}/") for path in found]
    assert names == ["a.png", "b.jpg", "deep/c.JPG", "deep/clip.mp4", "notes.txt", "from stdin.jpg"]


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


def test_frames_read_by_many_threads_are_the_right_ones(tmp_path):
    write_video(tmp_path / "clip.mp4", frames=20)
    items = items_of([str(tmp_path / "clip.mp4")], done={(str(tmp_path / "clip.mp4"), 6)}, every=3)
    assert [item.frame for item in items] == [0, 3, 9, 12, 15, 18]
    with ThreadPoolExecutor(4) as pool:
        images = list(pool.map(Item.load, items))
    grey = [int(image.pixels.mean()) for image in images]
    np.testing.assert_allclose(grey, [10 * item.frame + 20 for item in items], atol=4)


def test_a_frame_behind_the_end_is_nothing(tmp_path):
    write_video(tmp_path / "clip.mp4", frames=4)
    items = items_of([str(tmp_path / "clip.mp4")], set())
    capture = cv2.VideoCapture(str(tmp_path / "clip.mp4"))
    assert len(items) == int(capture.get(cv2.CAP_PROP_FRAME_COUNT)) == 4
    items[0].video._order |= {9: 4}
    assert [item.load() is None for item in items] == [False] * 4
    assert items[0].video.read(9) is None


def test_a_broken_video_is_one_item_that_says_so(tmp_path):
    (tmp_path / "clip.mp4").write_bytes(b"no video at all")
    (item,) = items_of([str(tmp_path / "clip.mp4")], set())
    with pytest.raises(UserError, match="cannot be read as a video"):
        item.load()


def test_what_is_done_is_left_out(tmp_path):
    paths = [str(write_path) for write_path in (tmp_path / "a.jpg", tmp_path / "b.jpg")]
    write_photo(tmp_path / "a.jpg", 0)
    assert [item.path for item in items_of(paths, {(paths[0], None)})] == paths[1:]
