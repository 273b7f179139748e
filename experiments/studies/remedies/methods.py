"""The remedies: for each its family, its encoder and how it is trained within a budget of decoder evaluations."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax

import amortgap as ag
from amortgap import inference
from studies.remedies.study import Study

# Steps at test time of remedies that take some, and settings of those steps: natural gradients on two pairs of draws.
REFINE: dict[str, Any] = {"learning_rate": 0.3, "num_samples": 4, "optimizer": "natural"}
INNER = 3


@dataclasses.dataclass(frozen=True)
class Problem:
    """What a remedy is applied to."""

    model: Any
    xs: Any
    study: Study

    @property
    def in_dim(self) -> int:
        """Length of one datum."""
        return self.xs.shape[1]

    @property
    def mean_field(self) -> Any:
        """The family of the baseline."""
        return ag.families.MeanFieldNormal(self.study.latent_dim)


@dataclasses.dataclass(frozen=True)
class Trained:
    """What a remedy gives: an encoder of a family, and what it cost."""

    encoder: Any
    family: Any
    parameters: int
    training_evaluations: int
    finite: bool


@dataclasses.dataclass(frozen=True)
class Remedy:
    """A remedy: its kind, its training (`like`: that of another), and the steps at test time it is measured at."""

    kind: str
    train: Callable[[jax.Array, Problem], Trained]
    steps: tuple[int, ...] = (0,)
    like: str = ""


def _keys(key: jax.Array) -> tuple[jax.Array, jax.Array]:
    key_weights, key_train = jax.random.split(key)
    return key_weights, key_train


def _by(problem: Problem, evaluations: int, factor: float = 1.0) -> dict[str, Any]:
    """Return Adam's settings for `evaluations` of the decoder per datum and step, within the budget."""
    study = problem.study
    steps = max(10, int(factor * study.training_evaluations) // (evaluations * study.batch_size))
    return {"num_steps": steps, "batch_size": study.batch_size, "learning_rate": study.learning_rate}


def _trained(fit: Any, family: Any, settings: dict[str, Any], evaluations: int, parameters: int) -> Trained:
    spent = settings["num_steps"] * settings["batch_size"] * evaluations
    return Trained(fit.encoder, family, parameters, spent, bool(fit.finite))


def plain(
    make: Callable[[jax.Array, int, Any, Study], Any],
    family_of: Callable[[int], Any] = ag.families.MeanFieldNormal,
    *,
    factor: float = 1.0,
) -> Callable[[jax.Array, Problem], Trained]:
    """Return the training of an encoder on its ELBO, one draw a step."""

    def train(key: jax.Array, problem: Problem) -> Trained:
        key_weights, key_train = _keys(key)
        family = family_of(problem.study.latent_dim)
        encoder = make(key_weights, problem.in_dim, family, problem.study)
        settings = _by(problem, 1, factor)
        objective = inference.elbo_objective(model=problem.model, family=family)
        fit = inference.train_encoder(
            key_train, problem.xs, encoder=encoder, objective=objective, model=problem.model, **settings
        )
        return _trained(fit, family, settings, 1, encoder.num_weights)

    return train


def by_objective(
    objective_of: Callable[..., Any], evaluations: int, *, wrap: Callable[[Any], Any] = lambda encoder: encoder
) -> Callable[[jax.Array, Problem], Trained]:
    """Return the training of the baseline's encoder on another objective."""

    def train(key: jax.Array, problem: Problem) -> Trained:
        key_weights, key_train = _keys(key)
        family = problem.mean_field
        encoder = wrap(_mlp(key_weights, problem.in_dim, family, problem.study))
        settings = _by(problem, evaluations)
        objective = objective_of(model=problem.model, family=family)
        fit = inference.train_encoder(
            key_train, problem.xs, encoder=encoder, objective=objective, model=problem.model, **settings
        )
        return _trained(fit, family, settings, evaluations, encoder.num_weights)

    return train


def _mlp(key: jax.Array, in_dim: int, family: Any, study: Study) -> Any:
    return ag.encoders.mlp(key, in_dim, family, width=study.width, depth=1)


def _wider(factor: int) -> Callable[[jax.Array, int, Any, Study], Any]:
    return lambda key, in_dim, family, study: ag.encoders.mlp(key, in_dim, family, width=factor * study.width, depth=1)


def _residual(key: jax.Array, in_dim: int, family: Any, study: Study) -> Any:
    return ag.encoders.mlp(key, in_dim, family, width=4 * study.width, depth=3, residual=True)


def _conv(key: jax.Array, in_dim: int, family: Any, study: Study) -> Any:
    side = round(in_dim**0.5)
    return ag.encoders.conv(key, (side, side, 1), family, channels=(16, 32))


def _adaptive(key: jax.Array, in_dim: int, family: Any, study: Study) -> Any:
    return ag.encoders.instance_adaptive(key, in_dim, family, width=2 * study.width, depth=1, hyper_width=study.width)


def _random(key: jax.Array, in_dim: int, family: Any, study: Study) -> Any:
    return ag.encoders.random_features(key, in_dim, family, num_features=16 * study.width)


def _shared(key: jax.Array, in_dim: int, family: Any, study: Study) -> Any:
    return ag.encoders.shared_flow(_mlp(key, in_dim, family.head, study), family)


def _semi_amortized(key: jax.Array, problem: Problem) -> Trained:
    key_weights, key_train = _keys(key)
    # Half of the budget goes to plain training: all of it would buy a few dozen steps of this.
    first = plain(_mlp, factor=0.5)(key_weights, problem)
    # Refined twice, once to see that all steps are finite, and three bounds after.
    evaluations = 2 * INNER * REFINE["num_samples"] + 3
    settings = _by(problem, evaluations, 0.5)
    settings["learning_rate"] = 0.3 * problem.study.learning_rate
    fit = inference.semi_amortized_vi(
        key_train,
        problem.xs,
        model=problem.model,
        family=problem.mean_field,
        encoder=first.encoder,
        refine_steps=INNER,
        refine_rate=REFINE["learning_rate"],
        refine_samples=REFINE["num_samples"],
        refine_optimizer=REFINE["optimizer"],
        **settings,
    )
    found = _trained(fit, problem.mean_field, settings, evaluations, first.parameters)
    return dataclasses.replace(found, training_evaluations=found.training_evaluations + first.training_evaluations)


ITERATIONS = 5


def _iterative(key: jax.Array, problem: Problem) -> Trained:
    evaluations = ITERATIONS * (2 + 1)
    settings = _by(problem, evaluations)
    fit = inference.iterative_amortized_vi(
        key,
        problem.xs,
        model=problem.model,
        family=problem.mean_field,
        num_iterations=ITERATIONS,
        width=2 * problem.study.width,
        gradient_samples=2,
        **settings,
    )
    return _trained(fit, problem.mean_field, settings, evaluations, fit.encoder.num_weights)


def _recursive(key: jax.Array, problem: Problem) -> Trained:
    study, components, draws = problem.study, 2, 2
    settings = _by(problem, components * draws)
    key_weights, key_train = _keys(key)
    head = ag.families.FlowHead(study.latent_dim, 2 * study.latent_dim + 1)
    encoders = [_mlp(each, problem.in_dim, head, study) for each in jax.random.split(key_weights, components)]
    fit = inference.recursive_mixture(
        key_train, problem.xs, model=problem.model, encoders=encoders, num_samples=draws, **settings
    )
    family = ag.families.MixtureOfNormals(study.latent_dim, components)
    return _trained(fit, family, settings, components * draws, fit.encoder.num_weights)


def _iwae(**fixed: Any) -> Any:
    return inference.iwae_objective(num_samples=8, **fixed)


def _denoising(**fixed: Any) -> Any:
    return inference.denoising_objective(noise_scale=0.3, **fixed)


def _weight_norm(encoder: Any) -> Any:
    return ag.encoders.WeightNormEncoder(encoder, 2.0)


F = ag.families
REMEDIES: dict[str, Remedy] = {
    "baseline": Remedy("baseline", plain(_mlp)),
    "longer training": Remedy("objective", plain(_mlp, factor=4.0)),
    "width x 2": Remedy("encoder", plain(_wider(2))),
    "width x 4": Remedy("encoder", plain(_wider(4))),
    "wide": Remedy("encoder", plain(_wider(8))),
    "residual": Remedy("encoder", plain(_residual)),
    "convolutional": Remedy("encoder", plain(_conv)),
    "instance adaptive": Remedy("encoder", plain(_adaptive)),
    "random features": Remedy("encoder", plain(_random)),
    "low rank": Remedy("family", plain(_mlp, lambda d: F.LowRankNormal(d, min(2, d)))),
    "full rank": Remedy("family", plain(_mlp, F.FullRankNormal)),
    "mixture": Remedy("family", plain(_mlp, lambda d: F.MixtureOfNormals(d, 3))),
    "coupling flow": Remedy("family", plain(_shared, lambda d: F.CouplingFlow(d, 2, 16, 4))),
    "autoregressive flow": Remedy("family", plain(_shared, lambda d: F.AutoregressiveFlow(d, 2, 16, 4))),
    "auxiliary flow": Remedy("family", plain(_shared, lambda d: F.AuxiliaryFlow(d, 2, 2, 16, 4))),
    "recursive mixture": Remedy("method", _recursive),
    "IWAE": Remedy("objective", by_objective(_iwae, 8)),
    "sleep": Remedy("objective", by_objective(inference.sleep_objective, 1)),
    "reverse half-asleep": Remedy("objective", by_objective(inference.reverse_half_asleep_objective, 3)),
    "denoising": Remedy("objective", by_objective(_denoising, 1)),
    "weight norm": Remedy("objective", by_objective(inference.elbo_objective, 1, wrap=_weight_norm)),
    "refine": Remedy("method", plain(_mlp), (1, 2, INNER, 5, 10, 20), like="baseline"),
    "semi-amortized": Remedy("method", _semi_amortized, (INNER,)),
    "iterative": Remedy("method", _iterative, (ITERATIONS,)),
    "buffered bound": Remedy("bound", plain(_mlp), (10,), like="baseline"),
    "wide + refine": Remedy("method", plain(_wider(8)), (5, 20), like="wide"),
    "residual + refine": Remedy("method", plain(_residual), (5,), like="residual"),
    "residual full rank": Remedy("family", plain(_residual, F.FullRankNormal)),
    "local VI": Remedy("limit", plain(_mlp), like="baseline"),
}
