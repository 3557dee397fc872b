"""What four devices compute, in a process of its own that has them, against what one computes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

TESTS = Path(__file__).parents[1]

IMPORTS = """
import json, jax, numpy as np, jax.numpy as jnp, jaxface
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from jaxface.devices import unreplicate
from jaxface.models.tree import flatten
from test_step import make, random_batch
from tiny_encoder import tiny_encoder
found = {}
"""

STEPS = """
step, state, frozen = make("lora", dropout=0.1, adapter_dropout=0.3)
state, frozen = unreplicate(state), unreplicate(frozen)
rng = np.random.default_rng(0)  # an update of zero would drop out nothing
drawn = {name: rng.normal(0, 0.1, x.shape).astype(x.dtype) if name.endswith(".kernel.b") else x for name, x in state.trained.items()}
state = state._replace(trained=drawn)
found["losses"] = []
for devices in (1, 4):
    over = NamedSharding(Mesh(jax.devices()[:devices], ("devices",)), P("devices"))
    copies = lambda tree: jax.device_put(jax.tree.map(lambda x: np.stack([x] * devices), tree), over)
    (now, fixed), losses = copies((state, frozen)), []
    for k in range(10):
        batch = jax.tree.map(lambda x: x.reshape(devices, -1, *x.shape[1:]), random_batch(16, seed=k))
        now, metrics = step(now, fixed, batch)
        losses.append(float(metrics["loss"][0]))
    found["losses"].append(losses)
"""

MESH = """
images = np.asarray(jax.random.uniform(jax.random.key(5), (8, 16, 16, 3), minval=-1, maxval=1))
mesh = jax.make_mesh((4,), ("d",))
assert jax.sharding.AxisType.Explicit in mesh.axis_types
arrays, structure = flatten(jaxface.adapt(tiny_encoder(), "dora", rank=2))
arrays = {n: np.asarray(v) + np.asarray(0.1 * np.random.default_rng(0).normal(size=v.shape), v.dtype) for n, v in arrays.items()}
train = {n: v for n, v in arrays.items() if n.endswith((".a", ".b", ".magnitude"))}
loss = lambda t, a, x: jnp.sum(jnp.sin(structure.build(a, t)(x))) / 8
compiled = jax.jit(jax.grad(loss))
gradient = lambda *of: jax.tree.map(np.asarray, compiled(*of))
one = gradient(train, arrays, images)
# the same four sums on one device: what is left is the exchange between devices, not the order of rounding, which moves one
# device's own result by 1e-6 of a tensor and more (against float64: one device 1.0e-6 to 1.5e-6, four 0.8e-6 to 1.2e-6)
pieces = jax.tree.map(lambda *parts: sum(parts), *(gradient(train, arrays, images[i : i + 2]) for i in range(0, 8, 2)))
whole = [{n: jax.device_put(v, NamedSharding(mesh, P())) for n, v in part.items()} for part in (train, arrays)]
split = jax.device_put(images, NamedSharding(mesh, P("d")))
summed = lambda t, a, x: jax.grad(lambda t: jax.lax.psum(loss(t, a, x), "d"))(t)
with jax.set_mesh(mesh):
    all_gradients = [jax.jit(jax.grad(loss))(*whole, split)]
all_gradients.append(jax.jit(jax.shard_map(summed, mesh=mesh, in_specs=(P(), P(), P("d")), out_specs=P()))(*whole, split))
scale, found["gradients"] = max(float(np.abs(v).max()) for v in one.values()), []
for gradients in all_gradients:
    of_one = max(float(np.abs(np.asarray(gradients[n]) - one[n]).max()) for n in one) / scale
    of_pieces = max(float(np.linalg.norm(np.asarray(gradients[n]) - v) / np.linalg.norm(v)) for n, v in pieces.items())
    found["gradients"].append([of_one, of_pieces])
"""


@pytest.fixture(scope="module")
def found():
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=4"
    path = os.pathsep.join(map(str, (TESTS.parent, TESTS, TESTS / "training")))
    env = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONPATH": path}
    code = f"{IMPORTS}{STEPS}{MESH}print(json.dumps(found))"
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


def test_many_devices_compute_what_one_computes(found):
    one, four = found["losses"]
    assert len(one) == 10
    np.testing.assert_allclose(four, one, atol=1e-5)


def test_gradients_under_an_explicit_mesh_and_under_shard_map_are_those_of_one_device(found):
    assert len(found["gradients"]) == 2
    for of_one, of_pieces in found["gradients"]:
        assert of_one < 1e-6  # of the largest value
        assert of_pieces < 5e-7  # of each tensor
