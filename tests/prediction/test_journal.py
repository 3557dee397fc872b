"""Results on disk: whole lines only, each image once, tables with one row a face."""

import csv
import json
import os
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxface.digests import stamp_of
from jaxface.errors import UserError
from jaxface.prediction.journal import Journal

ABOUT = {"model": "abc", "classes": {"gender": ["male", "female"]}}


def face(name="female", confidence=0.75):
    answer = {"class": name, "confidence": confidence, "probabilities": {"male": 0.4, "female": 0.6}}
    return {"box": [1.0, 2.0, 3.0, 4.0], "score": 0.9, "gender": answer}


def result(path, faces=(), frame=None, status="ok", error=None):
    return {"path": path, "frame": frame, "status": status, "error": error, "width": 8, "height": 6, "faces": list(faces)}


@settings(max_examples=25, deadline=None)
@given(cut=st.integers(0, 2000))
def test_a_journal_cut_at_any_byte_goes_on_with_each_image_once(tmp_path_factory, cut):
    out = tmp_path_factory.mktemp("journal") / "faces.jsonl"
    names = [f"photo ü{i}.jpg" for i in range(6)]
    with Journal(out, ABOUT) as journal:
        for name in names:
            journal.write(result(name, [face()]))
    with out.open("rb+") as file:
        file.truncate(min(cut, out.stat().st_size))
    with Journal(out, ABOUT) as journal:
        for name in names:
            if (name, None) not in journal.done:
                journal.write(result(name, [face()]))
    assert sorted(json.loads(line)["path"] for line in out.read_text().splitlines()) == names


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_tables_have_a_row_for_each_face_and_for_each_image_without(tmp_path, suffix):
    out = tmp_path / f"faces{suffix}"
    with Journal(out, ABOUT) as journal:
        journal.write(result("two, faces\n.jpg", [face(), face("male")]))
        journal.write(result("none.jpg", status="no face"))
        journal.write(result("bad.jpg", status="unreadable", error="the file is empty"))
        journal.write(result("clip.mp4", [face()], frame=7))
        journal.finish()
    rows = pq.read_table(out).to_pylist() if suffix == ".parquet" else list(csv.DictReader(out.open(newline="")))
    assert [row["path"] for row in rows] == ["two, faces\n.jpg"] * 2 + ["none.jpg", "bad.jpg", "clip.mp4"]
    assert [row["gender"] or None for row in rows] == ["female", "male", None, None, "female"]
    assert [str(row["face"]) for row in rows][:2] == ["0", "1"]
    assert float(rows[0]["gender_male"]) == 0.4
    assert float(rows[0]["gender_confidence"]) == 0.75
    assert (rows[3]["status"], rows[3]["error"], str(rows[4]["frame"])) == ("unreadable", "the file is empty", "7")


def test_an_empty_job_has_a_table_of_no_rows(tmp_path):
    with Journal(tmp_path / "none.parquet", ABOUT) as journal:
        journal.finish()
    assert pq.read_table(tmp_path / "none.parquet").num_rows == 0


def test_results_of_another_model_are_not_mixed(tmp_path):
    with Journal(tmp_path / "a.jsonl", ABOUT):
        pass
    with pytest.raises(UserError, match=r"another job \(different: model\)"):
        Journal(tmp_path / "a.jsonl", ABOUT | {"model": "other"})


def test_a_file_of_somebody_else_is_left_alone(tmp_path):
    (tmp_path / "a.csv").write_text("mine\n")
    with pytest.raises(UserError, match="was not written by this command"):
        Journal(tmp_path / "a.csv", ABOUT)
    assert (tmp_path / "a.csv").read_text() == "mine\n"


def test_an_unknown_suffix_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"one of \.csv, \.jsonl, \.parquet"):
        Journal(tmp_path / "a.xlsx", ABOUT)


def test_a_file_that_has_changed_is_done_again_and_no_other(tmp_path):
    out = tmp_path / "a.csv"
    names = [str(tmp_path / f"{name}.jpg") for name in "abc"]
    for name in names:
        Path(name).write_bytes(b"old")

    def run():
        with Journal(out, ABOUT) as journal:
            changed = journal.take_up({name: stamp_of(name) for name in names})
            todo = [name for name in names if (name, None) not in journal.done]
            for name in todo:
                journal.write(result(name, [face()]))
            journal.finish()
        return changed, todo

    assert run() == (0, names)
    assert run() == (0, [])
    Path(names[1]).write_bytes(b"newer")
    assert run() == (1, [names[1]])
    assert run() == (0, [])
    assert sorted(row["path"] for row in csv.DictReader(out.read_text().splitlines())) == names


def test_the_content_tells_what_size_and_time_do_not(tmp_path):
    path = tmp_path / "a.jpg"
    path.write_bytes(b"old")
    before, time = (stamp_of(str(path)), stamp_of(str(path), content=True)), path.stat().st_mtime_ns
    path.write_bytes(b"new")
    os.utime(path, ns=(time, time))
    assert stamp_of(str(path)) == before[0]
    assert stamp_of(str(path), content=True) != before[1]
    assert stamp_of(str(tmp_path / "none")) == ("",)


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_a_finished_job_whose_output_was_taken_away_begins_anew(tmp_path, suffix):
    out = tmp_path / f"a{suffix}"
    with Journal(out, ABOUT) as journal:
        journal.write(result("old.jpg", [face()]))
        journal.finish()
    out.unlink()
    with Journal(out, ABOUT | {"model": "another"}) as journal:
        assert not journal.done
        journal.write(result("new.jpg", [face()]))
        journal.finish()
        assert [row["path"] for row in journal.rows()] == ["new.jpg"]


def test_one_output_has_one_writer_at_a_time(tmp_path):
    with Journal(tmp_path / "a.csv", ABOUT), pytest.raises(UserError, match="another command is writing it"):
        Journal(tmp_path / "a.csv", ABOUT)
    with Journal(tmp_path / "a.csv", ABOUT):
        pass


def test_cells_are_shown_and_not_computed_and_can_be_read_as_unicode(tmp_path):
    names = ["=HYPERLINK(1).jpg", "+1.jpg", "-2.jpg", "@sum.jpg", "plain.jpg", os.fsdecode(b"caf\xe9.jpg")]
    for suffix in (".csv", ".parquet"):
        with Journal(tmp_path / f"faces{suffix}", ABOUT) as journal:
            for name in names:
                journal.write(result(name, status="unreadable", error="=1+1"))
            journal.finish()
    table = list(csv.DictReader((tmp_path / "faces.csv").open(newline="", encoding="utf-8")))
    assert [row["path"] for row in table] == ["'=HYPERLINK(1).jpg", "'+1.jpg", "'-2.jpg", "'@sum.jpg", "plain.jpg", "caf\\xe9.jpg"]
    assert {row["error"] for row in table} == {"'=1+1"}
    assert pq.read_table(tmp_path / "faces.parquet")["path"].to_pylist() == [*names[:5], "caf\\xe9.jpg"]


def test_numbers_that_are_none_are_null(tmp_path):
    with Journal(tmp_path / "faces.jsonl", ABOUT) as journal:
        journal.write(result("a.jpg") | {"width": float("nan")})
    assert json.loads((tmp_path / "faces.jsonl").read_text(), parse_constant=pytest.fail)["width"] is None
