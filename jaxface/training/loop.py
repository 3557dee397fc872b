"""A run from its configuration to its results: epochs, validation, early stop, checkpoints, the final test."""

from __future__ import annotations

import json
import math
import signal
import sys
import time
from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path
from types import FrameType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxface.config import Config, to_dict
from jaxface.data.augment import Augment
from jaxface.data.pipeline import count_records, eval_batches, train_batches
from jaxface.data.sources.synthetic import prepare_synthetic
from jaxface.errors import UserError
from jaxface.evaluation.inference import mean_losses, predict_all
from jaxface.evaluation.metrics import summarize
from jaxface.evaluation.predictions import Predictions, write_predictions
from jaxface.files import aside, write_json
from jaxface.progress import Track
from jaxface.training.balancing import get_balancer
from jaxface.training.checkpoints import Checkpoints, Saved
from jaxface.training.metrics_log import MetricsLog
from jaxface.training.optimizer import Plateau, make_optimizer
from jaxface.training.runs import check_same_config, fingerprint, make_parts, save_best
from jaxface.training.step import BALANCE, TrainState, make_predict, make_step, model_part, replicate, shard, unreplicate

FACES = 48
"""Test images kept as pictures for the report."""


class Stopped(Exception):
    """The run was asked to stop; its state is saved. `signal` says by what."""

    def __init__(self, number: int, step: int) -> None:
        super().__init__(f"stopped at step {step}, state saved: the same command goes on from there")
        self.signal = number


def prepared_sets(config: Config) -> tuple[str, ...]:
    """The folders of records that the configuration names; drawn faces are made if they are not there yet.

    Raises UserError if it names none.
    """
    if config.data.sets:
        return config.data.sets
    if config.data.drawn is None:
        raise UserError("no data: --data.sets FOLDER... (folders written by `python -m jaxface.prepare`)")
    drawn = config.data.drawn
    out = Path(config.out) / "drawn" / f"{drawn.style}-{drawn.count}-{drawn.test_count}-{drawn.size}px-seed{drawn.seed}"
    prepare_synthetic(out, **asdict(drawn))
    return (str(out),)


class Run:
    """One training run. `run()` does all of it and returns the run folder; an interrupted one goes on where it stood."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.folder = config.folder
        self.finished = check_same_config(self.folder, config) and (self.folder / "result.json").exists()
        if self.finished:
            return
        self._check_devices()
        self.sets = prepared_sets(config)
        self.steps_per_epoch = max(1, count_records(self.sets, "train") // config.batch_size)
        self.parts = make_parts(config)
        self.image_size = config.encoder.image_size or self._encoder_config().image_size
        self.balancer = get_balancer(config.balancing)
        optimizer = make_optimizer(config.optimizer, self.parts.groups, config.epochs * self.steps_per_epoch)
        trained = self.parts.trained | {BALANCE + k: v for k, v in self.balancer.parameters(config.tasks).items()}
        self.initial = TrainState(
            step=jnp.zeros((), jnp.int32),
            trained=trained,
            statistics=self.parts.statistics,
            optimizer=optimizer.init(trained),
            balance=self.balancer.state(config.tasks),
            scale=jnp.ones(()),
        )
        self.step = make_step(self.parts.structure, config.tasks, self.balancer, optimizer, config.seed)
        self.predict = make_predict(self.parts.structure)
        self.frozen = replicate(self.parts.frozen)
        self.base_hash = fingerprint(self.parts.frozen)
        self.stop_signal = 0

    def _check_devices(self) -> None:
        devices = jax.local_device_count() * jax.process_count()
        if self.config.batch_size % devices:
            raise UserError(f"batch_size {self.config.batch_size} is not a multiple of the {devices} devices")

    def _encoder_config(self) -> Any:
        return self.parts.build().encoder.config

    # ------------------------------------------------------------------ the run

    def run(self) -> Path:
        """Trains until the last epoch or the early stop, tests the best model. Raises Stopped on SIGTERM or Ctrl-C."""
        if self.finished:
            return self.folder
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(self.folder / "config.json", to_dict(replace(self.config, after=None)))
        self.checkpoints = Checkpoints(self.folder / "checkpoints")
        old_handlers = {number: signal.signal(number, self._on_signal) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            self._start()
            if self.config.before and not (self.folder / "predictions_before.parquet").exists():
                self._test("before", self._evaluation_arrays(self.initial), "predictions_before.parquet")
            while not self._is_over():
                self._epoch()
            self._finish()
        finally:
            for number, handler in old_handlers.items():
                signal.signal(number, handler)
            self.batches.close()
            self.checkpoints.close()
            self.log.close()
        return self.folder

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.stop_signal:  # asked twice: at once
            raise KeyboardInterrupt
        self.stop_signal = number

    def _start(self) -> None:
        """Takes up the newest checkpoint, or the initial state."""
        config = self.config
        self.batches = train_batches(
            self.sets,
            config.tasks,
            image_size=self.image_size,
            batch_size=config.batch_size // jax.process_count(),
            seed=config.seed,
            augment=Augment() if config.data.augment else None,
            sampling=config.data.sampling,
            workers=config.data.workers,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )
        self.plateau = Plateau(config.optimizer.plateau_factor, config.optimizer.plateau_patience)
        self.best, self.stale = -math.inf, 0
        saved = self.checkpoints.restore(self.initial)
        if saved is not None:
            self.batches.set_state(saved.input)
            self.plateau = Plateau(**saved.host["plateau"])
            self.best, self.stale = saved.host["best"], saved.host["stale"]
            print(f"{self.folder}: going on from step {int(saved.state.step)}", file=sys.stderr)
        state = self.initial if saved is None else saved.state
        self.done = int(state.step)
        self.log = MetricsLog(self.folder, self.done)
        self.state = replicate(state)
        self.last_save = time.monotonic()

    @property
    def epoch(self) -> int:
        """Finished epochs."""
        return self.done // self.steps_per_epoch

    def _is_over(self) -> bool:
        return self.epoch >= self.config.epochs or self.stale >= self.config.optimizer.early_stop

    def _save(self) -> None:
        # the best value is -inf until the first validation, which JSON does not know
        host = {"plateau": asdict(self.plateau), "best": max(self.best, -1e30), "stale": self.stale}
        host["plateau"]["best"] = min(self.plateau.best, 1e30)
        self.checkpoints.save(Saved(unreplicate(self.state), host, self.batches.get_state()))
        self.last_save = time.monotonic()

    # ------------------------------------------------------------------ one epoch

    def _epoch(self) -> None:
        first = self.done % self.steps_per_epoch
        batch = self.config.batch_size
        title = f"epoch {self.epoch + 1}/{self.config.epochs}"
        pending: tuple[int, Any] | None = None
        with Track(title, self.steps_per_epoch * batch, unit="images", done=first * batch) as track:
            for _ in range(first, self.steps_per_epoch):
                item = next(self.batches)
                self.state, metrics = self.step(self.state, self.frozen, shard({"image": item["image"], "labels": item["labels"]}))
                self.done += 1
                # the device is busy with this step while the host reads the one before
                if pending is not None:
                    self._log_step(*pending, track)
                pending = (self.done, metrics) if self.done % self.config.log_every == 0 else None
                track.advance(batch)
                if self._must_save():  # with every line up to here, or a run that goes on from here would lack one
                    if pending is not None:
                        self._log_step(*pending, track)
                    pending = None
                    self._save()
                    self._heed_signals()
            if pending is not None:
                self._log_step(*pending, track)
        self._end_epoch()

    def _must_save(self) -> bool:
        if self.done % self.steps_per_epoch == 0:  # saved after validation instead
            return False
        return bool(self.stop_signal) or time.monotonic() - self.last_save > 60 * self.config.checkpoint_minutes

    def _heed_signals(self) -> None:
        if self.stop_signal:
            self.checkpoints.wait()
            raise Stopped(self.stop_signal, self.done)

    def _log_step(self, step: int, metrics: Any, track: Track) -> None:
        values = jax.tree.map(float, unreplicate(metrics))
        if not math.isfinite(values["loss"]):
            raise UserError(
                f"the loss is {values['loss']} at step {step}: lower the learning rates; the last good state is in checkpoints/"
            )
        line = {"loss": values["loss"], "gradient_norm": values["gradient_norm"], "images_per_second": round(track.rate, 2)}
        for name in ("losses", "accuracy", "weights"):
            short = {"losses": "loss", "weights": "weight"}.get(name, name)
            line |= {f"{short}/{task}": value for task, value in values[name].items() if values["count"][task] or name == "weights"}
        line |= self._learning_rates(step)
        self.log.write("train", step, (step - 1) // self.steps_per_epoch, line)
        track.note(f"loss {values['loss']:.3f} " + " ".join(f"{task} {100 * values['accuracy'][task]:.0f}%" for task in self.config.tasks))

    def _learning_rates(self, step: int) -> dict[str, float]:
        options = self.config.optimizer
        factor = self.plateau.scale * float(options.schedule(self.config.epochs * self.steps_per_epoch)(step))
        groups = {group.name: group for group in self.parts.groups.values()}
        return {f"learning_rate/{name}": options.rate(group) * factor for name, group in groups.items()}

    def _end_epoch(self) -> None:
        """Validates, moves the schedule, keeps the best, saves."""
        predictions = self._predict("validation", self._evaluation_arrays(unreplicate(self.state)), f"validation {self.epoch}")
        losses, values = mean_losses(predictions), summarize(predictions)
        loss = float(np.nansum(list(losses.values())))
        accuracies = [values[f"accuracy/{task}"] for task in self.config.tasks if f"accuracy/{task}" in values]
        if not accuracies:
            raise UserError(f"no validation record of {', '.join(self.sets)} has a label of {', '.join(self.config.tasks)}")
        accuracy = float(np.mean(accuracies))
        line = {"loss": loss, "accuracy": accuracy, **{f"loss/{task}": value for task, value in losses.items()}, **values}
        self.log.write("validation", self.done, self.epoch, finite(line))
        scale = self.plateau.update(loss)
        self.state = self.state._replace(
            scale=replicate(jnp.asarray(scale, jnp.float32)), balance=replicate(self.balancer.after_epoch(unreplicate(self.state.balance)))
        )
        if accuracy > self.best:
            self.best, self.stale = accuracy, 0
            state = unreplicate(self.state)
            info = {"step": self.done, "epoch": self.epoch, "accuracy": accuracy, "base": self.config.encoder.weights}
            save_best(self.folder, self.parts, model_part(state.trained), state.statistics, info, self.base_hash)
        else:
            self.stale += 1
        self._save()
        named = (f"{task} {100 * values[f'accuracy/{task}']:.1f} %" for task in self.config.tasks if f"accuracy/{task}" in values)
        print(f"epoch {self.epoch}: validation loss {loss:.3f}, accuracy {', '.join(named)}", file=sys.stderr, flush=True)
        self._heed_signals()

    # ------------------------------------------------------------------ evaluation

    def _evaluation_arrays(self, state: TrainState) -> dict[str, jax.Array]:
        return replicate({**state.statistics, **model_part(state.trained)}) | self.frozen

    def batches_of(self, split: str) -> Iterable[dict[str, Any]]:
        """Every record of a split once, in evaluation batches."""
        return eval_batches(self.sets, split, self.config.tasks, image_size=self.image_size, batch_size=self.config.batch_size)

    def test_split(self) -> str:
        """`test`, or `validation` for sets without one."""
        return "test" if count_records(self.sets, "test", missing_ok=True) else "validation"

    def _predict(self, split: str, arrays: dict[str, jax.Array], title: str) -> Predictions:
        total = count_records(self.sets, split)
        return predict_all(self.predict, arrays, self.batches_of(split), self.config.tasks, title=title, total=total)

    def _test(self, name: str, arrays: dict[str, jax.Array], file: str) -> dict[str, float]:
        predictions = self._predict(self.test_split(), arrays, name)
        write_predictions(self.folder / file, predictions)
        losses = mean_losses(predictions)
        values = {"loss": float(np.nansum(list(losses.values())))} | {f"loss/{task}": v for task, v in losses.items()}
        values = finite(values | summarize(predictions))
        self.log.write(name, self.done, self.epoch, values)
        return values

    def _finish(self) -> None:
        """Tests the best model and writes what a report needs."""
        from safetensors.numpy import load_file

        self.checkpoints.wait()
        best = {k: jnp.asarray(v) for k, v in load_file(self.folder / "best" / "trained.safetensors").items()}
        values = self._test("test", replicate(best) | self.frozen, "predictions.parquet")
        self._write_faces()
        self._write_baselines(values)
        info = json.loads((self.folder / "best" / "info.json").read_text())
        result = {"steps": self.done, "epochs": self.epoch, "best": info, "split": self.test_split(), "test": values}
        write_json(self.folder / "result.json", result)

    def _write_faces(self) -> None:
        batch = next(iter(self.batches_of(self.test_split())))
        keep = np.flatnonzero(np.asarray(batch["valid"]))[:FACES]
        arrays = {"id": np.asarray(batch["id"])[keep].astype(str), "image": np.asarray(batch["image"])[keep]}
        with aside(self.folder / "faces.npz") as temporary, temporary.open("wb") as file:
            np.savez_compressed(file, **arrays)

    def _write_baselines(self, values: dict[str, float]) -> None:
        from jaxface.evaluation.baselines import pixel_accuracy  # scikit-learn's models are slow to import

        majority = {name.removeprefix("majority/"): value for name, value in values.items() if name.startswith("majority/")}
        baselines: dict[str, Any] = {"majority": majority}
        if self.config.pixels:
            split = self.test_split()
            baselines["pixels"] = pixel_accuracy(lambda: self.batches_of("train"), lambda: self.batches_of(split), self.config.tasks)
        write_json(self.folder / "baselines.json", baselines)


def finite(values: dict[str, float]) -> dict[str, float]:
    """Without the values that JSON does not know (a task without labels)."""
    return {name: float(value) for name, value in values.items() if math.isfinite(value)}
