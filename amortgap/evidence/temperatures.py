"""Temperatures of annealed importance sampling: 0 = beta_0 < ... < beta_{T-1} = 1."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from amortgap._internal.checks import check_count, is_concrete

# Explicit temperatures as a caller may give them.
Temperatures: TypeAlias = Array | np.ndarray | Sequence[float]

SCHEDULES = ("linear", "sigmoid", "adaptive")


def linear_temperatures(num_temperatures: int) -> Float[Array, " T"]:
    """Return equally spaced temperatures.

    Formula: `beta_t = t / (T - 1)`, t = 0..T - 1.

    Args:
      num_temperatures: T, at least two.

    Returns:
      Temperatures from 0 to 1, [T].

    Raises:
      ValueError: fewer than two temperatures.
    """
    check_count("num_temperatures", num_temperatures, minimum=2)
    return jnp.linspace(0.0, 1.0, num_temperatures)


def sigmoid_temperatures(num_temperatures: int, *, steepness: float = 4.0) -> Float[Array, " T"]:
    """Return temperatures that crowd towards both ends.

    Formula: `s_t = sigmoid(delta (2 t / (T - 1) - 1))`, `beta_t = (s_t - s_0) / (s_{T-1} - s_0)`.

    Args:
      num_temperatures: T, at least two.
      steepness: delta; the larger, the closer to the ends.

    Returns:
      Temperatures from 0 to 1, [T].

    Raises:
      ValueError: fewer than two temperatures.

    Source: Wu, Burda, Salakhutdinov and Grosse (2017), section 6, with delta = 4.
    """
    check_count("num_temperatures", num_temperatures, minimum=2)
    raw = 1 / (1 + np.exp(-steepness * np.linspace(-1.0, 1.0, num_temperatures)))
    return jnp.asarray((raw - raw[0]) / (raw[-1] - raw[0]), jnp.zeros(()).dtype)


def check_temperatures(temperatures: Temperatures) -> Float[Array, " T"]:
    """Return temperatures as an array, refusing fewer than two, and values that do not increase from 0 to 1."""
    shape = np.shape(temperatures)
    if len(shape) != 1 or shape[0] < 2:
        raise ValueError(f"temperatures must be at least two numbers in one row, got shape {shape}")
    # Inside `jit` an array made from a list is traced, but the list itself is not.
    if is_concrete(temperatures):
        host = np.asarray(temperatures)
        if host[0] != 0 or host[-1] != 1 or not np.all(np.diff(host) > 0):
            raise ValueError(
                f"temperatures must increase strictly from 0 to 1, got {np.array2string(host, threshold=8)}"
            )
    return jnp.asarray(temperatures, jnp.zeros(()).dtype)


def constant_ess_temperatures(
    temperatures: Float[Array, " T"], log_ratios: Float[Array, "T chains"]
) -> Float[Array, " T"]:
    """Return as many temperatures, spaced so that every step has the same conditional effective sample size.

    Formula: a step from beta to beta + h has `CESS / N = E[w]^2 / E[w^2] = 1 - h^2 Var_beta(l) + O(h^3)` with
    `w = exp(h l)`, l the log ratio of target and base. Equal CESS is equal `h sd_beta(l)`: the new temperatures are
    equally spaced in `integral_0^beta sd_b(l) db`, taken from a pilot run by the trapezoidal rule.

    Args:
      temperatures: of the pilot run.
      log_ratios: l of its chains at every temperature.

    Source: Zhou, Johansen and Aston, "Toward automatic model comparison" (2016), section 3.3, for the criterion.
    """
    spread = jnp.std(log_ratios, axis=1, ddof=1)
    # A few chains make the spread noisy; the path it describes is smooth.
    width = max(temperatures.shape[0] // 20, 1)
    padded = jnp.pad(spread, width, mode="edge")
    spread = jnp.convolve(padded, jnp.ones(2 * width + 1) / (2 * width + 1), mode="valid")
    spread = jnp.where(jnp.isfinite(spread), spread, 0.0) + 1e-6
    steps = 0.5 * (spread[1:] + spread[:-1]) * jnp.diff(temperatures)
    length = jnp.concatenate([jnp.zeros(1, steps.dtype), jnp.cumsum(steps)])
    even = jnp.linspace(0.0, 1.0, temperatures.shape[0], dtype=length.dtype) * length[-1]
    new = jnp.interp(even, length, temperatures)
    return new.at[0].set(0.0).at[-1].set(1.0)


def named_temperatures(schedule: str, num_temperatures: int) -> jax.Array:
    """Return the temperatures of a named schedule; for "adaptive" those of its pilot run, sigmoid ones."""
    return linear_temperatures(num_temperatures) if schedule == "linear" else sigmoid_temperatures(num_temperatures)
