"""A run from its configuration to its results: epochs, validation, early stop, checkpoints, the final test."""

from __future__ import annotations

import contextlib
import math
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import load_file

from jaxface.cluster import end_together, from_first, is_first
from jaxface.data.tasks import get_task, with_coarse
from jaxface.devices import replicate, shard, unreplicate
from jaxface.errors import UserError
from jaxface.evaluation.metrics import figures
from jaxface.evaluation.predictions import Predictions
from jaxface.files import write_json
from jaxface.objectives.balancing import get_balancer
from jaxface.runs.checkpoints import Checkpoints, Saved
from jaxface.runs.config import Config, to_dict
from jaxface.runs.data import Images, prepared_sets
from jaxface.runs.inference import make_classify, make_predict, predict_all
from jaxface.runs.metrics_log import MetricsLog
from jaxface.runs.model import alone_in, check_same_config, fingerprint, make_parts, save_best
from jaxface.runs.outcome import write_outcome
from jaxface.runs.predictions import write_predictions
from jaxface.training.batches import Features
from jaxface.training.display import EpochDisplay
from jaxface.training.optimizer import EarlyStop, Plateau, make_optimizer
from jaxface.training.step import make_step, model_part, start_state
from jaxface.training.stopping import Stopped, StopRequest

SAVE_SECONDS = 10.0
"""An epoch's end saves the state unless it was saved less than this many seconds ago."""

READER_TRIES = 3
"""Times that a batch is asked for before a run gives up."""


class Run:
    """One training run. `run()` does all of it and returns the run folder; an interrupted one goes on where it stood."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.folder = config.folder
        self.finished = from_first(check_same_config(self.folder, config) and (self.folder / "result.json").exists())
        if self.finished:
            return
        self._check_devices()
        self.images = Images(config, prepared_sets(config))
        self.steps_per_epoch = max(1, self.images.epoch_size() // config.batch_size)
        self.parts = make_parts(config)
        self.images.image_size = config.encoder.image_size or self.parts.build().encoder.config.image_size
        self.balancer = get_balancer(config.balancing if len(config.tasks) > 1 else "fixed")
        options = config.optimizer
        optimizer = make_optimizer(options, self.parts.groups, config.epochs * self.steps_per_epoch)
        parts, rules = self.parts, (config.tasks, self.balancer, optimizer)
        self.initial = start_state(parts.trained, parts.statistics, *rules, options.average, config.seed)
        more = {"losses": config.losses, "accumulate": config.accumulate, "average": options.average}
        self.step = make_step(parts.structure, *rules, **more)
        self.frozen = replicate(self.parts.frozen)
        self.predict = make_predict(self.parts.structure)
        self.input = self._cached() or self.images
        self.base_hash = fingerprint(self.parts.frozen)
        self.stop = StopRequest()
        self.pending: deque[tuple[int, np.ndarray, int, Any]] = deque()
        self.seen: deque[tuple[int, np.ndarray]] = deque(maxlen=config.bad_steps)

    def _check_devices(self) -> None:
        pieces = jax.local_device_count() * jax.process_count() * self.config.accumulate
        if self.config.batch_size % pieces:
            raise UserError(
                f"batch_size {self.config.batch_size} is not a multiple of {pieces}: {jax.device_count()} devices, "
                f"each in {self.config.accumulate} pieces"
            )

    def _cached(self) -> Features | None:
        """The features in place of the images, where they never change."""
        config = self.config
        if config.data.augment or not config.data.cache_features or not all(name.startswith("heads.") for name in self.parts.trained):
            return None
        arrays = replicate({**self.parts.statistics, **self.parts.trained}) | self.frozen
        encode, self.predict = self.predict, make_classify(self.parts.structure)
        return Features(self.images, lambda images: encode(arrays, images)[1])

    # ------------------------------------------------------------------ the run

    def run(self) -> Path:
        """Trains until the last epoch or the early stop, tests the best model. Raises Stopped on SIGTERM or Ctrl-C."""
        if self.finished:
            return self.folder
        try:
            with contextlib.ExitStack() as stack:
                self._open(stack)
                self._test_before()
                while self.due or not self._is_over():
                    if not self.due:
                        self._epoch()
                    self._end_epoch()
                self._finish()
        except OSError as error:
            raise UserError(
                f"{error.filename or self.folder}: {error.strerror or error}; the last good state is in checkpoints/"
            ) from error
        return self.folder

    def _open(self, stack: contextlib.ExitStack) -> None:
        """Takes up the newest checkpoint, or the initial state."""
        stack.enter_context(end_together())
        stack.enter_context(self.stop)
        if is_first():
            stack.enter_context(alone_in(self.folder))
            write_json(self.folder / "config.json", to_dict(replace(self.config, after=None)))
        self.checkpoints = Checkpoints(self.folder / "checkpoints")
        stack.callback(self.checkpoints.close)
        options = self.config.optimizer
        self.plateau = Plateau(options.plateau_factor, options.plateau_patience)
        self.early = EarlyStop(options.early_stop, by_loss=len(self.config.tasks) == 1)
        self.due = False  # whether the epoch's steps are done and its validation is not
        self.unreadable: set[str] = set()  # records that were drawn and could not be read, with why
        saved = self.checkpoints.restore(self.initial)
        if saved is not None:
            self.plateau, self.early = Plateau(**saved.host["plateau"]), EarlyStop(**saved.host["early"])
            self.due, self.unreadable = saved.host["due"], set(saved.host.get("unreadable", ()))
            self._say(f"{self.folder}: going on from step {int(saved.state.step)}")
        state = self.initial if saved is None else saved.state
        self.done = int(state.step)
        self.batches = self.input.train(self.done)
        stack.callback(lambda: self.batches.close())
        self.before = from_first(self.config.before and self.done == 0 and not (self.folder / "predictions_before.parquet").exists())
        again = {"test"} | ({"validation"} if self.due else set()) | ({"before"} if self.before else set())
        self.log = MetricsLog(self.folder, self.done, again) if is_first() else None
        if self.log:
            stack.callback(self.log.close)
        self.state = replicate(state)
        self.last_save = time.monotonic()

    def _say(self, text: str) -> None:
        if is_first():
            print(text, file=sys.stderr, flush=True)

    @property
    def epoch(self) -> int:
        """Finished epochs."""
        return self.done // self.steps_per_epoch

    def _is_over(self) -> bool:
        return self.epoch >= self.config.epochs or self.early.is_over

    def _save(self) -> None:
        self._read_steps()  # every line up to here is logged, or a run that goes on from here would lack one
        host = {"plateau": asdict(self.plateau), "early": asdict(self.early), "due": self.due, "unreadable": sorted(self.unreadable)}
        self.checkpoints.save(Saved(unreplicate(self.state), host))
        self.last_save = time.monotonic()

    def _save_and_stop(self, number: int) -> None:
        self._save()
        self.checkpoints.wait()
        raise Stopped(number, self.done)

    # ------------------------------------------------------------------ one epoch

    def _epoch(self) -> None:
        first, batch = self.done % self.steps_per_epoch, self.config.batch_size
        title = f"epoch {self.epoch + 1}/{self.config.epochs}"
        with EpochDisplay(title, self.steps_per_epoch * batch, self.config.tasks, done=first * batch) as self.display:
            for _ in range(first, self.steps_per_epoch):
                item = self._next_batch()
                self.unreadable.update(item.get("skipped", ()))
                arrays = {name: item[name] for name in ("image", "features", "labels", "mixed") if name in item}
                self.state, metrics = self.step(self.state, self.frozen, shard(arrays))
                self.done += 1
                self.stop.exchange()
                self.pending.append((self.done, item["id"], len(self.unreadable), metrics))
                self._read_steps(behind=1)  # the device is busy with this step while the host reads the one before
                self.display.advance(batch)
                if self._must_save():
                    self._save()
                if self.stop.heard and self.done % self.steps_per_epoch:  # at the end of an epoch the validation hears of it
                    self._save_and_stop(self.stop.heard)
            self._read_steps()
        self.due = True

    def _next_batch(self) -> dict[str, Any]:
        """The batch after those that are done; readers that have died are started again, at the same place."""
        for _ in range(READER_TRIES):
            try:
                return next(self.batches)
            except RuntimeError as error:  # grain's word for a process that is gone
                if self.stop.alone:  # they were asked to stop, too
                    self._save_and_stop(self.stop.alone)
                reason = str(error).splitlines()[0]
                self._say(f"reading failed at step {self.done} ({reason}): it is started again")
                self.batches.close()
                self.batches = self.input.train(self.done)
        self._save()
        self.checkpoints.wait()
        raise UserError(f"reading failed {READER_TRIES} times at step {self.done} ({reason}); the state is saved")

    def _must_save(self) -> bool:
        """Whether it is time; what an epoch ends with is saved after its validation."""
        return self.done % self.steps_per_epoch != 0 and time.monotonic() - self.last_save > 60 * self.config.checkpoint_minutes

    def _read_steps(self, behind: int = 0) -> None:
        """Logs the steps that are not logged yet but for the last `behind`, and ends the run after too many that had to be skipped."""
        while len(self.pending) > behind:
            step, ids, unreadable, metrics = self.pending.popleft()
            self.seen.append((step, ids))
            bad = int(unreplicate(metrics["bad"]))
            if bad >= self.config.bad_steps:
                self._give_up(step, bad)
            if step % self.config.log_every == 0:
                self._log_step(step, unreadable, jax.tree.map(float, unreplicate(metrics)))

    def _give_up(self, step: int, bad: int) -> None:
        path = self.folder / ("not_finite.json" if is_first() else f"not_finite-{jax.process_index()}.json")
        write_json(path, [{"step": step, "ids": [str(name) for name in ids]} for step, ids in self.seen])
        raise UserError(
            f"the loss or its gradient was not finite in {bad} steps in a row, up to step {step}: lower the learning rates, or look at "
            f"the records named in {path}; the last good state is in checkpoints/"
        )

    def _log_step(self, step: int, unreadable: int, values: dict[str, Any]) -> None:
        line = {name: values[name] for name in ("loss", "gradient_norm") if math.isfinite(values[name])}
        line |= {"images_per_second": round(self.display.rate, 2), "skipped": int(values["skipped"]), "unreadable": unreadable}
        for name, key in (("losses", "loss"), ("accuracy", "accuracy"), ("weights", "weight")):
            line |= {f"{key}/{task}": value for task, value in values[name].items() if values["count"][task] or name == "weights"}
        line |= self._learning_rates(step)
        if self.log:
            self.log.write("train", step, (step - 1) // self.steps_per_epoch, {k: v for k, v in line.items() if math.isfinite(v)})
        self.display.show({"loss": math.nan} | line)

    def _learning_rates(self, step: int) -> dict[str, float]:
        options = self.config.optimizer
        factor = self.plateau.scale * options.factor_at(step, self.config.epochs * self.steps_per_epoch)
        groups = {group.name: group for group in self.parts.groups.values()}
        return {f"learning_rate/{name}": options.rate(group) * factor for name, group in groups.items()}

    def _end_epoch(self) -> None:
        """Validates, moves the schedule, keeps the best, saves."""
        values = from_first(figures(self._predict("validation", self._evaluated(), f"validation {self.epoch}")))
        tasks = [task for task in with_coarse(self.config.tasks) if f"accuracy/{task}" in values and not get_task(task).coarse]
        if not tasks:
            sets, names = ", ".join(self.images.sets), ", ".join(self.config.tasks)
            raise UserError(f"no validation record of {sets} has a label of {names}, or the model diverged")
        accuracy = float(np.mean([values[f"accuracy/{task}"] for task in tasks]))
        if self.log:
            self.log.write("validation", self.done, self.epoch, {**values, "accuracy": accuracy})
        scale = self.plateau.update(values["loss"])
        balance = self.balancer.after_epoch(unreplicate(self.state.balance))
        self.state = self.state._replace(scale=replicate(np.float32(scale)), balance=replicate(balance))
        if self.early.update(values["loss"], accuracy):
            self._save_best(accuracy)
        self.due = False
        named = (f"{task} {100 * values[f'accuracy/{task}']:.1f} %" for task in tasks)
        self._say(f"epoch {self.epoch}: validation loss {values['loss']:.3f}, accuracy {', '.join(named)}")
        if self.stop.alone:
            self._save_and_stop(self.stop.alone)
        if self._is_over() or time.monotonic() - self.last_save > min(SAVE_SECONDS, 60 * self.config.checkpoint_minutes):
            self._save()

    def _save_best(self, accuracy: float) -> None:
        if is_first():
            state = unreplicate(self.state)
            info = {"step": self.done, "epoch": self.epoch, "accuracy": accuracy, "base": self.config.encoder.weights}
            save_best(self.folder, self.parts, model_part(state.average or state.trained), state.statistics, info, self.base_hash)

    # ------------------------------------------------------------------ evaluation

    def _evaluated(self) -> dict[str, jax.Array]:
        """The model's arrays as they are evaluated: the moving average of the parameters where there is one."""
        return {**self.state.statistics, **model_part(self.state.average or self.state.trained), **self.frozen}

    def _predict(self, split: str, arrays: dict[str, jax.Array], title: str) -> Predictions:
        total, batches = self.images.count(split), self._until_stopped(self.input.evaluation(split))
        return predict_all(self.predict, arrays, batches, with_coarse(self.config.tasks), title=title, total=total)

    def _until_stopped(self, batches: Iterable[Any]) -> Iterator[Any]:
        """The batches; a stop between them loses nothing but what was predicted so far."""
        for batch in batches:
            if self.stop.alone:
                self._save_and_stop(self.stop.alone)
            yield batch

    def _test_before(self) -> None:
        if self.before:
            predictions = self._predict(self.images.test_split(), self._evaluated(), "before")
            if self.log:
                self.log.write("before", self.done, self.epoch, figures(predictions))
                write_predictions(self.folder / "predictions_before.parquet", predictions)

    def _finish(self) -> None:
        """Tests the best model and writes what a report needs."""
        self.checkpoints.wait()
        best = from_first(load_file(self.folder / "best" / "trained.safetensors") if is_first() else None)
        predictions = self._predict(self.images.test_split(), replicate({k: jnp.asarray(v) for k, v in best.items()}) | self.frozen, "test")
        if self.log:
            self.log.write("test", self.done, self.epoch, figures(predictions))
            counts = {"steps": self.done, "epochs": self.epoch, "skipped": int(unreplicate(self.state.skipped))}
            write_outcome(self.folder, self.config, self.images, predictions, counts | {"unreadable": sorted(self.unreadable)})
        from_first(None)  # the others leave when all is written: the next run may start from this one
