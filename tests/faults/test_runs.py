"""Whole small runs that something happens to."""

import errno
import json
import os
import re
import shutil
import signal
from dataclasses import replace

import numpy as np
import orbax.checkpoint as ocp
import pytest
from faces import write_manifest
from safetensors.numpy import load_file
from saved_state import newest_state

from jaxface.data.pipeline import TrainBatches
from jaxface.data.preparation import prepare
from jaxface.data.records import read_labels
from jaxface.errors import UserError
from jaxface.files import write_json
from jaxface.models.variants import VARIANTS, EncoderConfig
from jaxface.runs.config import RANDOM, Config, DataOptions, EncoderOptions, MethodOptions, OptimizerOptions
from jaxface.runs.data import Images
from jaxface.runs.folder import read_run
from jaxface.runs.saved_config import to_dict
from jaxface.training.batches import Features
from jaxface.training.loop import Run, Training
from jaxface.training.progress import Progress
from jaxface.training.stopping import Stopped

VARIANTS.add("tiny", EncoderConfig(16, 2, 2, 32, 6, 12, output=16, pool_heads=2))


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """A linear probe on features that are computed once, three steps an epoch, saved at every step."""
    folder = tmp_path_factory.mktemp("faults")
    prepare("manifest", write_manifest(folder / "m", 24), folder / "faces")
    return Config(
        name="run",
        out=str(folder / "runs"),
        encoder=EncoderOptions(weights=RANDOM, variant="tiny"),
        method=MethodOptions("lp"),
        data=DataOptions(sets=(str(folder / "faces"),), sampling="shuffle", augment=False),
        optimizer=OptimizerOptions(head=1e-2, average=0.5),
        batch_size=4,
        epochs=2,
        checkpoint_minutes=0,
        log_every=1,
        bad_steps=2,
    )


@pytest.fixture(scope="module")
def undisturbed(config):
    return Run(config).run()


def outcome(folder):
    """What two runs that went the same way have in common."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    lines = [{key: value for key, value in line.items() if key not in ("time", "images_per_second")} for line in lines]
    return lines, newest_state(folder), load_file(folder / "best" / "trained.safetensors")


def assert_same(folder, other):
    (lines, *arrays), (other_lines, *other_arrays) = outcome(folder), outcome(other)
    assert lines == other_lines
    for ours, theirs in zip(arrays, other_arrays, strict=True):
        assert ours.keys() == theirs.keys()
        assert all(np.array_equal(ours[name], theirs[name]) for name in ours)


def spoil(monkeypatch, rows):
    """Makes the features of these training records NaN."""
    whole = Features.split

    def split(self, name):
        records = whole(self, name)
        if name == "train":
            records = {**records, "features": records["features"].copy()}
            records["features"][rows] = np.nan
        return records

    monkeypatch.setattr(Features, "split", split)


def test_a_batch_that_is_not_finite_is_skipped_and_counted_and_changes_nothing_else(config, tmp_path, monkeypatch):
    spoil(monkeypatch, [3])  # one record: one batch of each epoch
    folder = Run(replace(config, out=str(tmp_path))).run()
    assert json.loads((folder / "result.json").read_text())["skipped"] == 2
    lines, state, best = outcome(folder)
    assert [line["skipped"] for line in lines if line["split"] == "train"][-1] == 2
    assert sum("loss" in line for line in lines if line["split"] == "train") == len([x for x in lines if x["split"] == "train"]) - 2
    assert all(np.isfinite(array).all() for array in (*state.values(), *best.values()))


def test_records_that_cannot_be_read_are_named_at_the_end_of_the_run(config, tmp_path):
    shutil.copytree(config.data.sets[0], tmp_path / "faces")
    path = next(path for path in sorted((tmp_path / "faces").glob("faces-train*")) if b"\xff\xd8\xff" in path.read_bytes())
    data = bytearray(path.read_bytes())
    data[data.find(b"\xff\xd8\xff") + 100] ^= 4
    path.write_bytes(data)
    sets = replace(config.data, sets=(str(tmp_path / "faces"),), cache_features=False)
    folder = Run(replace(config, out=str(tmp_path / "runs"), data=sets)).run()
    (named,) = json.loads((folder / "result.json").read_text())["unreadable"]
    assert "mismatch" in named
    lines, *_ = outcome(folder)
    assert [line["unreadable"] for line in lines if line["split"] == "train"][-1] == 1


def test_a_step_counts_the_unreadable_records_up_to_it_however_often_the_run_is_saved(config, tmp_path, monkeypatch):
    whole = TrainBatches._example

    def example(self, position, out, skipped):
        skipped.append(f"record {position}")
        return whole(self, position, out, skipped)

    monkeypatch.setattr(TrainBatches, "_example", example)
    images = replace(config.data, cache_features=False)
    runs = [Run(replace(config, out=str(tmp_path / str(minutes)), data=images, checkpoint_minutes=minutes)).run() for minutes in (0, 10)]
    assert_same(*runs)


def test_too_many_such_batches_in_a_row_end_the_run_and_name_their_records(config, tmp_path, monkeypatch):
    run = Run(replace(config, out=str(tmp_path)))
    ids = run.input.split("train")["id"]
    spoil(monkeypatch, slice(None))
    with pytest.raises(UserError, match=r"not finite in 2 steps in a row, up to step 2: .*not_finite\.json") as caught:
        run.run()
    assert "\n" not in str(caught.value)
    named = json.loads((run.folder / "not_finite.json").read_text())
    assert [entry["step"] for entry in named] == [1, 2]
    assert all(len(entry["ids"]) == 4 and set(entry["ids"]) <= set(ids) for entry in named)
    state = newest_state(run.folder)
    assert all(np.array_equal(state[f".trained['{name}']"], leaf) for name, leaf in run.initial.trained.items())


def test_a_disk_that_fills_up_is_one_line_and_the_run_goes_on_to_the_same_end_when_there_is_room(
    config, undisturbed, tmp_path, monkeypatch
):
    left, really = [3], ocp.CheckpointManager.save

    def save(manager, *arguments, **options):
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return really(manager, *arguments, **options)

    monkeypatch.setattr(ocp.CheckpointManager, "save", save)
    config = replace(config, out=str(tmp_path))
    with pytest.raises(UserError, match=r"No space left on device") as caught:
        Run(config).run()
    assert "\n" not in str(caught.value)
    monkeypatch.undo()
    assert list((tmp_path / "run" / "checkpoints").glob("save_*"))
    assert_same(Run(config).run(), undisturbed)


class Mortal:
    """Batches whose readers die before some of them, as grain says it."""

    def __init__(self, batches, deaths):
        self.batches, self.deaths = batches, deaths

    def __next__(self):
        if self.deaths:
            self.deaths.pop()
            raise RuntimeError("Worker process was terminated unexpectedly with exit code -9. Search the logs.\nmore")
        return next(self.batches)

    def close(self):
        self.batches.close()


def test_readers_that_die_are_started_again_at_the_same_place(config, undisturbed, tmp_path, monkeypatch):
    run, deaths = Run(replace(config, out=str(tmp_path))), []
    train, step = run.input.train, run.step

    def kill_after_two(state, *arguments):
        if state.step[0] == 2:
            deaths.extend("xx")
        return step(state, *arguments)

    monkeypatch.setattr(run.input, "train", lambda start: Mortal(train(start), deaths))
    monkeypatch.setattr(run, "step", kill_after_two)
    assert_same(run.run(), undisturbed)
    assert not deaths


def test_readers_that_die_again_and_again_end_the_run_in_one_line(config, tmp_path, monkeypatch):
    run = Run(replace(config, out=str(tmp_path)))
    train = run.input.train
    monkeypatch.setattr(run.input, "train", lambda start: Mortal(train(start), ["x"] * 9))
    with pytest.raises(
        UserError, match=r"reading failed 3 times at step 0 \(Worker process .* -9\. Search the logs\.\); the state is saved$"
    ):
        run.run()


def test_readers_that_die_of_the_same_signal_do_not_keep_the_run_from_stopping(config, undisturbed, tmp_path, monkeypatch):
    run, deaths = Run(replace(config, out=str(tmp_path))), []
    train, step = run.input.train, run.step

    def stop_after_two(state, *arguments):
        if state.step[0] == 1:
            deaths.append("x")
            monkeypatch.setattr(run.stop, "mine", signal.SIGINT)
        return step(state, *arguments)

    monkeypatch.setattr(type(run.stop), "heard", 0)  # as if the signal came while the next batch is read
    monkeypatch.setattr(run.input, "train", lambda start: Mortal(train(start), deaths))
    monkeypatch.setattr(run, "step", stop_after_two)
    with pytest.raises(Stopped, match="stopped at step 2, state saved"):
        run.run()
    monkeypatch.undo()
    assert_same(Run(run.config).run(), undisturbed)


def test_a_run_folder_that_vanishes_is_one_line(config, tmp_path, monkeypatch):
    run = Run(replace(config, out=str(tmp_path)))
    save = Training.save

    def vanish(training):
        save(training)
        training.checkpoints.wait()
        shutil.rmtree(run.folder)

    monkeypatch.setattr(Training, "save", vanish)
    with pytest.raises(UserError, match=re.escape(str(run.folder))) as caught:
        run.run()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("number", [0, 1])  # one batch validates: in the first epoch, or in the last
def test_a_stop_during_validation_saves_and_goes_on_to_the_same_end(config, undisturbed, tmp_path, monkeypatch, number):
    config, seen = replace(config, out=str(tmp_path)), []
    run = Run(config)
    evaluation = run.input.evaluation

    def evaluate(split):
        for batch in evaluation(split):
            seen.append(split)
            if len(seen) == number + 1:
                os.kill(os.getpid(), signal.SIGTERM)
            yield batch

    monkeypatch.setattr(run.input, "evaluation", evaluate)
    with pytest.raises(Stopped, match=f"stopped at step {3 + 3 * number}, state saved: the same command goes on from there") as caught:
        run.run()
    assert caught.value.signal == signal.SIGTERM
    assert seen[-1] == "validation"
    assert_same(Run(config).run(), undisturbed)


def test_what_a_kill_leaves_half_written_is_cleared_away_and_a_second_command_is_kept_out(config, tmp_path):
    run, other = Run(replace(config, out=str(tmp_path))), Run(replace(config, out=str(tmp_path)))
    (run.folder / "best").mkdir(parents=True)
    (run.folder / "best" / ".trained.safetensors.123.partial").write_text("half")

    def step(*arguments):
        with pytest.raises(UserError, match="another command is writing there"):
            other.run()
        return original(*arguments)

    original, run.step = run.step, step
    folder = run.run()
    assert not list(folder.rglob(".*"))


def test_an_epoch_counts_the_records_that_carry_a_label_of_the_tasks_and_none_at_all_is_one_line(config):
    def size(sampling, *tasks):
        return Images(replace(config, tasks=tasks, data=replace(config.data, sampling=sampling)), config.data.sets).epoch_size()

    labels = read_labels(config.data.sets[0], "train")
    assert size("shuffle", "age") == len(labels["age"])
    assert size("balanced", "age") == (labels["age"] >= 0).sum() < len(labels["age"])
    age, emotion = labels["age"] >= 0, labels["emotion"] >= 0
    others = (age & ~emotion).sum()
    assert emotion.sum() >= others / 2  # a third carry emotion as it is: none is replicated
    assert size("balanced", "age", "emotion", "age_years") == (age | emotion).sum()
    with pytest.raises(UserError, match=r"none of the \d+ training records of .* has a label of age_years$"):
        size("balanced", "age_years")


def test_more_epochs_than_a_finished_run_had_go_on_from_its_last_state(config, undisturbed, tmp_path):
    short = replace(config, out=str(tmp_path), epochs=1)
    assert json.loads((Run(short).run() / "result.json").read_text())["epochs"] == 1
    assert_same(Run(replace(short, epochs=2)).run(), undisturbed)
    with pytest.raises(UserError, match=r"belongs to another configuration \(different: epochs\)"):
        Run(short)


def test_a_run_that_began_with_another_filter_goes_on_with_it(config, undisturbed, tmp_path, capsys):
    short = replace(config, out=str(tmp_path), epochs=1)
    Run(short).run()
    with VARIANTS.temporarily():
        VARIANTS.add("tiny", replace(VARIANTS["tiny"], framing="bicubic-squash"))
        new = Run(replace(config, out=str(tmp_path / "new")))
        assert (new.images.framing, new.identity["framing"]) == ("bicubic-squash", "bicubic-squash")
        assert_same(Run(replace(short, epochs=2)).run(), undisturbed)
    assert "faces come to their size as when it began (bilinear-squash)" in capsys.readouterr().err
    assert "framing" not in json.loads((tmp_path / "run/best/info.json").read_text())


def test_more_epochs_of_a_cosine_are_told_what_becomes_of_the_rates(config, tmp_path, capsys):
    cosine = replace(config, out=str(tmp_path), epochs=1, optimizer=OptimizerOptions(head=1e-2, cosine=True))
    write_json(cosine.folder / "config.json", to_dict(cosine))
    Run(replace(cosine, epochs=2)).take_folder(3, Progress.start(cosine))
    (said,) = [line for line in capsys.readouterr().err.splitlines() if "cosine" in line]
    assert "at step 3 the rates go from 0 to 0.5 of their full height" in said


def test_an_image_size_that_the_patches_do_not_fill_is_refused_before_anything_is_written(config, tmp_path):
    odd = replace(config, out=str(tmp_path), encoder=replace(config.encoder, image_size=13))
    with pytest.raises(UserError, match=r"encoder\.image_size 13: expected a multiple of the encoder's patch, 6"):
        Run(odd)
    assert not odd.folder.exists()


def test_a_warm_up_that_outlasts_the_run_is_told(config, tmp_path, capsys):
    Run(replace(config, out=str(tmp_path), optimizer=OptimizerOptions(warmup_steps=9)))
    assert "optimizer.warmup_steps 9: the run has 6 steps, and ends at 0.6 of its rates" in capsys.readouterr().err


def test_evaluation_reads_with_as_many_processes_as_the_run_says(config, monkeypatch):
    monkeypatch.setattr("jaxface.runs.data.eval_batches", lambda *arguments, **options: options["workers"])
    images = Images(replace(config, data=replace(config.data, workers=3)), config.data.sets)
    images.image_size, images.framing = 12, "crop"
    assert images.evaluation("test") == 3


def test_a_run_all_of_whose_states_are_damaged_is_refused_and_loses_nothing(config, undisturbed, tmp_path):
    folder = shutil.copytree(undisturbed, tmp_path / "run")
    for path in (folder / "checkpoints").rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[:-1] + b"?")
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match="no state in it is what was saved"):
        Run(replace(config, out=str(tmp_path), epochs=3)).run()
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_more_epochs_without_a_state_to_go_on_from_are_refused_and_nothing_is_lost(config, tmp_path):
    folder = Run(replace(config, out=str(tmp_path), epochs=1)).run()
    shutil.rmtree(folder / "checkpoints")
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match=r"is done, and .*checkpoints has no state to go on from to 2 epochs"):
        Run(replace(config, out=str(tmp_path))).run()
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_records_that_were_replaced_meanwhile_are_refused_and_ones_that_moved_are_not(config, undisturbed, tmp_path):
    shutil.copytree(config.data.sets[0], tmp_path / "faces")
    config = replace(config, out=str(tmp_path), data=replace(config.data, sets=(str(tmp_path / "faces"),)))
    Run(replace(config, epochs=1)).run()
    moved = replace(config, data=replace(config.data, sets=undisturbed_sets(undisturbed)))
    (path,) = (tmp_path / "faces").glob("faces-train*")
    content = bytearray(path.read_bytes())
    content[content.find(b"\xff\xd8\xff") + 90] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match="was trained on other records so far than are there now"):
        Run(config).run()
    assert_same(Run(moved).run(), undisturbed)


def undisturbed_sets(folder):
    return tuple(json.loads((folder / "config.json").read_text())["data"]["sets"])


def test_a_finished_run_whose_figures_are_changed_is_not_read(undisturbed, tmp_path):
    shutil.copytree(undisturbed, tmp_path / "run")
    for name in ("metrics.jsonl", "result.json", "config.json", "baselines.json", "faces.npz", "predictions.parquet"):
        path = tmp_path / "run" / name
        whole = path.read_bytes()
        path.write_bytes(whole[:40] + bytes([whole[40] ^ 1]) + whole[41:])
        with pytest.raises(UserError, match=re.escape(str(path))):
            read_run(tmp_path / "run")
        path.write_bytes(whole)
    assert read_run(tmp_path / "run").last("test")
