"""The conformance suite: that its reference is right, that our kernels pass it, and that it finds what is wrong."""

import subprocess
import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import jaxface.kernels
from jaxface import bench
from jaxface.errors import UserError
from jaxface.kernels import platform
from jaxface.kernels.attention import KERNELS, Call, attention, choose, get_kernel, register, rotate
from jaxface.kernels.conformance import CASES, Case, arrays_for, reference

SMALL = (
    Case("tails, turned, causal, in three tiles", 33, 33, 24, turned=True, causal=True, spread=3.0),
    Case("one query", 1, 19, 12, front=(2, 3)),
)


@pytest.mark.parametrize("causal", [False, True])
def test_the_reference_agrees_with_torch_in_float64(causal):
    case = Case("", 9, 9, 8, turned=True, causal=causal)
    (q, k, v, g), angles = arrays_for(case, "fp32")
    expected = reference(q, k, v, g, angles, causal)
    tensors = [torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in (q, k, v)]
    pairs = torch.view_as_complex(torch.stack([tensors[0], tensors[1]]).unflatten(-1, (-1, 2)))
    turned = torch.view_as_real(pairs * torch.polar(torch.ones(9, 4, dtype=torch.float64), torch.tensor(angles, dtype=torch.float64)))
    y = torch.nn.functional.scaled_dot_product_attention(*turned.flatten(-2), tensors[2], is_causal=causal)
    got = [y, *torch.autograd.grad(y, tensors, torch.tensor(g, dtype=torch.float64))]
    for ours, theirs in zip(expected, got, strict=True):
        np.testing.assert_allclose(ours, theirs.detach().numpy(), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", [name for name in KERNELS if name not in ("cudnn", "dot_product", "pallas")])
def test_kernels_for_any_device_conform_in_every_case(name):
    report = jaxface.kernels.check(name, rounds=0, show=False, cases=[case for case in CASES if case.queries < 500])
    assert report.ok, report


@pytest.mark.parametrize("scores", [1, 2 * 4 * 20 * 20, 10**9])
def test_the_blocked_kernel_conforms_with_one_head_a_few_or_all_at_once(scores, monkeypatch):
    monkeypatch.setattr("jaxface.kernels.attention.SCORES", scores)
    cases = [*SMALL, *(case for case in CASES if case.queries < 200 and (case.queries == 20 or case.spread > 1 or case.causal))]
    report = jaxface.kernels.check("blocked", rounds=0, show=False, cases=cases)
    assert report.ok, report


def test_the_pallas_kernel_conforms_forward_and_backward_when_interpreted():
    report = jaxface.kernels.check("pallas", rounds=0, show=False, cases=SMALL)
    assert report.ok, report


def without_scale(q, k, v, *, angles=None, causal=False):
    if angles is not None:
        q, k = rotate(q, angles), rotate(k, angles)
    scores = jnp.einsum("...nd,...md->...nm", q, k)
    return jax.nn.softmax(jnp.where(jnp.tril(jnp.ones(scores.shape[-2:], bool)), scores, -jnp.inf) if causal else scores) @ v


@jax.custom_jvp
def attend_without_a_gradient_for_values(q, k, v):
    return jax.nn.softmax(q @ jnp.swapaxes(k, -1, -2) * q.shape[-1] ** -0.5) @ jax.lax.stop_gradient(v)


def raises(q, k, v, *, angles=None, causal=False):
    raise NotImplementedError("not on this device")


def test_a_wrong_kernel_is_found_and_an_exception_is_a_line_of_the_report():
    report = jaxface.kernels.check(without_scale, cases=SMALL[:1], dtypes=["fp32"], rounds=1, show=False)
    assert not report.ok
    assert report.rows[0].errors[0] > 0.01
    assert report.rows[0].seconds > 0
    assert "FAILED" in str(report)
    frozen = jaxface.kernels.check(
        lambda q, k, v, *, angles, causal: get_kernel("xla")(q, k, jax.lax.stop_gradient(v), angles=angles, causal=causal),
        cases=SMALL[:1],
        dtypes=["fp32"],
        rounds=0,
        show=False,
    )
    assert not frozen.ok  # one gradient of four is enough
    *good, wrong = frozen.rows[0].errors
    assert max(good) < 1e-5 < 0.5 < wrong
    failed = jaxface.kernels.check(raises, cases=SMALL[:1], dtypes=["fp32"], rounds=0, show=False)
    assert "NotImplementedError: not on this device" in str(failed)


def test_the_kernel_registered_last_whose_condition_holds_is_chosen():
    call = Call("gpu", np.dtype(jnp.bfloat16), 577, 577, 64, False)
    assert choose(call._replace(platform="cpu")) == choose(call._replace(platform="cpu", queries=1))
    with KERNELS.temporarily():
        register("mine", raises, suits=lambda call: call.platform == "gpu" and call.queries > 100)
        assert choose(call) == "mine"
        assert choose(call._replace(platform="cpu")) != "mine"
        register("mine", raises, suits=lambda call: True)
        register("mine", raises)
        assert choose(call._replace(platform="cpu")) != "mine"


def test_a_kernel_in_a_file_of_ones_own_is_checked_from_the_command_line(tmp_path, monkeypatch):
    path = tmp_path / "mine.py"
    path.write_text("from jaxface.kernels.attention import register, xla_attention\nregister('mine', xla_attention)\n")
    words = ["attention", "mine", "--cases", "text tower", "--rounds", "1"]
    command = [sys.executable, "-m", "jaxface.bench", *words, "--import", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert "2 of 2 cases hold" in done.stdout
    monkeypatch.setattr(sys, "argv", ["bench", *words])
    with pytest.raises(UserError, match=r"--import FILE\.py"):
        bench.main()


def test_the_check_is_reached_by_importing_jaxface_alone():
    code = "import jaxface; print(jaxface.kernels.check.__name__, 'kernels' in dir(jaxface))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100)
    assert done.stdout.split() == ["check", "True"], done.stderr


def test_a_kernel_of_half_precision_is_refused_float32_in_one_line_and_checked_in_its_own_dtype_alone():
    q = jnp.ones((1, 2, 4, 8))
    with KERNELS.temporarily():
        register("narrow", get_kernel("xla"), half=True)
        with pytest.raises(UserError, match="attention kernel narrow: computes in bfloat16 or float16, got float32"):
            attention(q, q, q, kernel="narrow")
        assert attention(*3 * [q.astype(jnp.bfloat16)], kernel="narrow").dtype == jnp.bfloat16
        report = jaxface.kernels.check("narrow", cases=SMALL, rounds=0, show=False)
    assert [row.dtype for row in report.rows] == ["bf16"] * len(SMALL)
    assert report.ok


@pytest.mark.parametrize(
    ("chosen", "platforms", "there", "becomes"),
    [
        (None, None, True, "highest"),
        (None, "cuda,cpu", True, "highest"),
        (None, None, False, None),
        (None, "cpu", True, None),
        ("tensorfloat32", None, True, "tensorfloat32"),
    ],
)
def test_float32_products_stay_float32_where_jax_has_an_accelerator_and_nothing_else_was_chosen(
    chosen, platforms, there, becomes, monkeypatch
):
    assert {"jax_default_matmul_precision", "jax_platforms"} <= set(jax.config.values)  # which are JAX's own
    config = SimpleNamespace(jax_default_matmul_precision=chosen, jax_platforms=platforms)
    config.update = lambda name, value: setattr(config, name, value)
    monkeypatch.setattr(platform, "find_spec", lambda name: there or None)
    monkeypatch.setattr(platform, "jax", SimpleNamespace(config=config))
    platform.multiply_in_float32()
    assert config.jax_default_matmul_precision == becomes
