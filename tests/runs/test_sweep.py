from pathlib import Path

import pytest

from jaxface.adapters.options import AdapterOptions
from jaxface.errors import UserError
from jaxface.runs.command_line import read_command_line, read_command_lines
from jaxface.runs.config import Config, MethodOptions, load_configs
from jaxface.runs.sweep import members

CONFIGS = sorted(path for path in (Path(__file__).parents[2] / "configs").rglob("*.py") if path.stem != "quickstart")


def test_a_configuration_without_a_sweep_stands_for_itself():
    config = Config(name="plain")
    assert members(config) == [config]


def test_each_point_and_seed_is_a_run_in_a_folder_of_its_own_with_typed_values():
    config = Config(name="study", grid=("balancing=uw,ema", "optimizer.backbone=1e-5,1e-4", "data.augment=True,False"), seeds=(0, 3))
    runs = members(config)
    assert len({run.folder for run in runs}) == len(runs) == 16
    assert {(r.balancing, r.optimizer.backbone, r.data.augment, r.seed) for r in runs} == {
        (b, rate, augment, seed) for b in ("uw", "ema") for rate in (1e-5, 1e-4) for augment in (True, False) for seed in (0, 3)
    }
    assert runs[0].name == "study/balancing=uw,optimizer.backbone=1e-5,data.augment=True,seed=0"
    assert all(not run.seeds and not run.grid for run in runs)


def test_values_of_several_words_are_written_with_blanks():
    runs = members(Config(name="x", method=MethodOptions("ap"), grid=("tasks=age,age gender",)))
    assert [run.tasks for run in runs] == [("age",), ("age", "gender")]
    assert [run.name for run in runs] == ["x/tasks=age", "x/tasks=age-gender"]
    assert all(run.method.name == "ap" for run in runs)


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("balancing", "grid balancing: expected OPTION=VALUE,VALUE..., as in balancing=uw,ema"),
        ("balancing=uw,", "expected OPTION=VALUE"),
        ("balancing=uw,sum", "no loss balancer 'sum'"),
        ("balansing=uw", "nrecognized options: --balansing"),
        ("batch_size=many", "many"),
    ],
)
def test_a_grid_that_cannot_be_read_is_one_line(word, message):
    with pytest.raises(UserError) as caught:
        members(Config(grid=(word,)))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "axes", [("seed=1,1",), ("seed=1,01",), ("optimizer.head=1e-3,0.001",), ("seed=1,2", "seed=3,4"), ("batch_size=4", "batch-size=8")]
)
def test_two_points_that_are_one_run_are_refused_however_they_are_written(axes):
    with pytest.raises(UserError, match="two of its points are one run"):
        members(Config(grid=axes))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_configuration_is_named_after_its_file_and_stands_for_runs(path):
    (config, *_) = load_configs(path)
    place = path.relative_to(CONFIGS[0].parent)
    assert config.name.replace("/", "_") == "_".join(place.with_suffix("").parts) or config.name.startswith(f"{path.stem}/")
    assert f"--config configs/{place}" in path.read_text()  # its docstring says how to run it
    assert members(config)


def test_an_option_of_the_command_line_holds_against_the_grid_of_the_file():
    (run,) = members(read_command_line(["--config", "configs/single_lp.py", "--tasks", "emotion", "--name", "mine"]))
    assert (run.tasks, run.name) == (("emotion",), "mine")
    with pytest.raises(UserError, match="--tasks is an option of its own and an axis of --grid"):
        read_command_line(["--tasks", "age", "--grid", "tasks=age,gender"])


def test_a_file_of_several_experiments_takes_the_options_for_each(tmp_path):
    path = tmp_path / "both.py"
    path.write_text('from jaxface.runs.config import Config\nconfigs = [Config(name="a"), Config(name="b", balancing="ema")]\n')
    runs = read_command_lines(["--config", str(path), "--batch-size", "4"])
    assert [(run.name, run.balancing, run.batch_size) for run in runs] == [("a", "uw", 4), ("b", "ema", 4)]
    with pytest.raises(UserError, match="which --name would give one folder"):
        read_command_lines(["--config", str(path), "--name", "c"])
    with pytest.raises(UserError, match="holds 2 experiments"):
        read_command_line(["--config", str(path)])


def test_what_the_command_line_says_of_an_option_holds_for_every_run_of_every_file():
    seeded = read_command_line(["--config", "configs/drawn_methods.py", "--seed", "7"])
    assert [run.seed for run in members(seeded)] == [7, 7]
    single = read_command_line(["--config", "configs/drawn_methods.py", "--method.name", "lp"])
    assert {run.method for run in members(single)} == {MethodOptions("lp")}  # and the file's rank, which LP does not take, is gone
    flag = read_command_line(["--config", "configs/drawn_sampling.py", "--data.augment"])
    assert all(run.data.augment for run in members(flag))


def test_a_grid_over_methods_gives_each_the_options_that_it_takes():
    runs = members(Config(method=MethodOptions("dora", AdapterOptions(rank=8)), grid=("method.name=lp,dora",)))
    assert [run.method.options.rank for run in runs] == [AdapterOptions().rank, 8]
    with pytest.raises(UserError, match="adapter rank 4: method lp does not take it"):
        members(Config(grid=("method.name=lp,dora", "method.options.rank=4,8")))
