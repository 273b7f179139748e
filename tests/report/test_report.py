"""Reports: one file, nothing loaded, everything escaped."""

import dataclasses
import html.parser
import json

import jax.numpy as jnp
import numpy as np
import pytest

import amortgap as ag
from amortgap.diagnosis import Coverage, Diagnosis, Finding, Latents, Measured, TriedRemedy
from amortgap.gaps import Gaps, estimate, generalization
from amortgap.sweep import CellResult, Column, Schema, make_cells, open_store, run_cells

HOSTILE = '<script src="https://elsewhere.example/x.js">alert(1)</script>'


class Reader(html.parser.HTMLParser):
    """Collects tags, and every address that a browser would follow."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.addresses, self.text = [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [value for name, value in attrs if name in ("src", "href", "data", "action", "srcset")]

    def handle_data(self, data):
        self.text += data


def read(path):
    text = path.read_text()
    reader = Reader(text)
    assert not {"script", "iframe", "link", "object", "embed", "form"} & set(reader.tags)
    assert all(address.startswith("data:image/png;base64,") for address in reader.addresses)
    assert "default-src 'none'" in text
    assert "@import" not in text and "url(" not in text
    return reader


def measured(rng, n, lost):
    def gaps():
        local = jnp.asarray(rng.normal(-30, 2, n), jnp.float32)
        loss = jnp.asarray(lost * rng.exponential(1.0, n), jnp.float32)
        small = jnp.full(n, 0.01)
        return Gaps(
            log_evidence=local + 0.2,
            elbo_local=local,
            elbo_amortized=local - loss,
            log_evidence_standard_error=small,
            elbo_local_standard_error=small,
            elbo_amortized_standard_error=small,
            amortization_standard_error=small,
            converged=jnp.asarray(rng.random(n) < 0.9),
            suboptimality=small,
            evidence_method="importance",
            evidence_bias="lower bound",
        )

    phis = np.zeros((n, 4))
    return Measured(np.arange(n), gaps(), rng.random(n), rng.random(n), phis, phis, None, None, phis)


@pytest.fixture
def diagnosis():
    """A record made by hand: drawing must not depend on what was measured."""
    rng = np.random.default_rng(0)
    train, test = measured(rng, 30, 0.5), measured(rng, 25, 1.0)
    jump = estimate(jnp.asarray(rng.normal(1, 0.2, 25), jnp.float32), jnp.full(25, 0.1))
    broken = estimate(jnp.full(25, -jnp.inf), jnp.full(25, 0.1))
    worst = np.argsort(-test.gaps.inference)[:4]
    return Diagnosis(
        findings=(Finding("amortization", f"It loses. {HOSTILE}", "proven"), Finding("evidence", "?", "not resolved")),
        train=train,
        test=test,
        generalization=generalization(train.gaps.amortization, test.gaps.amortization),
        latents=Latents(np.array([0.9, 0.001]), np.array([0.9, 0.4])),
        coverage=Coverage(np.array([0.5, 0.9]), np.array([0.4, 0.8]), np.array([0.02, 0.01])),
        remedies=(
            TriedRemedy(f"refine {HOSTILE}", jump, 0, 1.0, 20, "note"),
            TriedRemedy("exploded", broken, 5, 2.0, 0, "bad"),
            TriedRemedy("best encoder", jump, 0, 0.0, 0, "no encoder gains more", limit=True),
        ),
        skipped=(("wider", HOSTILE),),
        worst=worst,
        worst_inputs=rng.random((4, 64)),
        settings={
            "budget": 60.0,
            "seconds": 50.0,
            "tolerance": 0.1,
            "model": HOSTILE,
            "family": "MeanFieldNormal",
            "encoder": "Encoder",
            "latent_dim": 2,
            "encoder_weights": 10,
            "training_data": 30,
            "held_out_data": 25,
        },
        image_shape=(8, 8),
    )


def test_report_of_a_diagnosis_stands_alone_and_escapes_everything(diagnosis, tmp_path):
    reader = read(diagnosis.to_html(tmp_path / "report.html"))
    assert reader.text.count(HOSTILE) >= 4
    for said in ("Amortization.", "proven", "not resolved", "limit: best encoder", "not tried", "exploded"):
        assert said in reader.text
    # Gaps over data, calibration, remedies, worst images.
    assert reader.tags.count("img") == 4
    index = str(int(diagnosis.test.rows[diagnosis.worst[0]]))
    assert index in reader.text
    assert f"{float(diagnosis.test.gaps.inference[diagnosis.worst[0]]):.2f}" in reader.text
    vectors = dataclasses.replace(diagnosis, image_shape=None, coverage=None, worst_inputs={HOSTILE: np.ones((4, 20))})
    reader = read(vectors.to_html(tmp_path / "vectors.html"))
    assert reader.tags.count("img") == 3 and "1, 1, 1" in reader.text and HOSTILE in reader.text


def test_report_of_a_diagnosis_says_where_it_cannot_be_written(diagnosis, tmp_path):
    with pytest.raises(OSError, match="nowhere"):
        diagnosis.to_html(tmp_path / "nowhere" / "report.html")


@dataclasses.dataclass(frozen=True)
class Config:
    name: str = "x"


SCHEMA = Schema(version=1, columns=(Column("name", str, "its <b>name</b>", key=True), Column("value", float, "nats")))


def compute(config):
    if config.name == HOSTILE:
        raise ValueError(f"no cell is called {HOSTILE}")
    return CellResult(rows=[{"name": config.name, "value": 1.5}])


def test_report_of_a_sweep_stands_alone_and_shows_failures(tmp_path):
    out = tmp_path / "swept"
    store = open_store(out)
    cells = make_cells([Config("a"), Config("b"), Config(HOSTILE)], schema_version=1)
    run_cells(cells, compute, store, schema=SCHEMA)
    rows = "".join(f"{number},{number / 7}\n" for number in range(250))
    (out / "table.csv").write_text(f"name,value\n{rows}")
    sidecar = {"command": HOSTILE, "config": {"a": HOSTILE}, "machine": {"cpu": "EPYC"}, "columns": {"value": "nats"}}
    (out / "table.json").write_text(json.dumps(sidecar))
    path = ag.report.write_sweep(out)
    assert path == out / "report.html"
    reader = read(path)
    assert reader.text.count(HOSTILE) >= 3
    for said in ("failed", "ok", "no cell is called", "The first 200 of 250 rows", "cpu EPYC", "0.142857"):
        assert said in reader.text


def test_report_of_committed_results(tmp_path):
    import pathlib

    folder = pathlib.Path(__file__).parents[2] / "results" / "capacity_sweep"
    reader = read(ag.report.write_sweep(folder, tmp_path / "report.html"))
    assert "experiments/capacity_sweep.py" in reader.text and "img" in reader.tags


def test_report_refuses_what_is_no_sweep(tmp_path):
    with pytest.raises(ValueError, match=r"folder: no such folder: .*missing"):
        ag.report.write_sweep(tmp_path / "missing")
    with pytest.raises(ValueError, match="holds no table, figure or sidecar"):
        ag.report.write_sweep(tmp_path)
    (tmp_path / "table.json").write_text("{")
    with pytest.raises(ValueError, match=r"table.json is no JSON"):
        ag.report.write_sweep(tmp_path)
