"""Checkpoint files that something happened to."""

import errno
import os
import shutil
from typing import NamedTuple

import numpy as np
import pytest

from jaxface.errors import UserError
from jaxface.runs.checkpoints import Checkpoints, Saved


class State(NamedTuple):
    step: np.ndarray
    trained: dict


def state(step):
    rng = np.random.default_rng(step)
    return State(np.int32(step), {"w": rng.normal(size=(7, 5)).astype(np.float32), "n": np.arange(step, step + 3)})


def host(step):
    """What the loop carries."""
    return {"best": float("-inf"), "step": step, "words": f"of step {step}", "plateau": [step / 7, True]}


def save(checkpoints, step):
    checkpoints.save(Saved(state(step), host(step)))
    checkpoints.wait()


def same(saved, step):
    expected = state(step)
    arrays = all(np.array_equal(saved.state.trained[k], v) for k, v in expected.trained.items())
    return saved.state.step == step and arrays and saved.host == host(step)


@pytest.fixture
def checkpoints(tmp_path):
    made = Checkpoints(tmp_path / "checkpoints")
    for step in (1, 2, 3):
        save(made, step)
    yield made
    made.close()


def test_the_newest_state_comes_back_whole_and_the_one_before_is_kept(checkpoints):
    assert checkpoints.steps() == [3, 2]
    assert same(checkpoints.restore(state(0)), 3)


@pytest.mark.parametrize("tenths", range(10))
def test_a_newest_file_cut_at_any_tenth_gives_way_to_the_one_before(checkpoints, tenths):
    path = checkpoints.folder / "step-00000003.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) * tenths // 10])
    assert same(checkpoints.restore(state(0)), 2)
    assert checkpoints.steps() == [2]  # the broken one is out of the way, and the next save takes its name
    save(checkpoints, 3)
    assert same(checkpoints.restore(state(0)), 3)


def test_a_single_changed_bit_anywhere_gives_way_to_the_one_before(checkpoints):
    path = checkpoints.folder / "step-00000003.safetensors"
    whole = path.read_bytes()
    for place in range(0, len(whole), 37):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        restored = checkpoints.restore(state(0))
        assert same(restored, 2), place
        for broken in checkpoints.folder.glob("*.broken"):
            broken.unlink()


def test_what_the_loop_carries_comes_back_as_it_was_saved_or_not_at_all(checkpoints):
    folder = checkpoints.folder.parent
    whole = {path: path.read_bytes() for path in checkpoints.folder.rglob("*") if path.is_file()}
    (path,) = (path for path, content in whole.items() if b"of step 3" in content)
    start = whole[path].index(b"best") - 3
    end = whole[path].index(b"true", start) + 6
    for place in range(start, end):
        for bit in (1, 4):
            shutil.rmtree(folder)
            for other, content in whole.items():
                other.parent.mkdir(parents=True, exist_ok=True)
                other.write_bytes(content)
            path.write_bytes(whole[path][:place] + bytes([whole[path][place] ^ bit]) + whole[path][place + 1 :])
            assert same(checkpoints.restore(state(0)), 2), (place, whole[path][start:end])


def test_a_state_of_other_shapes_is_not_taken(checkpoints):
    other = State(np.int32(0), {"w": np.zeros((2, 2), np.float32), "n": np.arange(3)})
    assert checkpoints.restore(other) is None


def test_a_full_disk_is_one_line_and_leaves_the_last_state(checkpoints, monkeypatch):
    def full(handle):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    checkpoints.save(Saved(state(4), {}))
    with pytest.raises(UserError, match=r"step-00000004\.safetensors: cannot be written: No space left on device$"):
        checkpoints.wait()
    monkeypatch.undo()
    assert sorted(path.name for path in checkpoints.folder.iterdir()) == ["step-00000002.safetensors", "step-00000003.safetensors"]
    save(checkpoints, 4)
    assert same(checkpoints.restore(state(0)), 4)


def test_a_vanished_folder_is_one_line(checkpoints):
    shutil.rmtree(checkpoints.folder)
    checkpoints.save(Saved(state(4), {}))
    with pytest.raises(UserError, match=r"the folder has vanished; the state of step 4 is not saved$"):
        checkpoints.wait()


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write checkpoints there"):
        Checkpoints(tmp_path / "file" / "checkpoints")
