"""Whatever the system refuses while a command writes is one line, nothing stands half-written, and the next run is whole."""

import errno
import fcntl
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from faces import write_manifest
from safetensors import safe_open

from jaxface.adapters.peft_format import save_peft
from jaxface.data.preparation import prepare
from jaxface.errors import UserError, run_command, tell
from jaxface.evaluation.predictions import Predictions
from jaxface.exports.run_folder import pack
from jaxface.files import alone_in, held, to_json, write_arrays, write_json
from jaxface.prediction.journal import Journal
from jaxface.runs.best import save_best
from jaxface.runs.evaluate_run import write_scores
from jaxface.runs.model import load_trained
from jaxface.runs.predictions_file import write_predictions

WRITES = os.O_WRONLY | os.O_RDWR


class Fault:
    """Lets the n-th opening for writing, renaming, making of a folder or syncing below a folder fail."""

    def __init__(self):
        self.root, self.left, self.struck = None, -1, 0

    def __call__(self, event, args):
        if self.root is None or (event == "os.mkdir" and os.path.isdir(args[0])):
            return
        if event in ("os.rename", "os.mkdir", "os.link", "os.truncate") or (event == "open" and args[2] & WRITES):
            self.strike(args[0])

    def strike(self, path):
        if isinstance(path, str | bytes | os.PathLike) and not os.fsdecode(path).startswith(self.root):
            return
        if self.left == 0:
            self.struck += 1
            self.left = -1
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), os.fsdecode(path) if isinstance(path, str | bytes) else None)
        self.left -= 1


FAULT = Fault()
sys.addaudithook(FAULT)


@pytest.fixture
def fault(monkeypatch):
    """`fault(root, n)` arms it; returns whether it has struck when called without arguments."""
    really = os.fsync

    def fsync(file):
        if FAULT.root is not None:
            FAULT.strike(None)
        really(file)

    monkeypatch.setattr(os, "fsync", fsync)

    def arm(root=None, n=-1):
        struck = FAULT.struck
        FAULT.root, FAULT.left, FAULT.struck = None if root is None else str(root), n, 0
        return struck

    yield arm
    arm()


def command(main):
    with pytest.raises(SystemExit) as ended:
        run_command(main)
    return ended.value.code


def test_whichever_write_of_prepare_fails_is_one_line_and_the_next_run_is_whole(fault, tmp_path, capsys):
    table = write_manifest(tmp_path / "in", 8)
    for n in range(100):
        fault(tmp_path, n)
        status = command(lambda: prepare("manifest", table, tmp_path / "out") and 0)
        struck = fault()
        errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
        if not struck:
            assert status == 0
            break
        assert "Traceback" not in "".join(errors)
        if status:  # a hard link that cannot be made is made by copying, for one
            assert (status, len(errors)) == (2, 1)
            assert "No space left on device" in errors[0]
            assert not (tmp_path / "out/summary.json").exists() or json.loads((tmp_path / "out/summary.json").read_text())
            assert not list(tmp_path.rglob("*[0-9].partial"))
        else:
            shutil.rmtree(tmp_path / "out")
    assert 8 < n < 99
    assert {path.name for path in tmp_path.iterdir()} == {"in", "out"}


def test_whichever_write_of_a_journal_fails_is_one_line_and_no_result_is_lost_or_doubled(fault, tmp_path):
    about = {"classes": {"gender": ["male", "female"]}, "temperatures": {}}
    answer = {
        "box": [0, 0, 9, 9],
        "score": 1.0,
        "gender": {"class": "male", "confidence": 0.5, "probabilities": {"male": 1.0, "female": 0.0}},
    }
    rows = [
        {"path": f"{i}.jpg", "frame": None, "status": "ok", "error": None, "width": 9, "height": 9, "faces": [answer]} for i in range(3)
    ]
    told: list[str] = []
    for suffix in (".csv", ".jsonl", ".parquet"):
        for n in range(100):
            fault(tmp_path, n)
            try:
                with Journal(tmp_path / f"o{suffix}", about) as journal:
                    for row in rows:
                        if (row["path"], None) not in journal.done:
                            journal.write(row)
                    journal.finish()
                if not fault():
                    break
            except UserError as error:
                told.append(str(error))
        assert 2 < n < 99
        assert not [line for line in told if "\n" in line or "No space left on device" not in line]
        lines = next(path for path in (tmp_path / f"o{suffix}.lines.jsonl", tmp_path / f"o{suffix}") if path.exists())
        assert [json.loads(line)["path"] for line in lines.read_text().splitlines()] == ["0.jpg", "1.jpg", "2.jpg"]
        assert not list(tmp_path.glob(".*"))


def write_answers(trained, folder):
    """What `jaxface.evaluate` writes of answers."""
    rng = np.random.default_rng(0)
    labels = {task.name: rng.integers(0, task.num_classes, 6) for task in trained.tasks}
    logits = {task.name: rng.normal(size=(6, task.num_classes)).astype(np.float32) for task in trained.tasks}
    names, nothing = np.array(list("abcdef"), object), np.full(6, "", object)
    predictions = Predictions(trained.tasks, names, labels, logits, nothing, nothing)
    write_predictions(folder / "predictions.parquet", predictions)
    write_scores(folder, predictions, {})


WRITERS = {
    "a packed run": lambda trained, folder: pack(trained, folder),
    "adapters for PEFT": lambda trained, folder: save_peft(trained.model.encoder, folder),
    "a best model": lambda trained, folder: save_best(folder, {"a": np.ones(3)}, {"step": 1}),
    "answers and figures": write_answers,
}


@pytest.fixture(scope="module")
def trained(trained_run):
    return load_trained(trained_run)


@pytest.mark.parametrize("name", WRITERS)
def test_whichever_write_of_a_folder_fails_is_one_line_and_the_next_run_is_whole(fault, trained, tmp_path, capsys, name):
    def write(folder):
        with alone_in(folder):
            WRITERS[name](trained, folder)

    def files(folder):
        return {str(path.relative_to(folder)): path.stat().st_size for path in folder.rglob("*") if path.is_file()}

    write(tmp_path / "undisturbed")
    for n in range(100):
        fault(tmp_path / str(n), n)
        status, struck = command(lambda n=n: write(tmp_path / str(n))), fault()
        errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
        if not struck:
            break
        assert (status, len(errors)) == (2, 1)
        assert "No space left on device" in errors[0]
        assert not list(tmp_path.rglob("*.partial"))
        write(tmp_path / str(n))
        assert files(tmp_path / str(n)) == files(tmp_path / "undisturbed")
    assert 2 < n < 99


@pytest.mark.parametrize("name", ["file/below", "x" * 256, "folder"])
def test_a_target_that_cannot_be_is_one_line(tmp_path, name):
    (tmp_path / "file").touch()
    (tmp_path / "folder/in").mkdir(parents=True)
    with pytest.raises(UserError, match="cannot be written") as error:
        write_json(tmp_path / name, {})
    assert "\n" not in str(error.value)
    assert not list(tmp_path.glob(".*"))


def test_a_name_of_255_bytes_can_be_written(tmp_path):
    write_json(tmp_path / ("x" * 250 + ".json"), {})
    assert len(list(tmp_path.iterdir())) == 1


def test_who_opened_a_file_that_its_holder_then_replaced_holds_the_new_one(tmp_path, monkeypatch):
    path, really = tmp_path / "a.jsonl", fcntl.flock
    path.write_text("old")

    def flock(handle, how):
        monkeypatch.setattr(fcntl, "flock", really)
        write_json(path, "new")  # between opening and locking
        really(handle, how)

    monkeypatch.setattr(fcntl, "flock", flock)
    handle = held(path, "busy", os.O_RDWR)
    assert os.read(handle, 9) == b'"new"\n'
    with pytest.raises(UserError, match="busy"):
        held(path, "busy")
    os.close(handle)


def test_a_folder_that_two_commands_write_is_the_first_ones_and_one_of_a_failure_is_not_left(tmp_path):
    with alone_in(tmp_path / "a"), pytest.raises(UserError, match="another command is writing there"), alone_in(tmp_path / "a"):
        pass
    with pytest.raises(UserError, match="nothing"), alone_in(tmp_path / "b"):
        raise UserError("nothing")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_what_is_no_number_is_null_in_json():
    assert to_json({"a": [float("nan"), 1.5, {"b": float("-inf")}]}) == '{"a": [null, 1.5, {"b": null}]}'


def test_an_error_inside_leaves_the_old_file(tmp_path):
    (tmp_path / "a").write_text("old")
    with pytest.raises(TypeError):
        write_json(tmp_path / "a", {"what": object()})
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("a", "old")]


ENDS = """
import sys
from jaxface.errors import run_command
def main():
    for line in range(100_000):
        print(line)
def missing():
    open("nowhere/at\\nall\\x1b[2J")
def named():
    print("wrote \\udcff")
run_command({"main": main, "missing": missing, "named": named}[sys.argv[1]])
"""


LIMITED = """
import resource, sys
from pathlib import Path
from jaxface.data.preparation import prepare
from jaxface.errors import run_command
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]), resource.RLIM_INFINITY))
run_command(lambda: prepare("manifest", Path(sys.argv[1]), Path(sys.argv[2])) and 0)
"""


@pytest.mark.parametrize("most", [0, 10_000])
def test_a_disk_that_is_full_in_the_midst_of_a_file_is_one_line_of_prepare(tmp_path, most):
    table = write_manifest(tmp_path / "in", 12)
    words = [sys.executable, "-c", LIMITED, str(table), str(tmp_path / "out"), str(most)]
    run = subprocess.run(words, capture_output=True, text=True, check=False)
    assert run.returncode == 2
    assert [line.startswith("error: ") and "File too large" in line for line in run.stderr.splitlines()] == [True]
    assert not (tmp_path / "out").exists()


def test_the_same_arrays_are_the_same_bytes(tmp_path):
    arrays, said = {"b": np.arange(3, dtype=np.float32), "a": np.ones((2, 2), np.int8)}, {"info": '{"é": 1}', "sha256": "00"}
    for number in range(8):  # safetensors draws the order of what is said anew each time
        write_arrays(tmp_path / str(number), arrays, said)
    assert len({(tmp_path / str(number)).read_bytes() for number in range(8)}) == 1
    with safe_open(tmp_path / "0", "numpy") as file:
        assert file.metadata() == said
        assert all(np.array_equal(file.get_tensor(name), array) for name, array in arrays.items())


def test_a_line_about_a_long_cell_has_an_end(capsys):
    tell(f"t.csv:9: age {100_000 * 'x'}: expected years")
    said = capsys.readouterr().err
    assert len(said) < 2000
    assert said.startswith("t.csv:9: age x")
    assert said.endswith("x: expected years\n")


def test_output_that_nobody_reads_ends_a_command_without_words():
    run = subprocess.Popen([sys.executable, "-c", ENDS, "main"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    run.stdout.readline()
    run.stdout.close()
    assert run.stderr.read() == b""
    assert run.wait() == 141


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_output_that_cannot_be_written_is_one_line():
    with open("/dev/full", "w") as full:
        run = subprocess.run([sys.executable, "-c", ENDS, "main"], stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert (run.returncode, run.stderr) == (2, "error: No space left on device\n")
    run = subprocess.run([sys.executable, "-c", ENDS, "missing"], capture_output=True, text=True, check=False)
    assert (run.returncode, run.stderr) == (2, "error: nowhere/at\\nall\\x1b[2J: cannot be used: No such file or directory\n")
    run = subprocess.run([sys.executable, "-c", ENDS, "named"], capture_output=True, text=True, check=False)
    assert (run.returncode, run.stdout, run.stderr) == (0, "wrote \\udcff\n", "")
