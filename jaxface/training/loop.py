"""A run from its configuration to its results: epochs, validation, early stop, checkpoints, the final test."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxface.cluster import end_together, from_first, is_first, of_first, say
from jaxface.devices import replicate, shard, unreplicate
from jaxface.errors import UserError
from jaxface.evaluation.predictions import Predictions
from jaxface.evaluation.summary import figures
from jaxface.files import alone_in
from jaxface.runs.best import read_best, save_best
from jaxface.runs.checkpoints import Checkpoints, Saved
from jaxface.runs.inference import predict_all
from jaxface.runs.metrics_log import MetricsLog
from jaxface.runs.outcome import write_outcome
from jaxface.runs.predictions_file import write_predictions
from jaxface.training.display import EpochDisplay
from jaxface.training.progress import Progress
from jaxface.training.setup import Setup
from jaxface.training.step import model_part
from jaxface.training.step_log import Line, StepLog
from jaxface.training.stopping import Stopped

SAVE_SECONDS = 10.0
"""An epoch's end saves the state unless it was saved less than this many seconds ago."""

READER_TRIES = 3
"""Times that a batch is asked for before a run gives up."""

BEFORE = "predictions_before.parquet"
"""The answers of the model that training started from."""


class Training:
    """An open run as a state machine: `next_phase` says what comes after what stands in its fields, until it is tested.

    before (test the starting model) -> epoch (steps) -> validation -> epoch -> ... -> validation -> test

    Attributes:
      state: on every device.
      done: steps that are done.
      progress: the rest of what a checkpoint keeps.
      before: whether the starting model is still to be tested.
      tested: whether the best model is, which is the end.
      batches: the training batches after those that are done.
      log: `metrics.jsonl`, in the first process.
      display: the terminal's, of this epoch.
      last_save: when the state was last saved, or taken up.
    """

    def __init__(self, run: Setup, checkpoints: Checkpoints, saved: Saved | None, progress: Progress) -> None:
        self.run, self.config, self.folder, self.checkpoints = run, run.config, run.folder, checkpoints
        self.progress = progress
        self.progress.identity = run.identity
        state = run.initial if saved is None else saved.state
        self.done = int(state.step)
        if saved is not None:
            say(f"{self.folder}: going on from step {self.done}")
        self.before = from_first(self.config.before and self.done == 0 and not (self.folder / BEFORE).exists())
        self.tested = False
        self.batches = run.input.train(self.done)
        again = {"test"} | ({"validation"} if self.progress.due else set()) | ({"before"} if self.before else set())
        self.log = MetricsLog(self.folder, self.done, again) if is_first() else None
        self.step_log = StepLog(self.folder, self.config.log_every, self.config.bad_steps, self._write_step)
        self.display = self._new_display()
        self.state = replicate(state)
        self.last_save = time.monotonic()

    def close(self) -> None:
        """Lets go of the readers and the log."""
        if self.log:
            self.log.close()
        self.batches.close()

    @property
    def epoch(self) -> int:
        """Finished epochs."""
        return self.done // self.run.steps_per_epoch

    @property
    def is_over(self) -> bool:
        """Whether no epoch comes any more."""
        return self.epoch >= self.config.epochs or self.progress.early.is_over

    def finish(self) -> None:
        """All phases that are left."""
        while not self.tested:
            self.next_phase()()

    def next_phase(self) -> Callable[[], None]:
        """What is to be done now."""
        if self.before:
            return self.test_before
        if self.progress.due:
            return self.validate
        return self.test if self.is_over else self.train_epoch

    def save(self) -> None:
        """Starts to save the state."""
        self.step_log.read()  # every line up to here is logged, or a run that goes on from here would lack one
        self.checkpoints.save(Saved(unreplicate(self.state), self.progress.to_json()))
        self.last_save = time.monotonic()

    def _save_and_stop(self, number: int) -> None:
        self.save()
        self.checkpoints.wait()
        raise Stopped(number, self.done)

    # ------------------------------------------------------------------ an epoch's steps

    def train_epoch(self) -> None:
        """The steps that are left of an epoch."""
        run, batch = self.run, int(self.config.batch_size)
        self.display = self._new_display()
        with self.display:
            for _ in range(self.done % run.steps_per_epoch, run.steps_per_epoch):
                item = self.next_batch()
                self.progress.unreadable.update(item.get("skipped", ()))
                arrays = {name: item[name] for name in ("image", "features", "labels", "mixed") if name in item}
                self.state, metrics = run.step(self.state, run.frozen, shard(arrays))
                self.done += 1
                run.stop.exchange()
                self.step_log.add(self.done, item["id"], len(self.progress.unreadable), metrics)
                self.step_log.read(behind=1)  # the device is busy with this step while the host reads the one before
                self.display.advance(batch)
                if self._must_save():
                    self.save()
                if run.stop.heard and self.done % run.steps_per_epoch:  # at the end of an epoch the validation hears of it
                    self._save_and_stop(run.stop.heard)
            self.step_log.read()
        self.progress.due = True

    def next_batch(self) -> dict[str, Any]:
        """The batch after those that are done; readers that have died are started again, at the same place."""
        for _ in range(READER_TRIES):
            try:
                return next(self.batches)
            except RuntimeError as error:  # grain's word for a process that is gone
                if self.run.stop.alone:  # they were asked to stop, too
                    self._save_and_stop(self.run.stop.alone)
                reason = str(error).splitlines()[0]
                say(f"reading failed at step {self.done} ({reason}): it is started again")
                self.batches.close()
                self.batches = self.run.input.train(self.done)
        self.save()
        self.checkpoints.wait()
        raise UserError(f"reading failed {READER_TRIES} times at step {self.done} ({reason}); the state is saved")

    def _must_save(self) -> bool:
        """Whether it is time; what an epoch ends with is saved after its validation."""
        return self.done % self.run.steps_per_epoch != 0 and time.monotonic() - self.last_save > 60 * self.config.checkpoint_minutes

    def _new_display(self) -> EpochDisplay:
        per_epoch, batch = self.run.steps_per_epoch, int(self.config.batch_size)
        title = f"epoch {self.epoch + 1}/{self.config.epochs}"
        return EpochDisplay(title, per_epoch * batch, self.config.tasks, done=self.done % per_epoch * batch)

    def _write_step(self, step: int, line: Line) -> None:
        line = line | {"images_per_second": round(self.display.rate, 2)} | self._learning_rates(line["updates"])
        if self.log:
            finite = {name: value for name, value in line.items() if math.isfinite(value)}
            self.log.write("train", step, (step - 1) // self.run.steps_per_epoch, finite)
        self.display.show({"loss": math.nan} | line)

    def _learning_rates(self, update: int) -> dict[str, float]:
        """The rates of the step before which there were so many updates: those that were not skipped."""
        options = self.config.optimizer
        factor = self.progress.plateau.scale * options.factor_at(update, self.config.epochs * self.run.steps_per_epoch)
        groups = {group.name: group for group in self.run.parts.groups.values()}
        return {f"learning_rate/{name}": options.rate(group) * factor for name, group in groups.items()}

    # ------------------------------------------------------------------ evaluation

    def validate(self) -> None:
        """Validates, moves the schedule, keeps the best, saves."""
        values = from_first(figures(self._predict("validation", self._evaluated(), f"validation {self.epoch}")))
        tasks = [task.name for task in self.config.evaluated if f"accuracy/{task.name}" in values and not task.coarse]
        if not tasks:
            sets, names = ", ".join(self.run.images.sets), ", ".join(self.config.tasks)
            raise UserError(f"no validation record of {sets} has a label of {names}, or the model diverged")
        accuracy = float(np.mean([values[f"accuracy/{task}"] for task in tasks]))
        if self.log:
            self.log.write("validation", self.done, self.epoch, {**values, "accuracy": accuracy})
        if not self.config.optimizer.cosine:
            self.progress.plateau.update(values["loss"])
        scale = self.progress.plateau.scale
        balance = self.run.balancer.after_epoch(unreplicate(self.state.balance))
        self.state = self.state._replace(scale=replicate(np.float32(scale)), balance=replicate(balance))
        if self.progress.early.update(values["loss"], accuracy):
            self._save_best(accuracy)
        self.progress.due = False
        named = (f"{task} {100 * values[f'accuracy/{task}']:.1f} %" for task in tasks)
        say(f"epoch {self.epoch}: validation loss {values['loss']:.3f}, accuracy {', '.join(named)}")
        if self.run.stop.alone:
            self._save_and_stop(self.run.stop.alone)
        if self.is_over or time.monotonic() - self.last_save > min(SAVE_SECONDS, 60 * self.config.checkpoint_minutes):
            self.save()

    def _save_best(self, accuracy: float) -> None:
        if is_first():
            state = unreplicate(self.state)
            info = {"step": self.done, "epoch": self.epoch, "accuracy": accuracy, **self.run.identity}
            save_best(self.folder, model_part({**state.trained, **state.statistics, **state.average}), info)

    def _evaluated(self) -> dict[str, jax.Array]:
        """The model's arrays as they are evaluated: the moving averages, of batch statistics too, where there are some."""
        return model_part({**self.state.trained, **self.state.statistics, **self.state.average}) | self.run.frozen

    def _predict(self, split: str, arrays: dict[str, jax.Array], title: str) -> Predictions:
        run = self.run
        total, batches = run.images.count(split), self._until_stopped(run.input.evaluation(split))
        return predict_all(run.predict, arrays, batches, self.config.evaluated, title=title, total=total)

    def _until_stopped(self, batches: Iterable[Any]) -> Iterator[Any]:
        """The batches; a stop between them loses nothing but what was predicted so far."""
        try:
            for batch in batches:
                if self.run.stop.alone:
                    self._save_and_stop(self.run.stop.alone)
                yield batch
        except UserError:
            if self.run.stop.alone:  # who reads was asked to stop, too
                self._save_and_stop(self.run.stop.alone)
            raise

    def test_before(self) -> None:
        """Tests the model that training starts from."""
        predictions = self._predict(self.run.images.test_split(), self._evaluated(), "before")
        if self.log:
            self.log.write("before", self.done, self.epoch, figures(predictions))
            write_predictions(self.folder / BEFORE, predictions)
        self.before = False

    def test(self) -> None:
        """Tests the best model and writes what a report needs."""
        self.checkpoints.wait()
        best = of_first(lambda: read_best(self.folder).arrays)
        arrays = replicate(best) | self.run.frozen
        predictions = self._predict(self.run.images.test_split(), arrays, "test")
        if self.log:
            self.log.write("test", self.done, self.epoch, figures(predictions))
        counts = {"steps": self.done, "epochs": self.epoch, "skipped": int(unreplicate(self.state.skipped))}
        unreadable = {"unreadable": sorted(self.progress.unreadable)}
        # the others leave when all is written: the next run may start from this one
        of_first(lambda: write_outcome(self.folder, self.config, self.run.images, predictions, counts | unreadable))
        self.tested = True


class Run(Setup):
    """One training run. `run()` does all of it and returns the run folder; an interrupted one goes on where it stood."""

    def run(self) -> Path:
        """Trains until the last epoch or the early stop, tests the best model. Raises Stopped on SIGTERM or Ctrl-C."""
        if self.finished:
            return self.folder
        try:
            with self.open() as training:
                training.finish()
        except OSError as error:
            raise UserError(
                f"{error.filename or self.folder}: {error.strerror or error}; the last good state is in {self.config.states}"
            ) from error
        return self.folder

    @contextlib.contextmanager
    def open(self) -> Iterator[Training]:
        """Takes up the newest checkpoint, or the initial state, with the folder kept from other commands."""
        with contextlib.ExitStack() as stack:
            stack.enter_context(end_together())
            stack.enter_context(self.stop)
            if is_first():
                stack.enter_context(alone_in(self.folder))
            checkpoints = Checkpoints(self.config.states)
            stack.callback(checkpoints.close)
            saved = checkpoints.restore(self.initial)
            progress = Progress.start(self.config) if saved is None else Progress.from_json(saved.host)
            if saved is not None:
                self.go_on_from(progress)
            of_first(lambda: self.take_folder(None if saved is None else int(saved.state.step), progress))
            training = Training(self, checkpoints, saved, progress)
            stack.callback(training.close)
            yield training
