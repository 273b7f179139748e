"""Settings of the test session: strict, on the CPU, with one compilation cache shared by all workers."""

import importlib.metadata
import os
import pathlib

# Read when jax is first imported, here and in the subprocesses that tests start.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR",
    str(pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache") / "amortgap" / "jax-tests"),
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "0")
os.environ["JAX_NUMPY_RANK_PROMOTION"] = "raise"
os.environ["MPLBACKEND"] = "Agg"
# As in `amortgap.runtime`: compiling is most of the suite's time, and this nearly halves it where the flag exists.
if importlib.metadata.version("jaxlib").startswith("0.10."):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_use_fusion_emitters=false".strip()
# As in `amortgap/__init__.py`: jax may compute here before the package is imported.
os.environ.setdefault("PJRT_NPROC", "16")

# Two processes that share two cores hand small arrays from core to core and spend most of their time waiting.
if (worker := os.environ.get("PYTEST_XDIST_WORKER")) and hasattr(os, "sched_setaffinity"):
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[int(worker.removeprefix("gw")) % len(cores)]})

import hypothesis
import jax
import jaxtyping
import pytest

assert jax.config.jax_numpy_rank_promotion == "raise", "jax was imported before the settings of the test session"

hypothesis.settings.register_profile("amortgap", deadline=None, derandomize=True, max_examples=25)
hypothesis.settings.load_profile("amortgap")


@pytest.fixture
def x64():
    """Run one test in 64 bits and restore the setting, which would otherwise leak into later tests."""
    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", before)


@pytest.fixture
def key():
    """A typed key."""
    return jax.random.key(0)


@pytest.fixture
def as_users_call():
    """Run one test without the type checker of the test session, whose errors would come before the package's own."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", before)
