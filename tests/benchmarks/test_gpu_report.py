"""One command for a machine with a GPU: its parts are commands that exist, and what cannot be had is said."""

import importlib
import json

import pytest

from jaxface.benchmarks import BENCHMARKS, gpu_report
from jaxface.benchmarks.gpu_report import Options, Part, main, parts
from jaxface.cli import parse


@pytest.mark.parametrize("part", [part for part in parts(Options("x")) if "jaxface.bench" in part.words], ids=lambda part: part.name)
def test_every_part_is_a_benchmark_that_takes_its_options(part):
    module = importlib.import_module(f"jaxface.benchmarks.{BENCHMARKS.get(part.words[2])}")
    assert parse(module.Options, args=list(part.words[3:]), prog="x") is not None


@pytest.mark.parametrize("backend", ["cpu", "gpu"])
def test_it_ends_whatever_its_parts_do_and_says_what_came_of_each(backend, tmp_path, monkeypatch):
    lines = {"steps": {"case": "dora", "seconds": 0.4}, "predicted": {"case": "dora", "estimated_seconds": 0.2}}
    made = [Part(name, ("-c", f"print({json.dumps(line)!r})")) for name, line in lines.items()]
    made += [Part("wrong", ("-c", "raise SystemExit('no such thing')")), Part("slow", ("-c", "while True: pass"), seconds=0.5)]
    monkeypatch.setattr(gpu_report, "ASK", f"print({json.dumps({'backend': backend})!r})")
    monkeypatch.setattr(gpu_report, "parts", lambda *_: (*made, Part("anywhere", ("-c", "print(1)"), device=False)))
    main([str(tmp_path / "report")])
    summary = json.loads((tmp_path / "report" / "summary.json").read_text())
    page = (tmp_path / "report" / "summary.md").read_text()
    assert summary["parts"]["anywhere"] == "done"
    if backend == "cpu":
        assert {summary["parts"][name] for name in ("steps", "predicted", "wrong", "slow")} == {"left out: no GPU here"}
        assert page.startswith("# No GPU here")
    else:
        assert summary["parts"]["wrong"] == "failed: no such thing"
        assert summary["parts"]["slow"].startswith("ended after")
        assert "| dora | 0.200 | 0.400 | 2.00 |" in page
