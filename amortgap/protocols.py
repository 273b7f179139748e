"""What a model, a variational family and an encoder must offer, and the optional parts that buy speed or exactness.

Models, families and encoders are values: records or functions, registered as pytrees where they hold arrays, so that
new weights never retrace. Their methods are pure functions of one datum and one latent; `vmap` maps them outside. All
log densities are in nats. Nothing has to inherit from the classes below: a value has a part if it has its methods.

A part is asked for by `isinstance(value, Part)`, which looks at the names of the methods, or, where a number of
families share the methods and differ in kind, by the functions at the end.
"""

from __future__ import annotations

from typing import Protocol, TypeAlias, runtime_checkable

import jax
from jaxtyping import Array, PyTree

# One datum: an array, or a pytree of arrays. A data set has the same structure and a leading axis N on every array.
Datum: TypeAlias = PyTree
Data: TypeAlias = PyTree


@runtime_checkable
class Model(Protocol):
    """A latent variable model `p(x, z)`: the one thing that every model must offer is its log joint density."""

    @property
    def latent_dim(self) -> int:
        """Dimension d of z."""
        ...

    def log_joint(self, z: Array, x: Datum) -> Array:
        """Return `log p(x, z)` in nats, a scalar, for one latent z [d] and one datum."""
        ...


@runtime_checkable
class Validating(Protocol):
    """A model that can tell data which it cannot have; buys errors that name the rows before anything is compiled."""

    def validate(self, name: str, xs: Data) -> None:
        """Raise ValueError, naming the argument `name`, if the rows of `xs` cannot be data of this model."""
        ...


@runtime_checkable
class Simulating(Protocol):
    """A model that can be sampled; buys calibration, training on simulated data and annealing from the prior."""

    def sample(self, key: jax.Array) -> tuple[Array, Datum]:
        """Return one draw of z [d] and one datum from `p(x, z)`."""
        ...


@runtime_checkable
class HasPrior(Protocol):
    """A model that states its prior; buys defensive importance sampling and the aggregated posterior."""

    def log_prior(self, z: Array) -> Array:
        """Return `log p(z)` in nats."""
        ...


@runtime_checkable
class HasLikelihood(HasPrior, Protocol):
    """A model that states prior and likelihood apart; with `sample` it buys annealing from the prior."""

    def log_likelihood(self, z: Array, x: Datum) -> Array:
        """Return `log p(x | z)` in nats."""
        ...


@runtime_checkable
class HasExactEvidence(Protocol):
    """A model whose log evidence is known in closed form; buys inference gaps without estimation of log p(x)."""

    def log_evidence(self, x: Datum) -> Array:
        """Return `log p(x)` in nats."""
        ...


@runtime_checkable
class HierarchicalModel(Protocol):
    """A model with a global latent theta [K] that all data share and a local latent z [d] for every datum."""

    @property
    def global_dim(self) -> int:
        """Dimension K of theta."""
        ...

    @property
    def latent_dim(self) -> int:
        """Dimension d of z."""
        ...

    def log_prior(self, theta: Array) -> Array:
        """Return `log p(theta)` in nats."""
        ...

    def log_local(self, theta: Array, z: Array, x: Datum) -> Array:
        """Return `log p(x, z | theta)` in nats of one datum."""
        ...


@runtime_checkable
class Family(Protocol):
    """A variational family `q(z; phi)`, phi an unconstrained vector of fixed length."""

    @property
    def latent_dim(self) -> int:
        """Dimension d of z."""
        ...

    @property
    def size(self) -> int:
        """Length of phi."""
        ...

    def standard(self) -> Array:
        """Return the phi [size] of a broad member, such as the standard normal, where optimisers may start."""
        ...

    def sample_and_log_prob(self, key: jax.Array, phi: Array) -> tuple[Array, Array]:
        """Return one draw z [d], differentiable in phi where z is continuous, and its `log q(z; phi)` in nats."""
        ...


@runtime_checkable
class HasDensity(Family, Protocol):
    """A family that states its density at any z; buys sticking the landing, importance sampling and calibration."""

    def log_prob(self, z: Array, phi: Array) -> Array:
        """Return `log q(z; phi)` in nats."""
        ...


@runtime_checkable
class HasEntropy(Family, Protocol):
    """A family with a closed-form entropy; buys the analytic entropy and, with `transform`, cubature and quadrature."""

    def entropy(self, phi: Array) -> Array:
        """Return `-E_q[log q(z; phi)]` in nats."""
        ...


@runtime_checkable
class Reparameterised(HasDensity, Protocol):
    """A family whose draw is a map of standard normal noise; buys antithetic draws and fixed nodes.

    Its `sample_and_log_prob` must be `transform` of one block of noise, and it must have `log_prob`.
    """

    @property
    def noise_dim(self) -> int:
        """Number of standard normals behind one draw."""
        ...

    def transform(self, noise: Array, phi: Array) -> Array:
        """Return the draw z [d] of this noise [noise_dim]."""
        ...


@runtime_checkable
class Enumerable(HasDensity, Protocol):
    """A family with finitely many values; buys an ELBO that is a sum and has no Monte Carlo error."""

    def support(self) -> Array:
        """Return all values of z, one a row."""
        ...

    def probabilities(self, phi: Array) -> Array:
        """Return `q(z; phi)` of all values, in the order of `support()`."""
        ...


@runtime_checkable
class HasMoments(Family, Protocol):
    """A family whose mean and covariance are known; buys scaled annealing and starts for other families."""

    def moments(self, phi: Array) -> tuple[Array, Array]:
        """Return the mean [d] and a lower triangular root of the covariance [d, d]."""
        ...


@runtime_checkable
class Normal(HasMoments, Reparameterised, HasEntropy, Protocol):
    """A normal family that holds every mean and every covariance of its kind; buys local VI by curvature.

    Local VI then ascends by natural gradients (`diagonal`) or Newton steps, with a certificate.
    """

    @property
    def diagonal(self) -> bool:
        """True if the family holds all diagonal covariances and no others, False if it holds all covariances."""
        ...

    def from_moments(self, mean: Array, scale_tril: Array) -> Array:
        """Return the phi of this mean and covariance, the inverse of `moments`."""
        ...


@runtime_checkable
class HasRandomStart(Family, Protocol):
    """A family that draws its own starts, because noise around `standard()` would not; buys starts far apart."""

    def random_start(self, key: jax.Array, spread: float) -> Array:
        """Return a random phi [size] whose means have the standard deviation `spread`."""
        ...


@runtime_checkable
class Head(Protocol):
    """The part of a flow's phi that stays with the datum where data share the weights."""

    @property
    def latent_dim(self) -> int:
        """Dimension d of z."""
        ...

    @property
    def size(self) -> int:
        """Length of the head."""
        ...

    def standard(self) -> Array:
        """Return the head [size] of the standard normal."""
        ...


@runtime_checkable
class HasHead(Family, Protocol):
    """A flow whose phi is a head of the datum followed by weights that data may share; buys `shared_flow` encoders."""

    @property
    def head(self) -> Head:
        """The part of phi before the weights."""
        ...


@runtime_checkable
class Encoder(Protocol):
    """A function from one datum to variational parameters; its weights are the leaves of its pytree."""

    def __call__(self, x: Datum, /) -> Array:
        """Return phi [family.size] of one datum."""
        ...


@runtime_checkable
class CountsWeights(Protocol):
    """A record that knows which of its arrays are trained, such as the encoders and networks of this package."""

    @property
    def num_weights(self) -> int:
        """Number of trained scalars."""
        ...


def is_diagonal(family: object) -> bool:
    """Return whether a family is normal with all diagonal covariances and no others."""
    return isinstance(family, Normal) and bool(family.diagonal)


def has_full_support(family: object) -> bool:
    """Return whether a family says that its density is positive everywhere (`full_support`); False if it does not."""
    return bool(getattr(family, "full_support", False))


def is_log_concave(model: object) -> bool:
    """Return whether a model says that `log p(x, z)` is concave in z (`log_concave`); False if it does not."""
    return bool(getattr(model, "log_concave", False))
