"""The data of Margossian and Blei (2024), drawn again bit by bit, and data that can only be redrawn.

Their generator is the Mersenne Twister. A request for fewer than 16 normals takes 53-bit uniforms a pair at a time and
keeps the second value of each Box-Muller pair; a request for a multiple of 16 single-precision normals takes 24-bit
uniforms in blocks of 16, the first eight of a block for the radius and the last eight for the angle.
"""

from __future__ import annotations

import math

import numpy as np


class Normals:
    """Standard normals in the order of the published notebooks."""

    def __init__(self, seed: int) -> None:
        # The stream of the legacy generator is frozen for ever, which is what regenerating data needs.
        self._bits = np.random.RandomState(seed)
        self._kept: float | None = None

    def _words(self, count: int) -> np.ndarray:
        return np.frombuffer(self._bits.bytes(4 * count), dtype="<u4")

    def one(self) -> float:
        """Return one normal in double precision."""
        if self._kept is not None:
            value, self._kept = self._kept, None
            return value
        words = [int(word) for word in self._words(4)]
        first, second = (((words[i] << 32 | words[i + 1]) & (2**53 - 1)) * 2.0**-53 for i in (0, 2))
        radius = math.sqrt(-2 * math.log1p(-second))
        self._kept = radius * math.sin(2 * math.pi * first)
        return radius * math.cos(2 * math.pi * first)

    def many(self, count: int) -> np.ndarray:
        """Return `count` normals in single precision.

        Raises:
          ValueError: a count that is not a positive multiple of 16.
        """
        if count < 16 or count % 16:
            raise ValueError(f"count must be a positive multiple of 16, got {count}")
        uniforms = ((self._words(count) & (2**24 - 1)).astype(np.float32) * np.float32(2**-24)).reshape(-1, 16)
        radius = np.sqrt(np.float32(-2) * np.log(np.float32(1) - uniforms[:, :8]))
        angle = np.float32(2 * math.pi) * uniforms[:, 8:]
        return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)], axis=1).ravel()


def saw_data() -> np.ndarray:
    """Return the published saw series as pairs (x_{n-1}, x_n), [1000, 2]; its latents never entered the data."""
    normals, series = Normals(2012), [0.0]
    for _ in range(1000):
        normals.one()
        series.append(0.75 * (3.4159 + series[-1]) + normals.one())
    return np.stack([series[:-1], series[1:]], axis=1)


def nonlinear_data() -> np.ndarray:
    """Return the published data of the nonlinear model, [10000, 1]; its latents have five times their prior's scale."""
    normals = Normals(1789)
    theta = np.float32(normals.one())
    z = np.float32(5) * normals.many(10_000)
    noise = normals.many(10_000)
    return (theta + z * (1 + np.sin(z)) + noise * np.exp(np.cos(z))).astype(np.float64)[:, None]


def linear_data(seed: int, num_data: int, tau: float, sigma: float) -> np.ndarray:
    """Return data of the linear model at theta = 0, [N, 1]; the published ones were drawn without a seed."""
    return math.hypot(tau, sigma) * np.random.default_rng(seed).standard_normal((num_data, 1))
