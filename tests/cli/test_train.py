"""Whole runs through the command line on tiny data."""

import contextlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
from faces import write_manifest, write_raf_db
from safetensors.numpy import load_file

import jaxface
from jaxface import train
from jaxface.data.preparation import prepare
from jaxface.errors import run_command
from jaxface.runs.model import load_run
from jaxface.runs.predictions_file import read_predictions

CONFIG = """
from dataclasses import replace
from jaxface.adapters.options import AdapterOptions
from jaxface.runs.config import *
from jaxface.models.variants import VARIANTS, EncoderConfig
from jaxface.training.optimizer import OptimizerOptions

VARIANTS.add("tiny", EncoderConfig(16, 2, 2, 32, 6, 12, output=16, pool_heads=2))
first = Config(
    name="first", encoder=EncoderOptions(weights=RANDOM, variant="tiny"), method=MethodOptions("ap"),
    data=DataOptions(sets=({sets!r},)), optimizer=OptimizerOptions(backbone=1e-3, pool=1e-3, head=1e-3), batch_size=4, epochs=2,
    log_every=1,
)
second = replace(
    first, name="second", encoder=EncoderOptions(), method=MethodOptions("dora", AdapterOptions(rank=2)), after=first,
    before=True,
)
config = {config}
"""


def run(*words):
    """The command in this process: its exit status and what it printed."""
    out, err, before = io.StringIO(), io.StringIO(), sys.argv
    sys.argv = ["train", *map(str, words)]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as ended:
            run_command(train.main)
    finally:
        sys.argv = before
    return SimpleNamespace(returncode=ended.value.code, stdout=out.getvalue(), stderr=err.getvalue())


def one_line_error(done):
    assert done.returncode == 2, done.stderr
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("error: ")
    return lines[0]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A folder with a prepared manifest and a configuration of two runs, both done."""
    folder = tmp_path_factory.mktemp("work")
    prepare("manifest", write_manifest(folder / "m", 28), folder / "faces")
    for name, config in (("config", "second"), ("first", "first")):
        (folder / f"{name}.py").write_text(CONFIG.format(sets=str(folder / "faces"), config=config))
    done = run("--config", folder / "config.py", "--out", folder / "runs", "--report")
    assert done.returncode == 0, done.stderr
    folder.joinpath("printed").write_text(done.stdout)
    return folder


def test_two_runs_one_after_the_other_end_with_a_table_and_a_report(workplace):
    printed = (workplace / "printed").read_text()
    assert all(word in printed for word in ("before", "after", "emotion", "gender", "age", "majority"))
    page = (workplace / "runs/report.html").read_text()
    assert "second" in page
    assert "http://" not in page.replace("http://www.w3.org", "")
    for name in ("first", "second"):
        folder = workplace / "runs" / name
        files = {path.name for path in folder.iterdir()}
        assert files >= {"config.json", "metrics.jsonl", "best", "checkpoints", "events", "predictions.parquet", "result.json", "faces.npz"}
        assert not [name for name in files if name.startswith(".")]


def test_metrics_hold_a_line_per_step_and_validation(workplace):
    lines = [json.loads(line) for line in (workplace / "runs/second/metrics.jsonl").read_text().splitlines()]
    splits = [line["split"] for line in lines]
    result = json.loads((workplace / "runs/second/result.json").read_text())
    assert splits.count("train") == result["steps"]
    assert splits.count("validation") == 2
    assert splits.count("before") == splits.count("test") == 1
    accuracies = [line["accuracy"] for line in lines if line["split"] == "validation"]
    best = json.loads((workplace / "runs/second/best/info.json").read_text())
    assert (best["epoch"], best["accuracy"]) == (1 + accuracies.index(max(accuracies)), max(accuracies))
    assert {"loss", "loss/age", "weight/age", "learning_rate/backbone_plus", "images_per_second"} <= set(lines[1])
    assert lines[1]["learning_rate/backbone_plus"] == pytest.approx(6 * lines[1]["learning_rate/backbone"])


def test_the_saved_run_predicts_what_its_predictions_file_says(workplace):
    import jax
    import jax.numpy as jnp

    from jaxface.data.pipeline import eval_batches
    from jaxface.models.encoder import normalize_images

    config, model = load_run(workplace / "runs/second")
    encoder = jaxface.load_encoder(str(workplace / "runs/second"))
    saved = read_predictions(workplace / "runs/second/predictions.parquet")
    batch = next(iter(eval_batches([str(workplace / "faces")], "test", config.tasks, image_size=12, batch_size=len(saved))))
    images = normalize_images(jnp.asarray(batch["image"]))
    logits, features = jax.jit(lambda images: (model(images), model.features(images)))(images)
    for task in config.tasks:
        np.testing.assert_allclose(logits[task], saved.logits[task], atol=2e-4)
    np.testing.assert_allclose(jax.jit(encoder.__call__)(images), features, atol=2e-4)


def test_only_what_trained_is_in_the_best_folder(workplace):
    names = set(load_file(workplace / "runs/second/best/trained.safetensors"))
    assert all(name.startswith("heads.") or name.endswith((".a", ".b", ".magnitude")) for name in names)


def test_the_same_command_again_does_nothing_more(workplace):
    before = (workplace / "runs/second/metrics.jsonl").read_bytes()
    done = run("--config", workplace / "first.py", "--out", workplace / "runs")
    assert done.returncode == 0
    assert (workplace / "runs/second/metrics.jsonl").read_bytes() == before


def test_a_run_folder_of_another_configuration_is_refused(workplace):
    done = run("--config", workplace / "config.py", "--out", workplace / "runs", "--epochs", "1", "--report")
    assert "belongs to another configuration (different: epochs)" in done.stderr.splitlines()[-1]
    assert done.returncode == 2


def test_a_run_that_was_killed_and_then_stopped_ends_bit_identical_to_an_undisturbed_one(workplace, tmp_path):
    shutil.copytree(workplace / "runs/first", tmp_path / "first")  # done: only the second is disturbed
    words = ["--config", workplace / "config.py", "--out", tmp_path, "--checkpoint-minutes", "0"]
    metrics = tmp_path / "second/metrics.jsonl"

    def when_at(step, do):
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and not (metrics.exists() and f'"step": {step}, ' in metrics.read_text()):
            time.sleep(0.01)
        do()

    process = subprocess.Popen([sys.executable, "-m", "jaxface.train", *map(str, words)], stderr=subprocess.PIPE, text=True)
    when_at(3, process.kill)
    process.communicate(timeout=120)
    assert process.returncode == -signal.SIGKILL

    asker = threading.Thread(target=when_at, args=(6, lambda: os.kill(os.getpid(), signal.SIGTERM)))
    asker.start()
    done = run(*words)
    asker.join()
    assert done.returncode == 0
    assert "the same command goes on from there" in done.stderr
    assert not (tmp_path / "second/result.json").exists()

    done = run(*words)
    assert done.returncode == 0, done.stderr
    assert "going on from step" in done.stderr
    one, two = (load_file(base / "second/best/trained.safetensors") for base in (workplace / "runs", tmp_path))
    assert one.keys() == two.keys()
    assert all(np.array_equal(one[key], two[key]) for key in one)
    assert losses(workplace / "runs/second") == losses(tmp_path / "second")


def losses(folder):
    """The numbers of every line of a run's metrics that do not depend on the clock."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in ("time", "images_per_second")} for line in lines]


def test_raf_db_trains_from_the_weights_of_another_run_with_two_seeds(workplace, tmp_path):
    write_raf_db(tmp_path / "raf", train=12, test=4)
    prepare("raf_db", tmp_path / "raf", tmp_path / "faces")
    words = ["--config", "configs/lp.py", "--encoder.weights", workplace / "runs/first", "--data.sets", tmp_path / "faces"]
    words += ["--tasks", "emotion", "--out", tmp_path / "runs", "--epochs", 1, "--batch-size", 4, "--seeds", 0, 1, "--report"]
    done = run(*words)
    assert done.returncode == 0, done.stderr
    assert "emotion" in done.stdout
    assert "±" in done.stdout
    assert {path.parent.name for path in tmp_path.glob("runs/lp/*/result.json")} == {"seed=0", "seed=1"}
    assert "Over seeds" in (tmp_path / "runs/lp/report.html").read_text()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--config", "configs/nothing.py"], "no configuration configs/nothing.py; in configs: age_ordinal.py"),
        (["--epoch", "3"], "unrecognized options: --epoch"),
        (["--tasks", "age", "height"], "no task 'height'; known: age, gender, emotion"),
        (["--encoder.attention", "flash"], "no attention kernel 'flash'; known: xla"),
        (["--batch-size", "-1"], "batch_size -1: expected 1 to 1048576"),
        (["--batch-size", "1"], "batch_size 1, accumulate 1: the heads of dora have batch norm, which needs at least 2 images at a time"),
        (["--batch-size", "8", "--accumulate", "8"], "batch_size 8, accumulate 8: the heads of dora have batch norm"),
        (["--method.name", "ap", "--method.options.rank", "8"], "adapter rank 8: method ap does not take it; it takes no options"),
        (["--method.name", "mtlora", "--method.options.rslora"], "adapter rslora True: method mtlora does not take it"),
        (["--method.options.num-tasks", "5"], "adapter num_tasks 5: leave it out; the run has 3 tasks"),
        (["--tasks", "age", "--balancing", "ema"], "balancing ema: it has no effect, the loss of one task has nothing to be balanced"),
        (["--data.max-repeat", "3", "--data.sampling", "shuffle"], "data.max_repeat 3.0: it has no effect, only balanced sampling repeats"),
        (["--grid", "method.name=lp,dora", "--cluster.process", "1"], "cluster.process 1: it has no effect, no cluster.coordinator"),
        (["--grid", "name=a,b"], "name is one for all runs of a grid"),
        (["--name", "../x"], "name ../x: expected a name that stays inside its folder"),
        (["--seed", "1", "--seeds", "1", "2"], "--seed and --seeds: give one of them"),
        (["--method.name", "loha"], "no method 'loha'; known: lp, ap"),
        (["--config", "configs/dora.py", "--data.sets", "nowhere"], "no folder nowhere"),
        (["--config", "configs/dora.py", "--encoder.weights", "random"], "no data: --data.sets FOLDER..."),
    ],
)
def test_wrong_words_are_one_line_and_exit_status_two(words, message, tmp_path):
    done = run(*words, "--out", tmp_path / "runs")
    done.stderr = "\n".join(line for line in done.stderr.splitlines() if not line.startswith(str(tmp_path)))  # the line that names the run
    assert message in one_line_error(done)
    assert not list(tmp_path.rglob("*.json"))


def test_other_weights_take_the_place_of_the_run_to_start_from(workplace, tmp_path):
    done = run("--config", workplace / "config.py", "--encoder.weights", "nowhere.pt", "--out", tmp_path / "runs")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == "error: nowhere.pt: no such file; expected a checkpoint"
    assert not (tmp_path / "runs/first").exists()


def test_a_config_with_a_mistake_names_the_file(tmp_path):
    (tmp_path / "c.py").write_text("from jaxface.runs.config import *\nconfig = Config(epoch=3)\n")
    assert f"{tmp_path / 'c.py'}: TypeError: " in one_line_error(run("--config", tmp_path / "c.py"))
