"""What a run is made of before its first step: data, model, compiled step."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import jax

from jaxface.adapters.methods import get_method
from jaxface.cluster import from_first, of_first, say
from jaxface.data.framing import noted
from jaxface.data.records import set_digest
from jaxface.data.tasks import BUILT_IN
from jaxface.devices import replicate
from jaxface.digests import record_digests
from jaxface.errors import UserError
from jaxface.files import write_json
from jaxface.objectives.balancing import get_balancer
from jaxface.runs.base import Base, base_info, framing_of
from jaxface.runs.best import read_best
from jaxface.runs.config import Config, HeadOptions, check_run
from jaxface.runs.data import Images, prepared_sets
from jaxface.runs.folder import RESULT, changed_options, is_finished, read_config
from jaxface.runs.inference import make_classify, make_predict
from jaxface.runs.model import load_base, make_parts
from jaxface.runs.own_tasks import settled
from jaxface.runs.parts import Parts
from jaxface.runs.saved_config import to_dict
from jaxface.training.batches import Features
from jaxface.training.labels import check_labels
from jaxface.training.optimizer import make_optimizer
from jaxface.training.progress import Progress
from jaxface.training.step import make_step, start_state
from jaxface.training.stopping import StopRequest


class Setup:
    """What a configuration makes: data, model and compiled step. Its run folder is looked at, and not touched before `take_folder`.

    Attributes:
      finished: whether the folder holds this run already, to its end; then there are no other attributes but `config` and `folder`.
      images: where the records come from.
      parts: the model before training.
      initial: the state before the first step, of one device.
      frozen: what never changes, on every device.
      step: see `jaxface.training.step.make_step`.
      predict: the model's answers, on every device.
      input: what a step reads: images, or features where they never change.
      identity: what the run stands on: the base weights and the records, by their hashes and where they lie.
      stop: whether the run was asked to stop.
    """

    def __init__(self, config: Config) -> None:
        self.config = config = settled(config)
        self.folder = config.folder
        self.finished = from_first(belongs(self.folder, config) and is_finished(self.folder, config))
        if self.finished:
            return
        check_run(config)
        check_devices(config)
        self.images = Images(config, prepared_sets(config))
        drawn: dict[str, Any] = {"sampling": config.data.sampling, "most": config.data.max_repeat}
        least = 2 if get_method(config.method.name).batch_norm else 1
        check_labels(self.images.sets, config.tasks, config.known, **drawn, least=least)
        self.steps_per_epoch = max(1, self.images.epoch_size() // int(config.batch_size))
        base = load_base(config)
        self.parts = make_parts(config, base)
        check_tokens(self.folder, config, self.parts)
        encoder = self.parts.build().encoder.config
        if config.encoder.image_size % encoder.patch:
            raise UserError(f"encoder.image_size {config.encoder.image_size}: expected a multiple of the encoder's patch, {encoder.patch}")
        self.images.image_size, self.images.framing = config.encoder.image_size or encoder.image_size, encoder.framing
        self.balancer = get_balancer(config.balancing if len(config.tasks) > 1 else "fixed")
        options = config.optimizer
        self._tell_long_warm_up()
        tell_mirrors(config)
        optimizer = make_optimizer(options, self.parts.groups, config.epochs * self.steps_per_epoch)
        parts, rules = self.parts, (config.tasks, self.balancer, optimizer)
        self.initial = start_state(parts.trained, parts.statistics, *rules, options.average, config.seed)
        kinds = config.known
        more: dict[str, Any] = {"losses": config.losses, "kinds": kinds, "accumulate": config.accumulate, "average": options.average}
        self.step = make_step(parts.structure, *rules, **more)
        self.frozen = replicate(self.parts.frozen)
        self.predict = make_predict(self.parts.structure, kinds)
        self.input = self._cached() or self.images
        self.identity = of_first(lambda: identity_of(config, base, self.images))
        self.stop = StopRequest()

    def _cached(self) -> Features | None:
        """The features in place of the images, where they never change."""
        config = self.config
        if config.data.augment or not config.data.cache_features or not all(name.startswith("heads.") for name in self.parts.trained):
            return None
        arrays = replicate({**self.parts.statistics, **self.parts.trained}) | self.frozen
        encode, self.predict = self.predict, make_classify(self.parts.structure, config.known)
        return Features(self.images, lambda images: encode(arrays, images)[1])

    def go_on_from(self, progress: Progress) -> None:
        """Sees faces as the run did so far: those of earlier versions came to every encoder's size by one filter."""
        framing = framing_of(progress.identity)
        if framing != self.images.framing:
            say(f"{self.folder}: faces come to their size as when it began ({framing}), in a new run as {self.images.framing}")
            self.images.framing = framing
            self.identity = {name: value for name, value in self.identity.items() if name != "framing"} | noted(framing)

    def take_folder(self, done: int | None, progress: Progress) -> None:
        """Makes the folder that of a run that is not done and goes on.

        Args:
          done: the step of the saved state; None where there is none.
          progress: what was saved beside it.

        Raises UserError where that would lose what is there.
        """
        if done is not None:
            check_identity(self.folder, progress.identity, self.identity)
            self._tell_longer_cosine(done)
        elif (self.folder / RESULT).exists():
            raise UserError(f"{self.folder} is done, and {self.config.states} has no state to go on from to {self.config.epochs} epochs")
        elif (self.folder / "metrics.jsonl").exists():
            say(f"{self.folder}: no state was saved so far: it starts again at step 0")
        (self.folder / RESULT).unlink(missing_ok=True)
        write_json(self.folder / "config.json", to_dict(replace(self.config, after=None)))
        record_digests(self.folder, ["config.json"])

    def _tell_long_warm_up(self) -> None:
        """Says where the rates never come to their height: more epochs, which a run may be given later, would bring them there."""
        steps, rise = self.config.epochs * self.steps_per_epoch, self.config.optimizer.warmup_steps
        if rise >= steps and not self.config.optimizer.cosine:  # which refuses it
            say(f"optimizer.warmup_steps {rise}: the run has {steps} steps, and ends at {steps / (rise + 1):.2g} of its rates")

    def _tell_longer_cosine(self, done: int) -> None:
        """Says what more epochs than before do to a cosine, which knows its end from the first step on."""
        before, now, options = read_config(self.folder).epochs, self.config.epochs, self.config.optimizer
        if options.cosine and before != now:
            old, new = (options.factor_at(done, epochs * self.steps_per_epoch) for epochs in (before, now))
            say(
                f"{self.folder}: its cosine came down to the end of epoch {before} and now comes down to that of epoch {now}: at step "
                f"{done} the rates go from {old:.3g} to {new:.3g} of their full height, unlike in a run of {now} epochs from the start"
            )


def check_devices(config: Config) -> None:
    """Raises UserError if the batch cannot be dealt out to the devices, and there into pieces."""
    pieces = jax.local_device_count() * jax.process_count() * config.accumulate
    if config.batch_size % pieces:
        raise UserError(
            f"batch_size {config.batch_size} is not a multiple of {pieces}: {jax.device_count()} devices, "
            f"each in {config.accumulate} pieces"
        )


def tell_mirrors(config: Config) -> None:
    """Says that training mirrors pictures, as it does faces, where none of the tasks is about faces: classes may be mirror images."""
    flip = config.data.changes.flip if config.data.augment else 0.0
    if flip and not any(task in BUILT_IN for task in config.tasks):
        say(
            f"data.changes.flip {flip:g}: pictures are mirrored: --data.changes.flip 0 where left and right matter (digits, letters, signs)"
        )


def check_tokens(folder: Path, config: Config, parts: Parts) -> None:
    """Raises UserError for a choice of tokens that an attention pool leaves no room for, or that is not the one of a run's part so far."""
    tokens, read = config.head.tokens, parts.build().reads_tokens
    if not read and tokens != HeadOptions().tokens:
        raise UserError(f"head.tokens {tokens}: the heads' encoder has a pool, whose feature they read: leave it out")
    if read and (folder / "config.json").exists() and (before := read_config(folder).head.tokens) != tokens:
        raise UserError(f"{folder} was trained with --head.tokens {before} so far: say so again, or choose another --name")


def belongs(folder: Path, config: Config) -> bool:
    """Whether the folder holds this run already; base weights and records may have moved since, if they are the same ones.

    Raises UserError if it holds a run of another configuration.
    """
    if not (folder / "config.json").exists():
        return False
    names = changed_options(folder, config)
    moved = {"encoder.weights", "data.sets"} & set(names)
    if moved and (folder / "best" / "info.json").exists():
        info = read_best(folder).info
        if "data.sets" in moved and list(map(set_digest, config.data.sets)) == info.get("data_sha256"):
            names.remove("data.sets")
        if "encoder.weights" in moved and config.encoder.weights and load_base(config).fingerprint == info["base_sha256"]:
            names.remove("encoder.weights")
    if names:
        raise UserError(
            f"{folder} belongs to another configuration (different: {', '.join(names)}): choose another --name, or remove that folder"
        )
    return True


def check_identity(folder: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    """Raises UserError where a run would go on on other base weights or records than before."""
    for key, what in (("base_sha256", "base weights"), ("data_sha256", "records")):
        if key in before and before[key] != now[key]:
            raise UserError(f"{folder} was trained on other {what} so far than are there now: put those back, or choose another --name")


def identity_of(config: Config, base: Base, images: Images) -> dict[str, Any]:
    """What tells base weights and records apart wherever they lie, for `best/info.json` and for those who go on."""
    about = base_info(config, base, config.folder, images.framing)
    return about | {"data_sha256": [set_digest(folder) for folder in images.sets]}
