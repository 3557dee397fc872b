"""What all tests share: programs compiled in a hurry, and kept in one folder, so that none is compiled twice by any process.

With `-n` several processes share the files of tests, and the folder, which the first of them makes.
"""

import gc
import importlib.metadata
import importlib.util
import os
import re
import shutil
import sys
import tempfile
from collections import Counter

import pytest

ORIGINALS = re.compile(r"^\s*(import|from) (torch|timm|peft|open_clip|peft_on_timm|jaxface\.originals)\b", re.MULTILINE)
"""Of a file of tests that compares with the PyTorch originals; without torch such files are left out (`make test PYTHON=...`)."""


def pytest_ignore_collect(collection_path, config):
    if importlib.util.find_spec("torch") is not None:
        return None
    is_test = collection_path.name.startswith("test_") and collection_path.suffix == ".py"
    return True if collection_path.name == "parity" or (is_test and ORIGINALS.search(collection_path.read_text())) else None


def pytest_configure(config):
    if not hasattr(config, "workerinput"):
        os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="jaxface-compiled-")  # read when jax is imported, later than here
        os.environ["XLA_FLAGS_BEFORE_TESTS"] = os.environ.get("XLA_FLAGS", "")
    fast = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
    if importlib.metadata.version("jaxlib").startswith("0.10."):  # others may not know the flags, and end over it
        fast += " --xla_cpu_use_fusion_emitters=false"  # compiles three times as fast
        fast += " --xla_cpu_parallel_codegen_split_count=1"  # no threads for pieces of a tiny program
    os.environ["XLA_FLAGS"] = f"{os.environ['XLA_FLAGS_BEFORE_TESTS']} {fast}".strip()
    os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"  # torch's threads would wait for each other in tiny products
    os.environ["GLIBC_TUNABLES"] = "glibc.malloc.hugetlb=0"  # starting a command twice costs a short one more than large pages save
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"


def pytest_unconfigure(config):
    if not hasattr(config, "workerinput"):
        shutil.rmtree(os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)


def pytest_collection_finish(session):
    """The collector comes seldom: what all files import are millions of objects, which it would look through every few seconds."""
    gc.set_threshold(50_000, 20, 50)


COMPILED = "/jax/core/compile/backend_compile_duration"
PROGRAMS = 600
"""Compiled ones, of one to three megabytes each, from which on all are let go at the end of a file."""
_events = Counter()


def pytest_runtest_teardown(item, nextitem):
    """Bounds memory: the programs of the whole suite take gigabytes, and the folder gives back what is asked for again."""
    jax = sys.modules.get("jax")
    if jax is None:
        return
    if not _events:
        jax.monitoring.register_event_duration_secs_listener(lambda event, *_, **__: _events.update([event]))
        _events["listens"] = 1
    if (nextitem is None or nextitem.path != item.path) and _events[COMPILED] > PROGRAMS:
        jax.clear_caches()
        _events[COMPILED] = 0


@pytest.fixture
def strict_dtypes():
    """No dtype is promoted unasked, as a bf16 product would turn into a slow fp32 one: for modules of tests that use this fixture.

    Not for all: Optax divides floats by integers, and attention turns bf16 queries by fp32 angles on purpose.
    """
    import jax

    with jax.numpy_dtype_promotion("strict"):
        yield


@pytest.fixture(scope="session")
def trained_run(tmp_path_factory):
    """A run folder with a model, as training leaves it. Read only."""
    from trained_run import write_trained_run  # JAX must not be imported before `pytest_configure`

    return write_trained_run(tmp_path_factory.mktemp("trained"))


@pytest.fixture(scope="module")
def make_run(tmp_path_factory):
    """Writes a whole run folder of made-up answers: `make_run(folder, tasks=..., **configuration)`."""
    from made_run import write_made_run

    return lambda *args, **options: write_made_run(tmp_path_factory.mktemp("runs"), *args, **options)
