"""Weights survive the disk bit by bit, and everything that is not exactly them is refused."""

import dataclasses
import json
import os
import pathlib
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import amortgap as ag

CONFIG = {"width": 4, "depth": 1}


def make_encoder(seed=0, width=4):
    return ag.encoders.mlp(jax.random.key(seed), 3, ag.families.MeanFieldNormal(2), width=width, depth=1)


@pytest.fixture
def path(tmp_path):
    return ag.weights.save_weights(tmp_path / "encoder.safetensors", make_encoder(), config=CONFIG)


def sidecar_of(path):
    return path.with_name(path.name + ".json")


def edit_sidecar(path, **changes):
    sidecar = json.loads(sidecar_of(path).read_text())
    sidecar_of(path).write_text(json.dumps({**sidecar, **changes}))


def test_round_trip_is_exact_and_the_template_may_be_shapes_alone(path):
    loaded = ag.weights.load_weights(path, jax.eval_shape(lambda: make_encoder(1)), config=CONFIG)
    for have, want in zip(jax.tree.leaves(loaded), jax.tree.leaves(make_encoder()), strict=True):
        np.testing.assert_array_equal(have, want)
        assert have.dtype == want.dtype
    x = jnp.arange(3.0)
    np.testing.assert_array_equal(loaded(x), make_encoder()(x))
    assert not np.array_equal(loaded(x), make_encoder(1)(x))


def test_layouts_dtypes_and_models(tmp_path):
    fortran = np.arange(6.0, dtype=np.float32).reshape(2, 3).T
    tree = {
        "view": fortran,
        "scalar": np.float32(2.5),
        "half": jnp.ones(2, jnp.float16),
        "flags": np.array([True, False]),
        "model": ag.models.FactorAnalysis(loadings=fortran, mean=np.zeros(3), noise_variance=np.ones(3)),
        "layers": [jnp.arange(2), jnp.zeros((0, 3))],
    }
    path = ag.weights.save_weights(tmp_path / "new" / "tree.safetensors", tree, config=None)
    loaded = ag.weights.load_weights(path, tree)
    jax.tree.map(np.testing.assert_array_equal, loaded, tree)
    assert isinstance(loaded["model"], ag.models.FactorAnalysis)
    names = set(json.loads(sidecar_of(path).read_text())["tensors"])
    assert {"view", "model/noise_variance", "layers/0"} <= names


def test_config_may_be_a_dataclass_and_is_compared(path, tmp_path):
    @dataclasses.dataclass
    class Config:
        width: int
        sizes: tuple[int, ...]

    saved = ag.weights.save_weights(tmp_path / "a.safetensors", {"w": jnp.ones(2)}, config=Config(4, (1, 2)))
    ag.weights.load_weights(saved, {"w": jnp.ones(2)}, config={"width": 4, "sizes": [1, 2]})
    with pytest.raises(ValueError, match="another config: width is 4, wanted 5"):
        ag.weights.load_weights(saved, {"w": jnp.ones(2)}, config=Config(5, (1, 2)))
    with pytest.raises(ValueError, match="another config: depth is 1, wanted 'nothing'"):
        ag.weights.load_weights(path, make_encoder(), config={"width": 4})


def cut_in_half(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip_one_bit(path):
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(bytes(data))


def other_weights_under_this_sidecar(path):
    other = ag.weights.save_weights(path.with_name("other.safetensors"), make_encoder(1), config=CONFIG)
    os.replace(other, path)


DAMAGE = [
    (cut_in_half, "damaged.*sha256"),
    (flip_one_bit, "damaged.*sha256"),
    (other_weights_under_this_sidecar, "another sidecar"),
    (lambda path: path.unlink(), "cannot read .*encoder.safetensors"),
    (lambda path: sidecar_of(path).unlink(), "only read with their JSON sidecar"),
    (lambda path: cut_in_half(sidecar_of(path)), "only read with their JSON sidecar"),
    (lambda path: sidecar_of(path).write_text("[]"), "format version None"),
    (lambda path: sidecar_of(path).write_text('{"format_version": 1}'), "lacks config, sha256, tensors"),
    (lambda path: edit_sidecar(path, format_version=2), "format version 2"),
    (lambda path: edit_sidecar(path, tensors={}), "json is damaged"),
]


@pytest.mark.parametrize(("damage", "message"), DAMAGE, ids=range(len(DAMAGE)))
def test_damage_is_refused(path, damage, message):
    damage(path)
    with pytest.raises(ValueError, match=message):
        ag.weights.load_weights(path, make_encoder())


TREES = [
    (lambda: make_encoder(width=5), r"does not fit the template: .*layers/0/bias.* is float32\[4\].*float32\[5\]"),
    (lambda: {"w": jnp.ones(2)}, "lacks weights that the template has: w"),
    (lambda: jax.tree.map(lambda leaf: leaf.astype(jnp.float16), make_encoder()), "template's is float16"),
    (lambda: (make_encoder(), jnp.ones(2)), "lacks weights"),
    (lambda: make_encoder().network.weights, "lacks weights"),
    (lambda: {}, "template holds no arrays"),
    (lambda: {"w": "text"}, "must hold arrays of booleans.* got str in w"),
    (lambda: jax.random.key(0), "must hold arrays of booleans.* got key"),
]


@pytest.mark.parametrize(("template", "message"), TREES, ids=range(len(TREES)))
def test_other_templates_are_refused(path, template, message):
    with pytest.raises(ValueError, match=message):
        ag.weights.load_weights(path, template())


def test_weights_the_template_lacks_are_refused(tmp_path):
    path = ag.weights.save_weights(tmp_path / "a.safetensors", {"v": jnp.ones(1), "w": jnp.ones(2)}, config=None)
    with pytest.raises(ValueError, match="holds weights that the template lacks: v"):
        ag.weights.load_weights(path, {"w": jnp.ones(2)})


UNSAVABLE = [
    ("a.npz", {"w": np.ones(2)}, None, "must name a .safetensors file"),
    ("a.safetensors", {}, None, "tree holds no arrays"),
    ("a.safetensors", {"w": np.array(["text"])}, None, "arrays of booleans.* got <U4 in w"),
    ("a.safetensors", jnp.ones(2, jnp.bfloat16), None, "got bfloat16 in its only leaf"),
    ("a.safetensors", {"a/b": np.ones(1), "a": {"b": np.ones(1)}}, None, "several leaves of one name: a/b"),
    ("a.safetensors", {"w": np.ones(2)}, {"rate": float("nan")}, "config must be"),
    ("a.safetensors", {"w": np.ones(2)}, {"model": object()}, "config must be"),
]


@pytest.mark.parametrize(("name", "tree", "config", "message"), UNSAVABLE, ids=range(len(UNSAVABLE)))
def test_what_cannot_be_saved_is_refused_and_leaves_nothing(tmp_path, name, tree, config, message):
    with pytest.raises(ValueError, match=message):
        ag.weights.save_weights(tmp_path / name, tree, config=config)
    assert list(tmp_path.iterdir()) == []


class Bomb:
    """Unpickling it would touch a file."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return pathlib.Path.touch, (self.target,)


@pytest.mark.parametrize("suffix", [".pkl", ".safetensors"])
def test_a_pickle_is_refused_and_never_executed(tmp_path, path, suffix):
    target, disguised = tmp_path / "executed", path.with_suffix(suffix)
    data = pickle.dumps(Bomb(target))
    disguised.write_bytes(data)
    # The strongest disguise: a sidecar that vouches for the pickle.
    edit_sidecar(path, sha256=ag.weights.hashlib.sha256(data).hexdigest())
    with pytest.raises(ValueError, match=r"no safetensors file|must name a \.safetensors file"):
        ag.weights.load_weights(disguised, make_encoder())
    assert not target.exists()
    pickle.loads(data)
    assert target.exists()  # the bomb was live


def test_a_crash_while_overwriting_leaves_the_old_weights(path, monkeypatch):
    def crash(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", crash)
    with pytest.raises(KeyboardInterrupt):
        ag.weights.save_weights(path, make_encoder(1), config=CONFIG)
    loaded = ag.weights.load_weights(path, make_encoder(2), config=CONFIG)
    x = jnp.arange(3.0)
    np.testing.assert_array_equal(loaded(x), make_encoder()(x))
    assert sorted(file.name for file in path.parent.iterdir()) == ["encoder.safetensors", "encoder.safetensors.json"]


def test_an_unwritable_folder_is_an_error_that_names_it(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match="file"):
        ag.weights.save_weights(tmp_path / "file" / "a.safetensors", {"w": jnp.ones(2)}, config=None)
