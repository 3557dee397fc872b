"""Checkpoint files that something happened to."""

import hashlib
import json
import resource
import shutil
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from safetensors.numpy import save_file
from saved_state import data_files

from jaxface.errors import UserError
from jaxface.runs.checkpoints import Checkpoints, Saved

# a reader that is given a cut file leaves threads behind that speak when their loop is gone
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


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
    assert checkpoints.saves() == [2, 1]
    assert same(checkpoints.restore(state(0)), 3)


def newest(checkpoints):
    return max(Path(checkpoints.folder).glob("save_*"))


def test_any_file_of_the_newest_cut_or_gone_gives_way_to_the_one_before_and_nothing_is_lost(checkpoints, tmp_path):
    kept = tmp_path / "kept"
    shutil.copytree(newest(checkpoints), kept)
    needed = 0
    for name in [path.relative_to(kept) for path in sorted(kept.rglob("*")) if path.is_file() and path.stat().st_size]:
        path = newest(checkpoints) / name
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
        passed_over = same(checkpoints.restore(state(0)), 2)
        needed += passed_over
        assert passed_over or same(checkpoints.restore(state(0)), 3), name
        path.write_bytes(whole)
    assert needed >= 3
    assert same(checkpoints.restore(state(0)), 3)


def test_a_changed_bit_in_any_file_gives_way_to_the_one_before_or_changes_nothing(checkpoints):
    noticed = 0
    for path in sorted(path for path in newest(checkpoints).rglob("*") if path.is_file() and path.stat().st_size):
        whole = path.read_bytes()
        for place in range(0, len(whole), max(1, len(whole) // 6)):
            path.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
            restored = checkpoints.restore(state(0))
            assert same(restored, 2) or same(restored, 3), (path, place)
            noticed += same(restored, 2)
        path.write_bytes(whole)
    assert noticed >= 6


def test_what_the_loop_carries_comes_back_as_it_was_saved_or_not_at_all(checkpoints):
    (path,) = (path for path in newest(checkpoints).rglob("*") if path.is_file() and b"of step 3" in path.read_bytes())
    whole = path.read_bytes()
    start = whole.index(b"best")
    for place in range(start, whole.index(b"true", start) + 4, 2):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])  # 3 becomes 2: JSON all the same
        assert same(checkpoints.restore(state(0)), 2), place


def test_after_a_damaged_one_was_passed_over_the_next_saves_leave_good_ones_alone(checkpoints):
    for path in data_files(newest(checkpoints)):
        path.write_bytes(b"nothing")
    assert same(checkpoints.restore(state(0)), 2)
    save(checkpoints, 4)
    for path in data_files(newest(checkpoints)):
        path.write_bytes(b"nothing")
    assert same(checkpoints.restore(state(0)), 2)


def test_where_every_state_is_damaged_one_line_says_what_to_do_and_nothing_changes(checkpoints):
    for save_ in Path(checkpoints.folder).glob("save_*"):
        for path in data_files(save_):
            path.write_bytes(b"nothing")
    before = {path: path.is_file() and path.read_bytes() for path in Path(checkpoints.folder).rglob("*")}
    with pytest.raises(
        UserError, match=r"no state in it is what was saved \(save_00000002: .*put a copy back, or remove that folder"
    ) as caught:
        checkpoints.restore(state(0))
    assert "\n" not in str(caught.value)
    assert {path: path.is_file() and path.read_bytes() for path in Path(checkpoints.folder).rglob("*")} == before


def test_averages_of_statistics_that_earlier_versions_did_not_save_start_from_the_statistics(tmp_path):
    class Averaged(NamedTuple):
        step: np.ndarray
        statistics: dict
        average: dict

    checkpoints, norm = Checkpoints(tmp_path), {"norm.mean": np.arange(3.0)}
    checkpoints.save(Saved(Averaged(np.int32(7), norm, {"w": np.ones(2)}), {}))
    checkpoints.wait()
    saved = checkpoints.restore(Averaged(np.int32(0), {"norm.mean": np.zeros(3)}, {"w": np.zeros(2), "norm.mean": np.zeros(3)}))
    np.testing.assert_array_equal(saved.state.average["norm.mean"], np.arange(3.0))
    np.testing.assert_array_equal(saved.state.average["w"], np.ones(2))
    checkpoints.close()


def test_a_state_of_a_later_version_is_refused_by_name(checkpoints, monkeypatch):
    monkeypatch.setattr("jaxface.runs.checkpoints.FORMAT", 99)
    save(checkpoints, 4)
    monkeypatch.undo()
    with pytest.raises(UserError, match=r"save_00000003 was saved by a later version"):
        checkpoints.restore(state(0))


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (
            {"w": np.zeros((2, 2), np.float32), "n": np.arange(3)},
            r"save_00000002: \.trained\['w'\] is float32\[7, 5\], this run's is float32\[2, 2\]",
        ),
        ({"w": np.zeros((7, 5), np.float32)}, r"has the field \.trained\['n'\], which this run does not know"),
        ({"w": np.zeros((7, 5), np.float32), "n": np.arange(3), "m": np.zeros(1)}, r"lacks the field \.trained\['m'\], which this run has"),
    ],
)
def test_a_whole_state_of_other_fields_or_shapes_is_refused_in_one_line_and_nothing_changes(checkpoints, other, message):
    before = sorted(Path(checkpoints.folder).rglob("*"))
    with pytest.raises(UserError, match=message) as caught:
        checkpoints.restore(State(np.int32(0), other))
    assert "\n" not in str(caught.value)
    assert sorted(Path(checkpoints.folder).rglob("*")) == before


def write_as_before_orbax(folder, step):
    """A checkpoint in the format of version 0.1.0, by its description alone."""
    carried = json.dumps(host(step))
    arrays = {".step": state(step).step, **{f".trained['{name}']": array for name, array in state(step).trained.items()}}
    digest = hashlib.sha256()
    for name, array in sorted({**arrays, "host": np.frombuffer(carried.encode(), np.uint8)}.items()):
        digest.update(f"{name} {array.dtype} {array.shape}".encode() + array.tobytes())
    folder.mkdir(parents=True, exist_ok=True)
    whole = {name: np.asarray(array) for name, array in arrays.items()}
    save_file(whole, folder / f"step-{step:08d}.safetensors", {"host": carried, "sha256": digest.hexdigest()})


def test_files_of_earlier_versions_are_read_and_leave_once_there_are_two_new_ones(tmp_path):
    for step in (5, 6):
        write_as_before_orbax(tmp_path, step)
    checkpoints = Checkpoints(tmp_path)
    restored = checkpoints.restore(state(0))
    assert same(restored, 6)
    (tmp_path / "step-00000006.safetensors").write_bytes(b"cut")
    assert same(checkpoints.restore(state(0)), 5)
    save(checkpoints, 7)
    assert same(checkpoints.restore(state(0)), 7)
    assert list(tmp_path.glob("step-*"))
    save(checkpoints, 8)
    assert not list(tmp_path.glob("step-*"))
    checkpoints.close()


def test_a_full_disk_is_one_line_and_leaves_the_last_state(checkpoints):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64, before[1]))
    try:
        checkpoints.save(Saved(state(4), {}))
        with pytest.raises(UserError, match=r"the state of step 4 cannot be written: ") as caught:
            checkpoints.wait()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "\n" not in str(caught.value)
    again = Checkpoints(checkpoints.folder)
    assert same(again.restore(state(0)), 3)
    save(again, 4)
    assert same(again.restore(state(0)), 4)
    again.close()


def test_a_vanished_folder_is_one_line(checkpoints):
    shutil.rmtree(checkpoints.folder)
    checkpoints.save(Saved(state(4), {}))
    with pytest.raises(UserError, match=r"the folder has vanished; the state of step 4 is not saved$"):
        checkpoints.wait()


def test_a_place_that_nothing_here_can_write_is_one_line():
    with pytest.raises(UserError, match=r"^nowhere://at/all: cannot write checkpoints there \("):
        Checkpoints("nowhere://at/all")


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write checkpoints there"):
        Checkpoints(tmp_path / "file" / "checkpoints")
