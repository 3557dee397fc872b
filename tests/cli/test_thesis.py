"""The README's commands for the thesis, as they stand there, on small sets in the published layouts, and every cell that comes out.

Only what costs time and is tested elsewhere is left out: a run's steps (random numbers stand in for what they would have trained) and the
drawing of pictures.
"""

import importlib
import json
import re
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from published import write_published
from shell import command_lines

from jaxface import weights
from jaxface.files import write_json
from jaxface.models.tree import shallow_copy
from jaxface.models.variants import TEXT_VARIANTS, VARIANTS, EncoderConfig, TextConfig
from jaxface.report.thesis_tables import THESIS
from jaxface.runs.base import base_info
from jaxface.runs.best import save_best
from jaxface.runs.model import load_base, make_parts
from jaxface.runs.saved_config import to_dict
from small_models import random_tensors
from weights_convert.checkpoint import write_checkpoint
from weights_convert.towers import Towers

ROOT = Path(__file__).parents[2]
TINY = EncoderConfig(16, 5, 2, 32, 6, 12, output=16, pool_heads=2)
TEXT = TextConfig(width=16, depth=1, heads=2, context=32, output=16)
SETS = ("utkface", "fairface", "vggface2", "raf_db")
OURS = {  # below runs/thesis: what the thesis calls the model, and whether it is one of several tasks
    "zero_shot": "ZS",
    "lp": "LP",
    "ap": "AP",
    "ft4": "FT4",
    "dora": "DoRA",
    "mtlora": "MTLoRA",
    "ft4_ema": "FT4 EMA",
    "mtlora_ema": "MTLoRA EMA",
    "lora": "LoRA",
}


class Trained:
    """Stands in for `jaxface.training.loop.Run`: a run folder as training leaves it, in no time."""

    finished = True  # its options are not looked at

    def __init__(self, config):
        self.config = config

    def run(self):
        config, folder = self.config, self.config.folder
        if (folder / "result.json").exists():
            return folder
        base = load_base(config)
        parts = make_parts(config, base)
        random = np.random.default_rng(sum(map(ord, config.name)))
        changed = {
            name: np.asarray(leaf) + np.float32(0.5) * np.abs(random.normal(size=leaf.shape)).astype(np.float32)
            for name, leaf in {**parts.trained, **parts.statistics}.items()
        }
        save_best(folder, changed, {"step": 2, "epoch": 1, "accuracy": 0.5, **base_info(config, base, folder)})
        write_json(folder / "config.json", to_dict(config))
        shares = {f"weight/{task}": 0.5 for task in config.tasks}
        rows = [{"step": step, "epoch": 0, "split": "train", "loss": 1.0, **shares} for step in (1, 2)]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        write_json(folder / "baselines.json", {"majority": {}})
        write_json(folder / "result.json", {"split": "test", "test": {}})
        return folder


def readme_commands(folder):
    """The words of each call of python below the README's heading, as a shell makes them."""
    text = (ROOT / "README.md").read_text()
    return command_lines(re.search(r"## The thesis's tables\n.*?```sh\n(.*?)```", text, re.DOTALL)[1], folder)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder where all of the README's commands have run."""
    folder = tmp_path_factory.mktemp("thesis")
    write_published(folder / "published")
    towers = Towers(TINY, TEXT)
    (folder / "configs").symlink_to(ROOT / "configs")
    with VARIANTS.temporarily(), TEXT_VARIANTS.temporarily(), pytest.MonkeyPatch.context() as patch:
        VARIANTS.add("tiny", TINY)
        TEXT_VARIANTS.add("tiny", TEXT)
        patch.chdir(folder)
        patch.setattr("jaxface.training.loop.Run", Trained)
        read = cache(weights.load_encoder)
        patch.setattr(weights, "load_encoder", lambda path, **options: shallow_copy(read(path, **options)))
        patch.setattr("jaxface.report.data_sheets.write_summary_picture", lambda folder: None)
        patch.setattr("jaxface.report.pictures.write_pictures", lambda *arguments: None)
        for name in ("confusion", "reliability_diagram", "before_after", "loss_curve", "curves"):
            patch.setattr(f"jaxface.report.figures.{name}", lambda *arguments, **options: None)
        patch.setattr("jaxface.report.sections.features.scatter", lambda *arguments: None)
        patch.setattr("jaxface.report.markup.to_svg", lambda figure, label: "<svg></svg>")
        patch.setattr("jaxface.report.sections.features.t_sne", lambda values: values[:, :2])
        write_checkpoint(Path("PE-Core-L14-336.pt"), towers, random_tensors(towers))
        for dash, module, *words in readme_commands(folder):
            assert dash == "-m"
            patch.setattr(sys, "argv", [module, *(re.sub("^/data/", "published/", word) for word in words)])
            importlib.import_module(f"{module}.__main__" if module == "jaxface.report" else module).main()
    return folder


@pytest.fixture(scope="module")
def tables(place):
    """Per heading of the page's tables their columns and rows of text."""
    page = (place / "report.html").read_text()
    found = {}
    for heading, table in re.findall(r"<h3>([^<]*)</h3>\s*<div class=\"scroll\"[^>]*>(<table>.*?</table>)", page, re.DOTALL):
        lines = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.DOTALL) for row in re.findall(r"<tr>(.*?)</tr>", table, re.DOTALL)]
        head, *rows = [[re.sub(r"<[^>]*>", "", cell).strip() for cell in line] for line in lines]
        found[heading.partition(":")[0]] = head, {row[0]: dict(zip(head[1:], row[1:], strict=True)) for row in rows}
    return found


@pytest.fixture(scope="module")
def answers(place):
    """Every run's answers by pandas alone: run, task, set, id, label and predicted class."""
    parts = []
    for path in sorted((place / "runs/thesis").rglob("predictions.parquet")):
        frame = pd.read_parquet(path)
        for task in ("age", "gender", "emotion"):
            if f"{task}_logits" in frame:
                own = frame[["source", "id"]].assign(run=str(path.parent.relative_to(place / "runs/thesis")), task=task, label=frame[task])
                parts.append(own.assign(predicted=[np.argmax(logits) for logits in frame[f"{task}_logits"]]))
    return pd.concat(parts)


def accuracies(answers, run):
    """In percent by `task/set`, and the thesis's averages, for one run or those of one task below a folder."""
    own = answers[((answers.run == run) | answers.run.str.startswith(f"{run}/")) & (answers.label >= 0)]
    found = 100 * own.assign(right=own.label == own.predicted).groupby(["task", "source"]).right.mean()
    values = {f"{task}, {source.replace('_', '')}": value for (task, source), value in found.items()}
    recall = own.assign(right=own.label == own.predicted).groupby(["task", "source", "label"]).right.mean()
    values |= {f"balanced, {t}, {s.replace('_', '')}": 100 * v for (t, s), v in recall.groupby(["task", "source"]).mean().items()}
    averaged = {"age": ["utkface", "fairface"], "gender": ["utkface", "fairface", "vggface2"], "emotion": ["rafdb"]}
    for task, sources in averaged.items():
        if all(f"{task}, {source}" in values for source in sources):
            values[f"{task}, average"] = np.mean([values[f"{task}, {source}"] for source in sources])
    if all(f"{task}, average" in values for task in averaged):
        values["overall"] = np.mean([values[f"{task}, average"] for task in averaged])
    return values


def check(rows, ours, wanted, answers):
    """Holds the rows of ours against pandas: exactly these, and every cell that is an accuracy."""
    own = {name: cells for name, cells in rows.items() if ": " in name}
    assert set(own) == {f"{model}: {run}" for run, model in ours.items()}
    for name, cells in own.items():
        values = accuracies(answers, name.partition(": ")[2].removeprefix("thesis/"))
        for column in wanted:
            assert cells[column] == f"{values[column]:.2f}", (name, column)


def test_every_table_has_our_rows_with_what_pandas_computes(tables, answers):
    single = {f"thesis/single_{m}": name for m, name in (("lp", "LP"), ("ap", "AP"), ("ft4", "FT4"), ("dora", "DoRA"))}
    multi = {named(run): model for run, model in OURS.items() if run != "zero_shot"}
    zero = {named("zero_shot"): "ZS"}
    for number, (heading, rows) in ((entry.number, tables[title(entry.number)]) for entry in THESIS):
        columns = [column for column in heading[1:] if not column.startswith(("parameters", "gflops"))]
        task = {"4.4": "emotion", "4.5": "age", "4.6": "gender"}.get(number)
        if number in ("4.1", "4.2", "4.3", "section 4.2"):
            check(rows, zero, columns, answers)
        elif task:
            check(rows, zero | {f"{run}/tasks={task}": model for run, model in single.items()}, columns, answers)
        elif number == "4.11":
            check(rows, zero | single, columns, answers)
        elif number == "4.7":
            names = ("ft4", "ft4_ema", "mtlora", "mtlora_ema")
            check(rows, {named(name): OURS[name] for name in names}, columns, answers)
        elif number == "4.16":
            check(rows, {named(name): OURS[name] for name in ("lora", "dora")}, columns, answers)
        elif number in ("4.12", "4.14"):
            check(rows, zero | multi, columns, answers)
        elif number != "4.15":
            check(rows, multi, columns, answers)


def named(run):
    """What the page calls it: a run is named by its configuration, or where none was trained by its folder."""
    return run if run in ("zero_shot", "lp") else f"thesis/{run}"


def title(number):
    return f"Table {number}" if number[0].isdigit() else number[0].upper() + number[1:]


def test_agreement_is_that_of_each_set(tables, answers):
    _, rows = tables["Table 4.15"]
    for (first, left), (second, right) in ((("LP", "lp"), ("ZS", "zero_shot")), (("DoRA", "thesis/dora"), ("ZS", "zero_shot"))):
        cells = rows[f"{first} and {second}: {left} and {right}"]
        for task, source in (("age", "fairface"), ("gender", "fairface"), ("emotion", "raf_db")):
            a, b = (
                answers[(answers.run == run.removeprefix("thesis/")) & (answers.task == task) & (answers.source == source)]
                for run in (left, right)
            )
            both = a[a.label >= 0].merge(b, on="id")
            share = 100 * (both.predicted_x == both.predicted_y).mean()
            assert cells[f"{task}, {source.replace('_', '')}"] == f"{share:.2f}"
    assert "LP and DoRA: lp and thesis/dora" in rows


def test_sizes_and_costs_are_those_of_the_towers(tables, place):
    (cells,) = [cells for name, cells in tables["Table 4.3"][1].items() if name.startswith("ZS: ")]
    shapes = Towers(TINY, TEXT).shapes()
    text = sum(int(np.prod(shape)) for name, shape in shapes.items() if name.startswith("text") or name == "logit_scale")
    total = sum(int(np.prod(shape)) for shape in shapes.values())
    assert (cells["parameters, text"], cells["parameters, total"]) == (f"{text:,}", f"{total:,}")
    assert int(cells["parameters, vision"].replace(",", "")) == total - text


def test_the_figures_are_there_per_data_set(place):
    page = (place / "report.html").read_text()
    captions = re.findall(r"<figcaption>([^<]*)</figcaption>", page)
    for run in ("thesis/dora", "thesis/mtlora"):
        for source, number in (("raf_db", "4.2"), ("fairface", "4.3"), ("utkface", "4.3")):
            assert any(words.startswith(f"{run} on {source} (Figure {number}): ") for words in captions)
    assert sum(words == "Log-variances (Figure 4.1)" for words in captions) == 2  # of DoRA and of MTLoRA
    for task, source, number in (("emotion", "raf_db", "4.4"), ("age", "utkface", "4.5"), ("gender", "utkface", "4.5")):
        for kind in ("PCA", "t-SNE"):
            for when in ("before", "after"):
                assert f"{task} on {source}, {when} (Figure {number}): {kind}" in captions
            assert f"{task} on {source}, after (Figure {number}, 4.6): {kind}" in captions  # MTLoRA's, one a task


def test_what_stands_is_not_done_again(place, monkeypatch, capsys):
    from jaxface.evaluate import main

    monkeypatch.chdir(place)
    monkeypatch.setattr("jaxface.runs.evaluate_run.answer", lambda *a, **k: pytest.fail("the model ran again"))
    monkeypatch.setattr("jaxface.report.pictures.write_pictures", lambda *arguments: None)
    with VARIANTS.temporarily(), TEXT_VARIANTS.temporarily():
        VARIANTS.add("tiny", TINY)
        TEXT_VARIANTS.add("tiny", TEXT)
        data = [f"data/{name}" for name in SETS]
        monkeypatch.setattr(sys, "argv", ["evaluate", "runs/thesis/lp", "runs/thesis/ap", "--data", *data])
        main()
    assert "gender" in capsys.readouterr().out
