"""One name for every estimate of log p(x)."""

from __future__ import annotations

import inspect
from typing import Any

import jax

from amortgap._internal.checks import check_choice, check_key
from amortgap.evidence.ais import ais
from amortgap.evidence.exact import check_exact, exact
from amortgap.evidence.importance import importance
from amortgap.evidence.quadrature import check_quadrature, quadrature
from amortgap.evidence.records import Evidence

_FUNCTIONS = {"exact": exact, "quadrature": quadrature, "importance": importance, "ais": ais}
METHODS = tuple(_FUNCTIONS)


def check_method(name: str, method: str, model: Any) -> None:
    """Refuse a method that is unknown or that this model cannot serve; "auto" chooses one that it can."""
    check_choice(name, method, ("auto", *METHODS))
    if method == "exact":
        check_exact(model)
    if method == "quadrature":
        check_quadrature(model)


def log_evidence(
    key: jax.Array, x: Any, *, model: Any, method: str = "exact", family: Any = None, phi: Any = None, **settings: Any
) -> Evidence:
    """Return log p(x) of one datum.

    Formula: `log p(x) = log integral p(x, z) dz`, by the model's closed form ("exact"), by adaptive Gauss-Hermite
    quadrature ("quadrature", latent dimension up to 3), by importance sampling ("importance") or by annealed
    importance sampling ("ais"); the last two are lower bounds in expectation.

    Args:
      key: typed key.
      x: one datum.
      model: record with `log_joint(z, x)`, and what the method needs besides.
      method: one of `amortgap.evidence.METHODS`.
      family, phi: an approximate posterior, best the local optimum of the datum; the proposal of "importance", the
        centre of "quadrature", the base of "ais" with `start="q"`.
      settings: keyword arguments of the function of that name in `amortgap.evidence`.

    Returns:
      Evidence, in nats, with its standard error.

    Raises:
      ValueError: an unknown method or setting, or what the method itself refuses.

    Source: that of the method's own function.

    Example:
      >>> import jax, jax.numpy as jnp, amortgap as ag
      >>> model = ag.models.FactorAnalysis(loadings=jnp.ones((2, 1)), mean=jnp.zeros(2), noise_variance=jnp.ones(2))
      >>> found = ag.log_evidence(jax.random.key(0), jnp.array([1.0, 2.0]), model=model)
      >>> print(f"{found.log_evidence:.4f}, {found.method}, bias: {found.bias}")
      -3.3872, exact, bias: none
    """
    check_key(key)
    check_choice("method", method, METHODS)
    function = _FUNCTIONS[method]
    known = [name for name in inspect.signature(function).parameters if name not in ("key", "x", "model")]
    if unknown := [name for name in settings if name not in known]:
        raise ValueError(
            f"method {method!r} does not take {', '.join(unknown)}; it takes {', '.join(known) or 'nothing'}"
        )
    if method == "exact":
        return exact(x, model=model)
    if method == "importance" and (family is None or phi is None):
        raise ValueError("method 'importance' needs a proposal: give family and phi")
    return function(key, x, model=model, family=family, phi=phi, **settings)
