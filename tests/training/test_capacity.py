from dataclasses import replace

import jax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxface.errors import UserError
from jaxface.files import write_json
from jaxface.runs.config import Config, EncoderOptions, MethodOptions, OptimizerOptions
from jaxface.runs.model import shapes_of
from jaxface.runs.saved_config import to_dict
from jaxface.training import capacity
from jaxface.training.capacity import compile_step, largest_batch, settle_batch_size, step_bytes, step_of

CONFIG = Config(
    encoder=EncoderOptions(weights="random", variant="PE-Mini-10-60"), method=MethodOptions("ap"), tasks=("age",), batch_size="auto"
)


@given(st.integers(0, 10**9), st.integers(1, 10**6), st.integers(0, 200), st.integers(1, 8), st.integers(1, 10**9))
def test_the_batch_found_fits_and_a_sixteenth_more_does_not_and_few_programs_are_made(fixed, each, bend, unit, free):
    asked = []

    def needs(images):
        asked.append(images)
        return fixed + each * images + bend * images**2

    if needs(unit) > free:
        with pytest.raises(UserError, match="GiB"):
            largest_batch(needs, free, unit)
        return
    asked.clear()
    found = largest_batch(needs, free, unit)
    assert found % unit == 0
    assert needs(found) <= free
    more = found + max(unit, found // 16 // unit * unit + unit)
    assert more > capacity.MOST or needs(more) > free
    assert len(asked) <= 2 * capacity.MOST.bit_length()  # halving in every other step


def test_the_memory_of_a_step_is_that_of_its_arrays_at_least():
    parts = shapes_of(CONFIG)
    arrays = sum(leaf.size * leaf.dtype.itemsize for leaf in [*parts.frozen.values(), *parts.trained.values()])
    assert arrays < step_bytes(compile_step(CONFIG, 2)) < 10 * arrays


def test_auto_takes_what_fits_and_a_run_that_goes_on_keeps_its_size(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(capacity, "compile_step", lambda config, images, parts: images)
    monkeypatch.setattr(capacity, "step_bytes", lambda images: asked.append(images) or 1000 + 10 * images)
    monkeypatch.setattr(capacity, "free_bytes", lambda: int(1089 / capacity.SHARE) + 1)
    config = replace(CONFIG, out=str(tmp_path))
    found = settle_batch_size(config)
    assert found.batch_size == 8 * jax.device_count()
    write_json(found.folder / "config.json", {**to_dict(found), "batch_size": 3})
    assert settle_batch_size(config).batch_size == 3
    asked.clear()
    assert settle_batch_size(replace(config, name="pieces", accumulate=2)).batch_size == 8 * jax.device_count()
    assert asked
    assert not any(images % 4 for images in asked)  # two images to a piece at least, for batch norm


def test_the_search_for_a_batch_takes_any_schedule():
    step_of(replace(CONFIG, optimizer=OptimizerOptions(cosine=True, warmup_steps=9)), 2)
