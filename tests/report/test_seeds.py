import json
import math

import pytest

from jaxface.report.page import write_report
from jaxface.report.seeds import groups, spreads, sweep_table
from jaxface.runs.folder import read_run


def make_run(folder, seed, accuracy, weight, **options):
    folder.mkdir(parents=True)
    config = {
        "name": f"study/{folder.name}",
        "tasks": ["gender"],
        "seed": seed,
        "balancing": "uw",
        "data": {"sampling": "shuffle"},
        **options,
    }
    (folder / "config.json").write_text(json.dumps(config))
    rows = [
        {"step": 8, "split": "train", "weight/gender": weight},
        {"step": 8, "split": "test", "accuracy/gender": accuracy, "balanced_accuracy/gender": accuracy - 0.1},
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture
def folders(tmp_path):
    uw = [make_run(tmp_path / f"uw{seed}", seed, 0.80 + seed / 100, 0.5) for seed in range(3)]
    ema = [make_run(tmp_path / f"ema{seed}", seed, 0.70, 1.0, balancing="ema") for seed in range(2)]
    return [*uw, *ema, make_run(tmp_path / "alone", 0, 0.9, 1.0, balancing="fixed")]


def test_runs_that_differ_in_their_seed_alone_are_one_experiment(folders):
    found = groups([read_run(folder) for folder in folders])
    assert {name: len(runs) for name, runs in found.items()} == {"balancing uw": 3, "balancing ema": 2}
    accuracy = spreads(found["balancing uw"])["gender"]["accuracy"]
    assert accuracy.mean == pytest.approx(0.81)
    assert accuracy.deviation == pytest.approx(0.01)  # of 0.80, 0.81, 0.82 with N - 1
    assert accuracy.text(100) == "81.0 ± 1.0"


def test_the_only_experiment_has_the_name_that_its_runs_share(folders):
    assert list(groups([read_run(folder) for folder in folders[:3]])) == ["study"]


def test_one_run_named_twice_is_no_sweep(folders):
    assert groups([read_run(folders[0])] * 2) == {}
    assert sweep_table([read_run(folders[0])] * 2) is None


def test_a_task_without_a_figure_has_no_spread(folders):
    missing = spreads([read_run(folder) for folder in folders[:3]])["gender"]["mean_absolute_error"]
    assert missing.text() == "—"
    assert math.isnan(missing.mean)


def test_the_report_shows_mean_and_deviation_where_there_are_several_seeds(folders, tmp_path):
    page = write_report(folders, tmp_path / "page.html").read_text()
    assert "Over seeds" in page
    assert "81.0 ± 1.0" in page
    assert "balancing ema" in page
    assert "Over seeds" not in write_report(folders[:1], tmp_path / "one.html").read_text()
