"""The check of the certificate as a user runs it, its closed forms, and the committed results."""

import json

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import pytest
from running import ROOT, rows_of, run

import amortgap as ag
from amortgap.sweep import read_csv

RESULTS = ROOT / "results" / "certificate_check"


@pytest.fixture
def check(monkeypatch):
    """Import the script, whose settings of the compiler would come too late here."""
    monkeypatch.setattr("amortgap.runtime.prepare_compiler", lambda **_: None)
    import certificate_check

    return certificate_check


@pytest.mark.slow
def test_the_smoke_preset_writes_table_sidecar_and_figure(tmp_path):
    done = run("certificate_check.py", "--preset", "smoke", "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert len(rows_of(tmp_path / "table.csv")) == 4 * 2 * 2
    sidecar = json.loads((tmp_path / "table.json").read_text())
    assert set(sidecar["files"]) == {"table.csv", "certificate_check.pdf", "certificate_check.png"}
    assert len(sidecar["requirements"]) == 4


@pytest.mark.parametrize("full", [False, True])
def test_loss_on_a_normal_posterior_is_what_the_elbo_lacks(check, full):
    model = check.factor_analysis(0, 3, 20.0)
    eigenvalues = np.linalg.eigvalsh(model.posterior_precision())
    np.testing.assert_allclose(eigenvalues, np.geomspace(1, 20, 3), rtol=1e-4)
    family = ag.families.FullRankNormal(3) if full else ag.families.MeanFieldNormal(3)
    x = model.sample(jax.random.key(1))[1]
    phi = 0.3 * jax.random.normal(jax.random.key(2), (family.size,))
    draws = ag.objectives.elbo_draws(
        jax.random.key(3), phi, x, model=model, family=family, num_samples=400_000, antithetic=True
    )
    best = model.log_evidence(x) - (0 if full else model.approximation_gap())
    loss = check.normal_loss(model, family, phi, x)
    assert loss > 1
    draws = np.asarray(draws, np.float64)
    # Every draw is the mean of an antithetic pair.
    error = np.std(draws) / np.sqrt(draws.size)
    assert error < 0.01 * loss
    np.testing.assert_allclose(loss, best - np.mean(draws), atol=4 * error)


def test_loss_on_counts_is_what_the_elbo_lacks(check):
    model = ag.models.PoissonGamma(shape=jnp.asarray(1.5), rate=jnp.asarray(0.5))
    family, x = ag.families.MeanFieldNormal(1), jnp.array([3.0])
    mean, scale = model.normal_optimum(x)
    best = model.log_evidence(x) - model.approximation_gap(x)
    assert abs(check.count_loss(model, jnp.concatenate([mean, jnp.log(scale)]), x)) < 1e-6
    phi = jnp.concatenate([mean + 0.4, jnp.log(scale) - 0.5])
    value = ag.elbo(jax.random.key(3), phi, x, model=model, family=family, num_samples=100_000, antithetic=True)
    np.testing.assert_allclose(check.count_loss(model, phi, x), best - value, rtol=0.02)


def test_a_certificate_that_is_off_is_missed(check):
    def row(**more):
        return {"model": "m", "true": 0.5, "estimated": 0.5, "standard_error": 0.01, "converged": False, **more}

    name = "share of certificates within their error, m"
    assert check.verdicts([row()])[name]["met"]
    assert not check.verdicts([row(estimated=0.6)])[name]["met"]
    assert not check.verdicts([row(converged=True)])["largest loss of a fit called converged, nats"]["met"]


def test_the_figure_shows_what_the_table_says(check):
    from studies.certificate.figure import certificate_figure

    row = {"model": "m", "steps": 3, "datum": 0, "true": 0.1, "estimated": 0.12, "standard_error": 0.01}
    figure = certificate_figure([row | {"converged": False}, row | {"estimated": None, "converged": False}])
    assert figure.axes[0].get_lines()[0].get_xydata().tolist() == [[0.1, 0.12]]
    plt.close(figure)


def test_committed_certificates_are_calibrated(check):
    rows = read_csv(RESULTS / "table.csv", check.SCHEMA).rows
    found = check.verdicts(rows)
    assert len(found) == 4
    assert {name: item for name, item in found.items() if not item["met"]} == {}
    assert sum(row["converged"] for row in rows) > 50
