"""The report's page: what it says, that it stands alone, and that it leaves out what a run lacks."""

import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from markupsafe import Markup

from jaxface.data.tasks import AGE, EMOTION, GENDER, Task
from jaxface.errors import UserError
from jaxface.prediction.doubt import cells
from jaxface.report import page
from jaxface.report.console import trust_lines
from jaxface.report.markup import Cell, percent, table
from jaxface.report.page import render, write_report
from jaxface.report.sections.thesis import our_values
from jaxface.runs.predictions_file import read_predictions, write_predictions

VOID = {"meta", "link", "img", "br", "hr", "input"}


class Reader(HTMLParser):
    """Collects a page's tags, ids, addresses and texts, and checks that each tag is closed in its turn."""

    def __init__(self, content):
        super().__init__()
        self.open, self.ids, self.addresses, self.texts, self.tags = [], [], [], [], []
        self.feed(content.replace("<wbr>", ""))  # where a name may be folded is not part of it
        assert self.open == []

    def handle_starttag(self, name, attributes):
        values = dict(attributes)
        self.tags.append((name, values))
        self.ids += [values["id"]] if "id" in values else []
        self.addresses += [values[key] for key in ("src", "href", "xlink:href", "action", "data") if key in values]
        if name not in VOID:
            self.open.append(name)

    def handle_startendtag(self, name, attributes):
        self.handle_starttag(name, attributes)
        if name not in VOID:
            self.open.pop()

    def handle_endtag(self, name):
        assert self.open.pop() == name

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "script"):
            self.texts.append(data.strip())

    @property
    def sections(self):
        return [values["id"] for name, values in self.tags if name == "section"]


def report(tmp_path, *runs):
    return write_report(runs, tmp_path / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def two_runs(make_run):
    return [page.read_run(make_run(name, seed)) for seed, name in enumerate(("one", "two"))]


@pytest.fixture(scope="module")
def whole(two_runs):
    """The page of two whole runs."""
    return Reader(render(page.named(two_runs)))


def test_a_page_of_two_runs_shows_every_part(whole):
    seen = whole
    assert seen.sections == ["results", "faces", "classes", "training", "groups", "hardest", "agreement", "published", "setup", "notes"]
    assert "one, two" in seen.texts
    assert "31.0 %" in seen.texts  # the linear model on pixels
    assert "1,234,567" in seen.texts
    assert sum(name == "img" for name, _ in seen.tags) > 30
    assert any("drawn by a program" in words for words in seen.texts)
    assert any("perceives" in words for words in seen.texts)


def test_a_page_stands_alone(whole):
    assert all(address.startswith(("data:", "#")) for address in whole.addresses)
    assert len(whole.ids) == len(set(whole.ids))
    assert {address[1:] for address in whole.addresses if address.startswith("#")} <= set(whole.ids)


def test_the_same_runs_give_the_same_page(make_run, tmp_path):
    run = make_run(tasks=(GENDER,))
    assert report(tmp_path, run) == report(tmp_path, run)


def test_accuracies_on_the_page_are_those_of_the_stored_answers(two_runs, whole):
    for run in two_runs:
        known = run.predictions.labels["age"] >= 0
        right = (run.predictions.predicted("age") == run.predictions.labels["age"])[known].mean()
        assert f"{100 * right:.1f} %" in whole.texts


@pytest.mark.parametrize(
    ("missing", "gone"),
    [
        (["predictions.parquet"], {"faces", "groups", "hardest"}),  # the starting model's answers still fill the classes
        (["metrics.jsonl"], {"training"}),
        (["faces.npz", "predictions_before.parquet", "baselines.json", "summary.json"], {"faces"}),
    ],
)
def test_what_a_run_lacks_is_left_out(make_run, tmp_path, missing, gone):
    folder = make_run(tasks=(GENDER,))
    for name in missing:
        (folder / name).unlink()
    left = Reader(report(tmp_path, folder)).sections
    whole = ("results", "faces", "classes", "training", "groups", "hardest", "published", "setup", "notes")
    assert left == [part for part in whole if part not in gone]


def test_a_run_of_nothing_but_a_configuration_has_a_page(tmp_path):
    folder = tmp_path / "begun"
    folder.mkdir()
    (folder / "config.json").write_text('{"name": "begun", "tasks": ["age"]}')
    assert Reader(report(tmp_path, folder)).sections == ["published", "setup", "notes"]


def test_names_and_classes_are_escaped(make_run, tmp_path):
    content = report(tmp_path, make_run(tasks=(GENDER,), name="a<b>&\"c'"))
    assert "<b>&" not in content
    assert "a&lt;b&gt;&amp;" in content
    Reader(content)


def test_runs_of_the_same_name_are_told_apart(make_run, tmp_path):
    first, second = make_run("one", name="same"), make_run("two", name="same")
    names = list(page.named([page.read_run(path) for path in (first, second, second)]))
    assert len(set(names)) == 3
    assert str(first) in names[0]


def test_runs_on_the_theses_test_sets_stand_below_the_printed_figures(make_run, tmp_path):
    folder = make_run(source="FairFace", tasks=(AGE,), data={"sets": ["sets/fairface"]})
    content = report(tmp_path, folder)
    seen = Reader(content)
    predictions = page.read_run(folder).predictions
    known = predictions.labels["age"] >= 0
    accuracy = 100 * (predictions.predicted("age") == predictions.labels["age"])[known].mean()
    table = content[content.index("Table 4.5: Age, single task") : content.index("Table 4.6")]
    assert table.count("<tr>") == 1 + 5 + 1
    assert f"{accuracy:.2f}" in table
    assert "63.64" in table  # DoRA
    assert any("Table 4.14 prints 80.56" in words for words in seen.texts)
    assert "80.56*" in seen.texts
    assert not any("drawn by a program" in words for words in seen.texts)


def test_the_page_has_every_table_of_the_thesis(whole):
    headings = [words for words in whole.texts if words.startswith("Table 4.")]
    assert [words.partition(":")[0] for words in headings] == [f"Table 4.{number}" for number in range(1, 17)]


def test_averages_are_shown_only_of_runs_that_saw_every_set_of_a_task(make_run):
    run = page.read_run(make_run(source="RAF-DB", tasks=(EMOTION, GENDER)))
    values = our_values(run)
    assert values.keys() == {"emotion/rafdb", "balanced/emotion/rafdb", "emotion/average"}
    assert values["emotion/average"] == values["emotion/rafdb"]


def test_features_before_and_after_are_shown_per_task(make_run, tmp_path, monkeypatch):
    monkeypatch.setattr("jaxface.report.sections.features.t_sne", lambda features, *seed: features[:, :2])  # seconds each
    folder = make_run(tasks=(GENDER, AGE))
    stored = read_predictions(folder / "predictions.parquet")
    for name in ("predictions", "features_before"):
        random = np.random.default_rng(0).normal(size=(2, len(stored), 6)).astype(np.float32)
        per_task = {"gender": random[0], "age": random[1]} if name == "predictions" else {}
        changed = replace(stored, features=None if per_task else random[0], task_features=per_task)
        write_predictions(folder / f"{name}.parquet", changed)
    seen = Reader(report(tmp_path, folder))
    titles = [words for words in seen.texts if words.endswith((": PCA", ": t-SNE"))]
    assert titles == [f"{task}, {when}: {kind}" for task in ("gender", "age") for when in ("before", "after") for kind in ("PCA", "t-SNE")]


def test_cost_stands_against_accuracy(make_run, tmp_path):
    folder = make_run(tasks=(GENDER,))
    costs = {"parameters": {"trained": 1000, "inference": 2_500_000}, "gflops": {"all products": 1.25, "linear": 1.125}}
    (folder / "summary.json").write_text(json.dumps(costs))
    seen = Reader(report(tmp_path, folder))
    assert "cost" in seen.sections
    assert {"2.50", "1.125"} <= set(seen.texts)


def test_a_page_that_cannot_be_finished_leaves_the_old_one(make_run, tmp_path, monkeypatch):
    folder, out = make_run(tasks=(GENDER,)), tmp_path / "pages" / "report.html"
    write_report([folder], out)
    old = out.read_text()
    (folder / "metrics.jsonl").write_text("broken\n{}\n")
    with pytest.raises(UserError, match=r"metrics\.jsonl:1"):
        write_report([folder], out)
    assert out.read_text() == old
    assert [entry.name for entry in out.parent.iterdir()] == ["report.html"]


@pytest.mark.parametrize(
    ("name", "content", "section"),
    [
        ("evaluation.json", {"trust": 5}, "How sure answers may be"),
        ("evaluation.json", {"trust": {"tasks": {"age": None}}}, "How sure answers may be"),
        ("baselines.json", {"majority": [1, 2]}, "Results"),
        ("summary.json", {"parameters": 5, "gflops": [1]}, "Cost and accuracy"),
    ],
)
def test_files_that_hold_something_else_are_one_line_that_names_their_run(name, content, section, make_run, tmp_path, monkeypatch):
    monkeypatch.setattr(page, "SECTIONS", [entry for entry in page.SECTIONS if entry[2] == section])
    odd = make_run("odd")
    (odd / name).write_text(json.dumps(content))
    with pytest.raises(UserError, match=f"{re.escape(str(odd))}: its files hold something else than '{section}' shows"):
        write_report([odd], tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


def test_a_page_is_not_written_over_another_kind_of_file(make_run):
    run = make_run()
    before = (run / "config.json").read_bytes()
    with pytest.raises(UserError, match=r"config\.json: expected a name that ends in \.html or \.htm"):
        write_report([run], run / "config.json")
    assert (run / "config.json").read_bytes() == before


def test_a_page_cannot_be_written_over_a_folder(make_run, tmp_path):
    (tmp_path / "report.html").mkdir()
    with pytest.raises(UserError, match="cannot be written"):
        write_report([make_run(tasks=(GENDER,))], tmp_path / "report.html")
    assert not list(tmp_path.glob(".report*"))


def test_a_section_of_ones_own_joins_the_page(make_run, monkeypatch):
    mine = ("mine", "Mine", "My part", lambda runs: Markup("<p>{} run</p>").format(len(runs)))
    monkeypatch.setattr(page, "SECTIONS", [*page.SECTIONS, mine])
    seen = Reader(render(page.named([page.read_run(make_run(tasks=(GENDER,)))])))
    assert seen.sections[-1] == "mine"
    assert "1 run" in seen.texts


def test_cells_sort_by_number_and_bars_show_shares():
    html = table(["a", "b"], [["x", Cell("<1 %", sort=0.5, bar=0.25)], [Cell("y", bar=float("nan")), None]])
    assert 'data-sort="0.5"' in html
    assert "--share:25.0%" in html
    assert "nan" not in html
    assert "&lt;1 %" in html


def test_headings_over_several_columns_name_the_runs_and_are_not_sorted_by():
    html = table(["class", "recall", "precision"], [["x", 1, 2]], groups=[(None, 1), ("runs/<one>", 2)])
    Reader(html)
    assert '<td colspan="1"></td><th colspan="2" scope="colgroup">runs/<wbr>&lt;one&gt;</th>' in html
    assert html.count("<button") == 3


def test_classes_of_two_runs_stand_below_the_runs_names(whole):
    spans = [int(values["colspan"]) for name, values in whole.tags if name == "th" and "colspan" in values]
    assert spans == [4, 4] * 3  # records, recall before, recall, precision: the runs' test records differ


def test_ranges_that_too_few_records_could_bound_are_endless():
    sets = {"stated": 0.9, "covered": {"rate": 1.0, "interval": [0.6, 1.0], "records": 6}, "mean_size": None, "groups": {}}
    (line,) = trust_lines({"tasks": {"years": {"kind": "regression", "sets": sets, "abstention": {}}}})
    assert line.endswith("(60.0 to 100.0; 6 records), ∞ wide on average")
    years = Task("years", (), kind="regression")
    assert cells(years, {"set": [None, None]}) == {"years_set": "any number"}
    assert cells(years, {"set": [1.5, 2.0]}) == {"years_set": "1.5 to 2.0"}


def test_percent_and_text_of_nothing():
    assert (percent(None), percent(float("nan")), percent(0.1234, 2)) == ("—", "—", "12.34 %")
    assert (percent(0.0), percent(1), percent(0.99951)) == ("0.0 %", "100.0 %", "100.0 %")
