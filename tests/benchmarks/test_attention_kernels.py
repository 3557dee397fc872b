"""The comparison of attention kernels, each in a process of its own."""

import pytest

from jaxface.benchmarks.attention_kernels import Options, compare, table
from jaxface.errors import UserError


def test_a_kernel_is_timed_beside_jaxs_own_function_and_torchs():
    pytest.importorskip("torch")
    rows = compare(Options(kernels=("xla",), rounds=1, against="torch", variants=("PE-Mini-10-60:1",)))
    assert [row["kernel"] for row in rows] == ["xla", "jax.nn", "torch"]
    ours, library, reference = rows
    assert library["times_jax.nn"] == reference["times_torch"] == 1
    assert ours["times_torch"] == pytest.approx(reference["seconds"] / ours["seconds"])
    assert ours["flops"] == pytest.approx(7 * 2 * 128 * 37**2 / ours["seconds"])
    assert table(rows).row_count == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kernels": ("flash",)}, "no attention kernel 'flash'; known: xla"),
        ({"variants": ("PE-Core-B16-224",)}, "variants PE-Core-B16-224: expected NAME:IMAGES"),
        ({"variants": ("PE-Core-B16-224:0",)}, "images 0: expected 1 to"),
        ({"variants": ("PE-Core-X:1",)}, "PE-Core-X"),
        ({"against": "torch", "rounds": 0}, "rounds 0: expected 1 to 100000"),
    ],
)
def test_what_cannot_be_timed_is_one_line(options, message):
    with pytest.raises(UserError, match=message):
        Options(**options)
