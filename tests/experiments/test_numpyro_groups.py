"""The benchmark of NumPyro groups runs on a few and measures what it says."""

import pytest
from running import rows_of, run


@pytest.mark.slow
def test_benchmark_of_groups_compares_the_same_optimum(tmp_path):
    # Models of NumPyro's users broadcast.
    given = {"JAX_NUMPY_RANK_PROMOTION": "allow"}
    done = run("benchmarks/numpyro_groups.py", "--preset", "smoke", "--out", str(tmp_path), **given)
    assert (tmp_path / "numpyro_groups.json").exists(), done.stderr
    rows = {row["figure"]: float(row["value"]) for row in rows_of(tmp_path / "numpyro_groups.csv")}
    # SVI with ten draws a step ends within its own noise of the optimum, and never above it beyond ours.
    error = rows["standard error of that mean over draws"]
    assert -4 * error - 0.01 < rows["ELBO of fit_local minus SVI, mean"] < 0.2
    assert -4 * error - 0.01 < rows["ELBO of fit_local minus SVI in one plate, mean"] < 0.2
    assert rows["groups certified to 0.01 nats"] == 1
    assert "verdict: " in done.stdout
