"""What all tests share: programs compiled in a hurry, and kept in one folder, so that none is compiled twice by any process."""

import os
import shutil
import tempfile

import pytest


def pytest_configure(config):
    config.compiled_programs = tempfile.mkdtemp(prefix="jaxface-compiled-")
    fast = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {fast}".strip()
    os.environ["GLIBC_TUNABLES"] = "glibc.malloc.hugetlb=0"  # starting a command twice costs a short one more than large pages save
    os.environ["JAX_COMPILATION_CACHE_DIR"] = config.compiled_programs  # read when jax is imported, which no test has done yet
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"


def pytest_unconfigure(config):
    shutil.rmtree(config.compiled_programs, ignore_errors=True)


@pytest.fixture(scope="session")
def trained_run(tmp_path_factory):
    """A run folder with a model, as training leaves it. Read only."""
    from trained_run import write_trained_run  # JAX must not be imported before `pytest_configure`

    return write_trained_run(tmp_path_factory.mktemp("trained"))
