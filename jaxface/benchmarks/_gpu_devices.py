"""Graphics cards as XLA's compiler must know them, so that programs can be compiled for a card that is not there."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from jaxface.errors import UserError
from jaxface.registry import Registry

FLAGS = "--xla_gpu_autotune_level=0 --xla_gpu_enable_triton_gemm=false"
"""Nothing can be timed where the card is missing: products go to cuBLAS as they do where its kernels win."""


@dataclass(frozen=True)
class Device:
    """A card.

    Attributes:
      title: its name.
      capability: CUDA's compute capability, major and minor.
      cores: streaming multiprocessors.
      bandwidth: bytes a second of its memory, on paper.
      memory: bytes.
      l2: bytes of its second cache.
      shared: bytes of shared memory of a core, and those that one block may take.
      clock: GHz.
      flops: a second of products in bf16 with sums in float32, dense, on paper.
      threads: of a core at most.
    """

    title: str
    capability: tuple[int, int]
    cores: int
    bandwidth: float
    memory: int
    l2: int
    shared: tuple[int, int]
    clock: float
    flops: float
    threads: int = 2048

    def description(self) -> str:
        """The text that XLA reads."""
        major, minor = self.capability
        return f"""
gpu_device_info {{
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152 shared_memory_per_core: {self.shared[0]}
  threads_per_core_limit: {self.threads} core_count: {self.cores} fpus_per_core: {64 if self.capability == (8, 0) else 128}
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535 memory_bandwidth: {self.bandwidth:.0f}
  l2_cache_size: {self.l2} clock_rate_ghz: {self.clock} device_memory_size: {self.memory}
  shared_memory_per_block_optin: {self.shared[1]} cuda_compute_capability {{ major: {major} minor: {minor} }}
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 7 }}
runtime_version {{ major: 12 minor: 8 patch: 0 }}
device_description_str: "{self.title}"
"""


HOPPER = (233472, 232448)
DEVICES: Registry[Device] = Registry(
    "device",
    {
        "l40s": Device("NVIDIA L40S", (8, 9), 142, 0.864e12, 47_810_936_832, 100_663_296, (102400, 101376), 2.52, 362e12, 1536),
        "a100": Device("NVIDIA A100-SXM4-80GB", (8, 0), 108, 2.039e12, 85_100_068_864, 41_943_040, (167936, 166912), 1.41, 312e12),
        "h100": Device("NVIDIA H100 80GB HBM3", (9, 0), 132, 3.352e12, 84_929_347_584, 52_428_800, HOPPER, 1.98, 989e12),
        "h200": Device("NVIDIA H200 141GB HBM3e", (9, 0), 132, 4.8e12, 151_397_597_184, 52_428_800, HOPPER, 1.98, 989e12),
        "b200": Device("NVIDIA B200", (10, 0), 148, 7.672e12, 191_514_411_008, 132_644_864, HOPPER, 1.965, 2250e12),
    },
)
"""Cards by name, from their makers' data sheets and XLA's own descriptions. A card of one's own is one entry more."""


@contextmanager
def compiling_for(device: Device) -> Iterator[Any]:
    """A mesh of one card of that kind, present or not. JAX must not have been used before in this process.

    Raises UserError where the CUDA plugin is not installed.
    """
    os.environ |= {"CUDA_VISIBLE_DEVICES": "-1", "JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1"}
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {FLAGS}".strip()
    import jax
    import jax._src.cudnn.fused_attention_stablehlo as fused
    import numpy as np
    from jax.experimental import topologies

    from jaxface.devices import AXIS
    from jaxface.kernels.platform import tracing_for

    try:
        topology = topologies.get_topology_desc(platform="cuda", target_config=device.description(), topology="1x1x1")
    except (RuntimeError, ValueError, NotImplementedError) as error:
        reason = str(error).splitlines()[0][:200]
        raise UserError(f"no compiler for {device.title}: pip install 'jaxface[gpu-compile]' (4 GB; {reason})") from None
    mesh = jax.sharding.Mesh(np.array(topology.devices), (AXIS,))
    asked, fused.check_cudnn_version = fused.check_cudnn_version, lambda: 90800  # ty: ignore[invalid-assignment]  it asks a library that has no card to run on
    try:
        with tracing_for("gpu"):
            yield mesh
    finally:
        fused.check_cudnn_version = asked
