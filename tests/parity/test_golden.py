"""The encoders against what Meta's own code made of the same parameters and images, at sizes where timm does something else."""

import jax
import numpy as np
import pytest
from parity.make_golden import SIZES, golden_images, golden_path

from small_models import KINDS, random_ids

pytestmark = pytest.mark.usefixtures("strict_dtypes")

CASES = [(kind, size) for kind in KINDS for size in SIZES]

encode = jax.jit(lambda model, inputs: model(inputs))


def assert_as_exact_as_the_original(ours, file, name):
    exact = file[name]
    assert ours.shape == exact.shape
    error = np.abs(np.asarray(ours, np.float64) - exact).max() / np.abs(exact).max()
    assert error <= 2e-6
    assert error <= 2 * file[f"{name} error"]


@pytest.mark.parametrize(("kind", "size"), CASES, ids=lambda value: value if isinstance(value, str) else f"{value[0]}x{value[1]}")
def test_features_equal_metas_at_other_sizes(kind, size, encoder):
    ours = encode(encoder(kind), golden_images(kind, *size))
    assert_as_exact_as_the_original(ours, np.load(golden_path(kind)), f"{size[0]}x{size[1]}")


@pytest.mark.parametrize("kind", [kind for kind, towers in KINDS.items() if towers.text])
def test_text_features_equal_metas(kind, clip):
    ours = encode(clip(kind).text, random_ids(12, KINDS[kind]))
    assert_as_exact_as_the_original(ours, np.load(golden_path(kind)), "text")
