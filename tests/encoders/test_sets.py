"""An encoder of sets on hierarchical regression, whose every posterior is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import amortgap as ag
from amortgap.models import HierarchicalRegression, group_statistics

KEY = jax.random.key(0)
THETA = jnp.array([0.5, -1.0])
REGRESSION = HierarchicalRegression(dim=2, noise_variance=0.5)


def log_joint(z, x):
    """The regression of one padded group: features in the first columns, the response in the last."""
    rows = x.values * x.mask[:, None]
    statistics = jax.tree.map(lambda leaf: leaf[0], group_statistics(rows[None, :, :2], rows[None, :, 2]))
    return REGRESSION.log_local(THETA, z, statistics._replace(count=jnp.sum(x.mask)))


@pytest.mark.slow
def test_a_deep_set_closes_most_of_the_gap_of_a_constant_on_groups_of_unequal_size():
    rng = np.random.default_rng(0)
    groups = []
    for size in rng.integers(1, 9, 160):
        features, z = rng.normal(size=(size, 2)), np.asarray(THETA) + rng.normal(size=2)
        groups.append(np.column_stack([features, features @ z + np.sqrt(0.5) * rng.normal(size=size)]))
    xs = ag.encoders.pad_groups([group.astype(np.float32) for group in groups])
    model, family = ag.models.from_log_joint(log_joint, latent_dim=2), ag.families.MeanFieldNormal(2)

    def gap(phi, group):
        """Amortization gap in nats, in closed form."""
        features, response = group[:, :2], group[:, 2]
        precision = np.eye(2) + features.T @ features / 0.5
        mean = np.linalg.solve(precision, np.asarray(THETA) + features.T @ response / 0.5)
        away, log_scale = np.asarray(phi[:2], np.float64) - mean, np.asarray(phi[2:], np.float64)
        ratio = np.diag(precision) * np.exp(2 * log_scale)
        return 0.5 * (away @ precision @ away + np.sum(ratio - 1 - np.log(ratio)))

    encoder = ag.encoders.deep_set(KEY, 3, family, width=24, summary=16)
    fit = ag.amortized_vi(KEY, xs, model=model, family=family, encoder=encoder, num_steps=1500, batch_size=160)
    gaps = np.array([gap(fit.encoder(jax.tree.map(lambda leaf, i=i: leaf[i], xs)), groups[i]) for i in range(40)])
    constant = ag.encoders.constant(KEY, 3, family).phi
    of_constant = np.array([gap(constant, group) for group in groups[:40]])
    assert gaps.min() > -1e-6 and gaps.mean() < 0.1 * of_constant.mean()
    # Free of any encoder, the optimum itself is reached on unpadded and padded rows alike.
    group = jax.tree.map(lambda leaf: leaf[0], xs)
    best = ag.local_vi(KEY, group, model=model, family=family, num_samples=2048)
    assert gap(best.phi, groups[0]) < 0.01
