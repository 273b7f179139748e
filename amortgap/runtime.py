"""Settings of the compiler for experiment scripts; a library function never touches them."""

from __future__ import annotations

import os
import sys
from importlib.metadata import version
from pathlib import Path


def prepare_compiler(*, one_core: bool = False, quick_loops: bool = True) -> None:
    """Keep compiled programs between runs and compile them quickly; call it before jax is imported.

    Compiled programs go to `$JAX_COMPILATION_CACHE_DIR`, by default `amortgap/jax` in the user's cache folder. LLVM's
    optimisation level 1 halves the compile time on CPUs, and so does, where there is a choice, the older of two ways to
    emit fused loops; the run time of these programs, which is matrix products and library calls, did not change
    measurably. Settings already in the environment win.

    Args:
      one_core: the script computes on small arrays, one process a core; each matrix product then keeps to one core.
      quick_loops: take the older loops; False in benchmarks, since the code of others may run slower with them (a
        differentiated softplus took three times as long).

    Returns:
      Nothing; environment variables of this process are set.

    Raises:
      RuntimeError: jax has been imported already, so that the settings would have no effect.
    """
    if "jax" in sys.modules:
        raise RuntimeError("prepare_compiler must be called before jax is imported")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "amortgap" / "jax"
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "0")
    flags = {"--xla_backend_optimization_level": "1"}
    if quick_loops and version("jaxlib").startswith("0.10."):
        # Later versions lack the flag, and an unknown one ends the process.
        flags["--xla_cpu_use_fusion_emitters"] = "false"
    if one_core:
        flags["--xla_cpu_multi_thread_eigen"] = "false"
    given = os.environ.get("XLA_FLAGS", "")
    added = [f"{name}={value}" for name, value in flags.items() if name not in given]
    os.environ["XLA_FLAGS"] = " ".join([given, *added]).strip()
