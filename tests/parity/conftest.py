"""Models that several tests compare, built once."""

from __future__ import annotations

from functools import cache

import pytest

from jaxface.originals.reference import Original, build_original
from jaxface.weights import load_clip, load_encoder
from small_models import KINDS, random_images, random_tensors
from weights_convert.checkpoint import write_checkpoint


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """The path of a small model's checkpoint, by kind."""

    @cache
    def path(kind: str):
        path = tmp_path_factory.mktemp("small") / "model.safetensors"
        write_checkpoint(path, KINDS[kind], random_tensors(KINDS[kind]))
        return path

    return path


@pytest.fixture(scope="session")
def encoder(checkpoint):
    """A small encoder by kind and dtype."""
    return cache(lambda kind, dtype="float32": load_encoder(checkpoint(kind), dtype=dtype))


@pytest.fixture(scope="session")
def clip(checkpoint):
    """Both towers by kind and dtype."""
    return cache(lambda kind, dtype="float32": load_clip(checkpoint(kind), dtype=dtype))


@pytest.fixture(scope="session")
def original():
    """The original of a kind by library and precision ("float" or "double")."""

    @cache
    def build(against: str, kind: str, precision: str) -> Original:
        built = build_original(against, KINDS[kind], random_tensors(KINDS[kind]))
        for module in built.modules:
            getattr(module, precision)()
        return built

    return build


@pytest.fixture(scope="session")
def images():
    """Images of a kind's own size, enough of them for rounding errors to average out."""
    return cache(lambda kind: random_images(12, KINDS[kind].vision.image_size, KINDS[kind].vision.image_size))
