"""Newton's method on the ELBO of a normal family, with the expected Hessian across all dimensions, one datum at a time.

A frame is d antithetic pairs `z = mean +- L e` with orthogonal noises e. It shows the gradient in every direction, so
the differences within its pairs estimate the whole of `E_q[H]`, H the Hessian of `-log p(x, z)`, from gradients alone.
On a quadratic both the mean gradient and the Hessian of one frame are exact. Frames are the steps of the optimiser for
strongly correlated posteriors and the sample behind the certificate of an optimum.

Sources: Bonnet (1964) and Price (1958) for `E_q[H] = E_q[grad(z) (z - mean)'] S^-1`; Opper and Archambeau, "The
variational Gaussian approximation revisited" (2009), for the fixed point `precision = E_q[H]` (its diagonal in mean
field); Rowland et al., "Orthogonal estimation of Wasserstein distances" (2018), for orthogonal Gaussian noise.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float


class CurvatureSample(NamedTuple):
    """Values and gradients at antithetic pairs with orthogonal noise, in units in which the normal's covariance is one.

    Attributes:
      values: `log p(x, z) + |e|^2 / 2`, mean of each pair, [pairs]; draws of the ELBO but for the constants of q.
      slopes: gradient of `-log p(x, z)`, mean of each pair, whitened by L', [pairs, d].
      differences: half the difference of the two gradients of each pair, whitened, [pairs, d].
      noises: e of each pair, [pairs, d].
      finite: whether the pair was finite, [pairs]; where it was not the entries above are zero.
    """

    values: Float[Array, " pairs"]
    slopes: Float[Array, "pairs d"]
    differences: Float[Array, "pairs d"]
    noises: Float[Array, "pairs d"]
    finite: Bool[Array, " pairs"]


def normal_noise(key: jax.Array, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
    """Return standard normal draws; one flat call compiles five times as fast as one of several axes."""
    return jax.random.normal(key, (math.prod(shape),), dtype).reshape(shape)


def divisor_up_to(count: int, most: int) -> int:
    """Return the largest divisor of `count` up to `most`; in a mapped loop a remainder would be compiled once more."""
    return max(n for n in range(1, min(most, count) + 1) if count % n == 0)


def _orthogonalise(normals: Float[Array, "pairs d"]) -> Float[Array, "pairs d"]:
    """Return the normal vectors made orthogonal in frames of d; each is a standard normal draw as before."""
    d = normals.shape[1]
    frames = normals.reshape(-1, d, d)
    # Length and direction of a normal vector are independent, so a new direction may keep the old length.
    lengths = jnp.sqrt(jnp.sum(frames**2, axis=2, keepdims=True))
    directions = jnp.linalg.qr(jnp.swapaxes(frames, 1, 2))[0]
    return (lengths * jnp.swapaxes(directions, 1, 2)).reshape(normals.shape)


def antithetic_curvature(
    normals: Float[Array, "pairs d"],
    log_joint: Callable[[Array], Array],
    mean: Float[Array, " d"],
    root: Array,
    *,
    pairs_at_once: int = 1,
) -> CurvatureSample:
    """Return values and gradients at frames of d antithetic pairs around `N(mean, root root')`, two gradients a pair.

    Args:
      normals: standard normal draws, d for each frame, before they are made orthogonal.
      log_joint: `log p(x, z)` as a function of z [d].
      mean, root: of the normal; `root` is any square root of its covariance, or the vector of scales of a diagonal one.
      pairs_at_once: pairs evaluated together, at most.
    """
    noises = _orthogonalise(normals)
    diagonal = root.ndim == 1

    def pair(noise: Array) -> tuple[Array, Array, Array]:
        delta = root * noise if diagonal else root @ noise
        points = jnp.stack([mean + delta, mean - delta])
        values, gradients = jax.vmap(jax.value_and_grad(log_joint))(points)
        whitened = -(gradients * root[None, :] if diagonal else gradients @ root)
        value = jnp.mean(values) + 0.5 * jnp.sum(noise**2)
        return value, 0.5 * (whitened[0] + whitened[1]), 0.5 * (whitened[0] - whitened[1])

    together = divisor_up_to(noises.shape[0], pairs_at_once)
    values, slopes, differences = jax.lax.map(pair, noises, batch_size=together)
    finite = jnp.isfinite(values) & jnp.all(jnp.isfinite(slopes), axis=1) & jnp.all(jnp.isfinite(differences), axis=1)
    row = finite[:, None]
    return CurvatureSample(
        jnp.where(finite, values, 0), jnp.where(row, slopes, 0), jnp.where(row, differences, 0), noises, finite
    )


def curvature_change(sample: CurvatureSample, curvature: Float[Array, "d d"]) -> Float[Array, "d d"]:
    """Return the whitened expected Hessian minus the current estimate of it, without noise on a quadratic.

    Formula: `C = (d / K) sum_k (u_k - B e_k) e_k' / |e_k|^2`, then `C + (1 / K) sum_k (u_k - (B + C) e_k) e_k'`, made
    symmetric, with B the current estimate and u_k the difference of pair k. The first term is exact on a quadratic; the
    weights of the second are unbiased off one.
    """
    count = num_finite(sample)
    squares = jnp.sum(sample.noises**2, axis=1, keepdims=True)
    keep = sample.finite[:, None]
    residual = jnp.where(keep, sample.differences - sample.noises @ curvature, 0)
    first = (curvature.shape[0] / count) * (residual / squares).T @ sample.noises
    first = 0.5 * (first + first.T)
    rest = jnp.where(keep, residual - sample.noises @ first, 0)
    second = rest.T @ sample.noises / count
    return first + 0.5 * (second + second.T)


def num_finite(sample: CurvatureSample) -> Float[Array, ""]:
    """Return the number of finite pairs, at least one."""
    return jnp.maximum(jnp.sum(sample.finite), 1).astype(sample.values.dtype)


def log_det(root: Array) -> Float[Array, ""]:
    """Return `1/2 log |covariance|` of the normal with this root."""
    return jnp.sum(jnp.log(jnp.abs(root))) if root.ndim == 1 else jnp.linalg.slogdet(root)[1]


class _Iterate(NamedTuple):
    """A normal with the gradient, curvature and ELBO estimated around it.

    Attributes:
      mean, root: as in `antithetic_curvature`.
      slope: whitened mean gradient, [d].
      curvature: expected Hessian averaged over frames, [d, d]; in the coordinates of z for a diagonal root, whitened
        for a full one.
      value, standard_error: the ELBO but for a constant.
    """

    mean: Array
    root: Array
    slope: Array
    curvature: Array
    value: Array
    standard_error: Array


# A direction without positive curvature is stepped along as if it had this share of the current precision, which is
# also the largest relative fall of the precision in one step.
_FLOOR = 0.25


def _propose(point: _Iterate, scale: Array, rate: Array) -> tuple[Array, Array]:
    """Return mean and root after a Newton step of the mean and the precision moved to the curvature."""
    if point.root.ndim == 1:
        whitened = point.root[:, None] * point.curvature * point.root[None, :]
        values, vectors = jnp.linalg.eigh(whitened)
        # Rounding leaves eigenvalues of about eps times the largest one, of either sign.
        tiny = 4 * jnp.finfo(values.dtype).eps * jnp.max(jnp.abs(values))
        safe = jnp.where(values > tiny, values, jnp.maximum(jnp.abs(values), _FLOOR))
        step = vectors @ ((vectors.T @ point.slope) / safe)
        root = point.root * jnp.maximum(jnp.diag(whitened), _FLOOR) ** (-0.5 * scale)
        return point.mean - scale * rate * point.root * step, root
    values, vectors = jnp.linalg.eigh(point.curvature)
    safe = jnp.maximum(values, _FLOOR)
    step = vectors @ ((vectors.T @ point.slope) / safe)
    return point.mean - scale * rate * (point.root @ step), (point.root @ vectors) * safe[None, :] ** (-0.5 * scale)


def newton(
    key: jax.Array,
    log_joint: Callable[[Array], Array],
    mean: Float[Array, " d"],
    root: Array,
    *,
    num_steps: int | Array,
    num_frames: int,
    burn_in: int | Array | None = None,
    pairs_at_once: int = 1,
) -> tuple[tuple[Float[Array, " d"], Array], tuple[Float[Array, " d"], Array]]:
    """Return mean and covariance root half way and after `num_steps` Newton steps on the ELBO.

    Formula: `mean <- mean - r B^-1 E[g]`, `precision <- B` (full rank) or `diag B` (mean field), B the expected
    Hessian. In the first third of the steps r is one and B is the estimate of the last frames; later r falls as 1 / n
    and B averages over n estimates. A step after which the ELBO is significantly lower is undone and shortened.

    Args:
      key: typed key of the noise.
      log_joint, mean, root, pairs_at_once: as in `antithetic_curvature`; the kind of `root` selects the family.
      num_steps: number of steps, which may be traced.
      num_frames: frames before every step, `2 d` gradients each.
      burn_in: steps before averaging begins, a third by default. If -w, the given covariance counts as w earlier
        estimates, as rough posteriors need, on which a single estimate may be indefinite.
    """
    diagonal = root.ndim == 1
    burn_in = jnp.maximum(num_steps // 3, 2) if burn_in is None else burn_in
    half = (num_steps + 1) // 2

    def share(accepted: Array) -> Array:
        return 1.0 / jnp.maximum(accepted - burn_in + 1, 1).astype(mean.dtype)

    def step(index: Array, carry: tuple) -> tuple:
        held, (mean, root), middle, scale, accepted = carry
        normals = normal_noise(jax.random.fold_in(key, index), (num_frames * mean.size, mean.size), mean.dtype)
        sample = antithetic_curvature(normals, log_joint, mean, root, pairs_at_once=pairs_at_once)
        count = num_finite(sample)
        average = jnp.sum(sample.values) / count
        value = average + log_det(root)
        deviation = jnp.where(sample.finite, sample.values - average, 0)
        error = jnp.sqrt(jnp.sum(deviation**2) / count / jnp.maximum(count - 1, 1))
        if diagonal:
            whitened = root[:, None] * held.curvature * root[None, :]
            curvature = held.curvature + share(accepted) * curvature_change(sample, whitened) / jnp.outer(root, root)
        else:
            whitened = jnp.eye(mean.size, dtype=mean.dtype)
            curvature = whitened + share(accepted) * curvature_change(sample, whitened)
        current = _Iterate(mean, root, jnp.sum(sample.slopes, axis=0) / count, curvature, value, error)
        usable = (2 * count > sample.finite.size) & jnp.isfinite(value) & jnp.all(jnp.isfinite(curvature))
        worse = value < held.value - 3 * jnp.sqrt(error**2 + held.standard_error**2)
        good = usable & ((accepted == 0) | ~worse)
        held = jax.tree.map(lambda new, old: jnp.where(good, new, old), current, held)
        scale = jnp.where(good, jnp.minimum(2 * scale, 1.0), 0.25 * scale)
        accepted = accepted + good
        proposed = _propose(held, scale, share(accepted))
        middle = jax.tree.map(lambda new, old: jnp.where(index < half, new, old), proposed, middle)
        return held, proposed, middle, scale, accepted

    zero = jnp.zeros((), mean.dtype)
    precision = jnp.diag(root**-2) if diagonal else jnp.eye(mean.size, dtype=mean.dtype)
    start = (mean, root)
    held = _Iterate(mean, root, jnp.zeros_like(mean), precision, zero, zero)
    carry = (held, start, start, jnp.ones((), mean.dtype), jnp.asarray(0))
    _, end, middle, _, _ = jax.lax.fori_loop(0, num_steps, step, carry)
    return middle, end
