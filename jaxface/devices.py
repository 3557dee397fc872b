"""The axis of devices that a step runs over: one copy of the state on each, and each its part of a batch."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

AXIS = "devices"


def mean_over_devices(tree: Any) -> Any:
    """The mean of every leaf over the devices; one device alone is spared the copy that XLA makes of it."""
    return tree if jax.lax.axis_size(AXIS) == 1 else jax.lax.pmean(tree, AXIS)


def replicate(tree: Any) -> Any:
    """Every leaf with a leading axis of local devices, one copy on each."""
    devices = jax.local_devices()
    mesh = jax.sharding.Mesh(devices, (AXIS,))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(AXIS))

    def copy(leaf: Any) -> jax.Array:
        shards = [jax.device_put(np.asarray(leaf)[None], device) for device in devices]
        return jax.make_array_from_single_device_arrays((len(devices), *np.shape(leaf)), sharding, shards)

    return jax.tree.map(copy, tree)


def unreplicate(tree: Any) -> Any:
    """The first local device's copy of every leaf, on the host."""
    return jax.tree.map(lambda leaf: np.asarray(leaf.addressable_data(0))[0, ...], tree)


def shard(batch: Any) -> Any:
    """Splits the leading axis of every array over the local devices: [B, ...] -> [devices, B / devices, ...]."""
    count = jax.local_device_count()
    return jax.tree.map(lambda x: x.reshape(count, x.shape[0] // count, *x.shape[1:]), batch)
