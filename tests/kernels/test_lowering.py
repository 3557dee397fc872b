"""GPU programs, checked without a GPU: what XLA would be given on one, and with Triton installed what the GPU itself would run."""

import subprocess
import sys
from importlib.util import find_spec

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AbstractDevice, AbstractMesh, use_abstract_mesh
from jaxlib.mlir import ir
from jaxlib.triton import dialect

from jaxface.adapters.adapt import adapt_with_groups
from jaxface.adapters.options import AdapterOptions
from jaxface.devices import replicate
from jaxface.kernels.attention import attention
from jaxface.models.encoder import use_attention
from jaxface.models.heads import Classifier
from jaxface.objectives.balancing import get_balancer
from jaxface.runs.config import OptimizerOptions
from jaxface.runs.parts import take_apart
from jaxface.training.optimizer import make_optimizer
from jaxface.training.step import make_step, start_state
from tiny_encoder import tiny_encoder


def programs(lowered, target):
    """The custom calls of a lowered program whose target's name has `target` in it."""
    found = []

    def walk(operation):
        for region in operation.regions:
            for block in region.blocks:
                for inner in block.operations:
                    if inner.operation.name == "stablehlo.custom_call" and target in str(inner.attributes["call_target_name"]):
                        found.append(inner.operation)
                    walk(inner.operation)

    walk(lowered.compiler_ir("stablehlo").operation)
    return found


def name_of(call):
    return str(call.attributes["mhlo.backend_config"]["name"]).strip('"')


H100 = AbstractMesh((), (), abstract_device=AbstractDevice("NVIDIA H100 80GB HBM3", None, "gpu"))
"""From JAX 0.11 on Pallas asks which card it lowers for."""


def for_cuda(function, *arguments):
    with use_abstract_mesh(H100):
        return jax.jit(function).trace(*arguments).lower(lowering_platforms=("cuda",))


def gradients(kernel, queries, keys, width, dtype, *, turned=False, causal=False):
    """The backward pass of a kernel, lowered for CUDA."""
    q, k = (jax.ShapeDtypeStruct((2, 3, length, width), dtype) for length in (queries, keys))
    angles = jnp.zeros((queries, width // 2)) if turned else None

    def total(q, k, v):
        return attention(q, k, v, angles=angles, causal=causal, kernel=kernel).astype(jnp.float32).sum()

    return for_cuda(jax.grad(total, (0, 1, 2)), q, k, k)


SHAPES = [(577, 577, 64, True, False), (1, 577, 128, False, False), (50, 50, 24, True, False), (72, 72, 96, True, True)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_pallas_attention_lowers_to_three_triton_kernels(shape, dtype):
    *sizes, turned, causal = shape
    lowered = gradients("pallas", *sizes, dtype, turned=turned, causal=causal)
    names = sorted(map(name_of, programs(lowered, "triton")))
    assert names == ["attention", "attention_key_gradient", "attention_query_gradient"]


@pytest.mark.parametrize("shape", [(577, 577, 64), (1, 577, 128), (196, 196, 64)])
def test_cudnn_attention_lowers_to_fused_forward_and_backward_at_even_and_odd_lengths(shape, monkeypatch):
    # the version decides which shapes JAX lets through, and stands in a library that is not here
    monkeypatch.setattr("jax._src.cudnn.fused_attention_stablehlo.check_cudnn_version", lambda: 90800)
    assert len(programs(gradients("cudnn", *shape, jnp.bfloat16), "cudnn$fmha")) == 2


@pytest.mark.skipif(
    jax.__version_info__ >= (0, 11), reason="from JAX 0.11 on Pallas lowers for the devices of the step, which are CPUs here"
)
def test_the_whole_training_step_lowers_for_cuda_in_bf16_with_the_pallas_kernel():
    encoder, groups = adapt_with_groups(tiny_encoder(), "dora", AdapterOptions(rank=4, num_tasks=2), nnx.Rngs(0))
    encoder.dtype = jnp.bfloat16
    use_attention(encoder, "pallas")
    model = Classifier(encoder, {"age": 9, "gender": 2}, dropout=0.1, rngs=nnx.Rngs(1))
    parts = take_apart(model, groups, jnp.bfloat16)
    balancer, tasks = get_balancer("uw"), ("age", "gender")
    optimizer = make_optimizer(OptimizerOptions(), parts.groups, 100)
    step = make_step(parts.structure, tasks, balancer, optimizer)
    state = replicate(start_state(parts.trained, parts.statistics, tasks, balancer, optimizer))
    labels = {task: np.zeros((1, 2), np.int32) for task in tasks}
    batch = {"image": np.zeros((1, 2, 16, 16, 3), np.uint8), "labels": labels}
    lowered = for_cuda(lambda *arguments: step(*arguments), state, replicate(parts.frozen), batch)
    calls = programs(lowered, "triton")
    # of the blocks' scan all three; of the pool, whose query is a frozen probe, all but the query's gradient
    assert sorted(map(name_of, calls)) == [
        *["attention"] * 2,
        *["attention_key_gradient"] * 2,
        "attention_query_gradient",
    ]
    assert any("bf16" in str(call.operands[0].type) for call in calls)


COMPILE = """
import sys
import triton
from triton.backends.compiler import GPUTarget
for path in sys.argv[2:]:
    options = {"num_warps": 4, "num_stages": 2}
    compiled = triton.compile(path, target=GPUTarget("cuda", int(sys.argv[1]), 32), options=options)
    print(compiled.metadata.shared, "mma" in compiled.asm["ptx"], len(compiled.asm["cubin"]))
"""


@pytest.mark.skipif(find_spec("triton") is None, reason="Triton, which compiles for a GPU without having one, is not installed")
@pytest.mark.parametrize("shape", [*SHAPES, (50, 50, 192, False, False)])
@pytest.mark.parametrize("architecture", [80, 89, 90])
def test_the_triton_compiler_makes_machine_code_that_fits_the_chip(shape, architecture, tmp_path):
    *sizes, turned, causal = shape
    paths = []
    lowered = gradients("pallas", *sizes, jnp.bfloat16, turned=turned, causal=causal)  # its operations live no longer than it does
    for call in programs(lowered, "triton"):
        paths.append(tmp_path / f"{name_of(call)}.ttir")
        with ir.Context() as context:
            dialect.register_dialect(context)
            context.load_all_available_dialects()
            paths[-1].write_text(str(ir.Module.parse(ir.StringAttr(call.attributes["mhlo.backend_config"]["ir"]).value_bytes)))
    # in a process of its own: Triton's compiler and jaxlib's cannot be loaded together
    command = [sys.executable, "-c", COMPILE, str(architecture), *map(str, paths)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    kernels = [line.split() for line in done.stdout.splitlines()]
    assert len(kernels) == 3
    for shared, has_tensor_cores, size in kernels:
        assert int(shared) <= {80: 163, 89: 99, 90: 227}[architecture] * 1024
        assert has_tensor_cores == "True"
        assert int(size) > 0
