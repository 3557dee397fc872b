"""`python -m jaxface.report` as a user calls it."""

import json
import sys

import pytest

from jaxface.errors import run_command
from jaxface.report.__main__ import main


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "runs" / "small"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"name": "small", "tasks": ["gender"]}))
    rows = [{"step": step, "split": "train", "loss": 1 / step, "loss/gender": 1 / step} for step in range(1, 9)]
    rows.append({"step": 8, "split": "test", "accuracy/gender": 0.875, "balanced_accuracy/gender": 0.8})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_a_page_is_written_where_it_is_asked_for(run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["report", str(run), str(run), "--out", "pages/all.html"])
    main()
    printed = capsys.readouterr()
    assert printed.err == ""
    assert "pages/all.html" in printed.out
    content = (tmp_path / "pages" / "all.html").read_text()
    assert "87.5 %" in content
    assert content.rstrip().endswith("</html>")


@pytest.mark.parametrize("arguments", [[], ["nowhere"], ["runs/small/metrics.jsonl"], ["runs/small", "--colour", "blue"]])
def test_wrong_input_is_one_line_and_exit_status_2(run, tmp_path, arguments, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["report", *arguments])
    with pytest.raises(SystemExit) as ended:
        run_command(main)
    printed = capsys.readouterr().err
    assert ended.value.code == 2
    assert printed.startswith("error: ")
    assert len(printed.splitlines()) == 1
    assert not (tmp_path / "report.html").exists()


def test_runs_are_found_below_a_folder_and_what_is_no_run_is_named(run, tmp_path, monkeypatch, capsys):
    for name in ("study/one", "study/two"):
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "config.json").write_text(json.dumps({"name": name, "tasks": ["gender"]}))
    (tmp_path / "runs" / "drawn").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["report", "runs/drawn", "runs/small", "runs/study"])
    main()
    assert capsys.readouterr().err == "passed over, no runs: runs/drawn\n"
    page = (tmp_path / "report.html").read_text()
    assert "<title>small, study/one, study/two</title>" in page
