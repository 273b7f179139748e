"""The store: whole records or none, damage noticed, folders and names refused in time."""

import dataclasses
import errno
import hashlib
import json
import logging
import os
import pathlib
import subprocess
import tempfile

import numpy as np
import pytest
import safetensors.numpy

from amortgap._internal import files as files_module
from amortgap._internal.files import remove_leftovers, safe_child, write_atomic
from amortgap.sweep import CellResult, DamagedRecord, make_cells, open_store, run_cells
from amortgap.sweep.cells import content_hash


@dataclasses.dataclass(frozen=True)
class Config:
    number: int = 0


ARRAYS = {"elbo": np.arange(5, dtype=np.float32), "nested/index": np.arange(4, dtype=np.int64).reshape(2, 2)}


def compute(config):
    return CellResult([{"number": config.number}], arrays=ARRAYS)


@pytest.fixture
def cells():
    return make_cells([Config(number) for number in range(3)], schema_version=1)


@pytest.fixture
def store(tmp_path, cells):
    """A finished sweep of three cells with arrays."""
    store = open_store(tmp_path / "out")
    assert run_cells(cells, compute, store).exit_status == 0
    return store


def without(document, name):
    return {key: value for key, value in document.items() if key != name}


def checked(document):
    """A record whose checksum fits, whatever it says."""
    document = without(document, "checksum")
    return {**document, "checksum": content_hash(document)}


DAMAGE = {
    "empty": lambda text: "",
    "half": lambda text: text[: len(text) // 2],
    "binary": lambda text: "\x00\x01\x02",
    "another JSON": lambda text: "[1, 2]",
    "null": lambda text: "null",
    "no status": lambda text: json.dumps(checked(without(json.loads(text), "status"))),
    "one field more": lambda text: json.dumps(checked({**json.loads(text), "extra": 1})),
    "one digit": lambda text: text.replace('"number": 1', '"number": 7'),
    "status edited": lambda text: text.replace('"status": "ok"', '"status": "failed"'),
    "another cell": lambda text: json.dumps(checked({**json.loads(text), "config": {"_type": "Config", "number": 9}})),
    "deeply nested": lambda text: "[" * 100_000,
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_a_damaged_record_is_moved_aside_and_computed_again(store, cells, damage, caplog):
    path = store.record_path(cells[1].key)
    good = path.read_text()
    path.write_text(damage(good))
    with caplog.at_level(logging.WARNING, logger="amortgap"):
        summary = run_cells(cells, compute, store)
    assert (summary.computed, summary.skipped) == (1, 2)
    assert "is damaged" in caplog.text and path.name in caplog.text
    assert [aside.read_text() for aside in (store.path / "damaged").iterdir()] == [damage(good)]
    assert json.loads(path.read_text())["rows"] == json.loads(good)["rows"]


def test_a_record_under_the_name_of_another_is_damaged(store, cells):
    store.record_path(cells[0].key).write_bytes(store.record_path(cells[1].key).read_bytes())
    assert store.load(cells[0].key) is None
    assert store.load(cells[1].key) is not None


def test_two_damaged_files_of_one_name_are_both_kept(store, cells):
    for text in ("first", "second"):
        store.record_path(cells[0].key).write_text(text)
        assert store.load(cells[0].key) is None
    assert sorted(path.read_text() for path in (store.path / "damaged").iterdir()) == ["first", "second"]


def test_arrays_come_back_bit_for_bit(store, cells):
    for cell in cells:
        loaded = store.load_arrays(store.load(cell.key))
        assert loaded.keys() == ARRAYS.keys()
        for name, array in ARRAYS.items():
            assert loaded[name].dtype == array.dtype
            np.testing.assert_array_equal(loaded[name], array)


def test_one_flipped_bit_in_arrays_is_refused_and_the_cell_computed_again(store, cells):
    path = store.arrays_path(cells[0].key)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    # safetensors alone would load it: the check is ours.
    assert safetensors.numpy.load(bytes(data)).keys() == ARRAYS.keys()
    with pytest.raises(DamagedRecord, match="sha256"):
        store.load_arrays(store.load(cells[0].key))
    assert run_cells(cells, compute, store).computed == 1
    np.testing.assert_array_equal(store.load_arrays(store.load(cells[0].key))["elbo"], ARRAYS["elbo"])


@pytest.mark.parametrize("damage", ["missing", "cut"])
def test_a_record_whose_arrays_are_not_whole_is_computed_again(store, cells, damage):
    path = store.arrays_path(cells[0].key)
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-3])
    assert run_cells(cells, compute, store).computed == 1
    assert store.load_arrays(store.load(cells[0].key)).keys() == ARRAYS.keys()


@pytest.mark.parametrize("honest_checksum", [True, False])
def test_a_pickle_in_place_of_arrays_is_never_executed(store, cells, tmp_path, honest_checksum):
    marker = tmp_path / "executed"
    bomb = f"cos\nsystem\n(S'touch {marker}'\ntR.".encode()
    path = store.arrays_path(cells[0].key)
    path.write_bytes(bomb.ljust(path.stat().st_size, b"."))
    record = store.load(cells[0].key)
    if honest_checksum:
        sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        record = dataclasses.replace(record, arrays={**record.arrays, "sha256": sha256})
    with pytest.raises(DamagedRecord):
        store.load_arrays(record)
    assert not marker.exists()


def test_object_arrays_are_refused_as_a_failed_cell(tmp_path, cells):
    store = open_store(tmp_path)
    summary = run_cells(cells[:1], lambda config: CellResult(arrays={"a": np.array([object()])}), store)
    assert summary.failed == 1 and not store.arrays_path(cells[0].key).exists()


def test_records_of_another_schema_or_configuration_are_kept_and_not_mixed(store, cells):
    newer = make_cells([cell.config for cell in cells], schema_version=2)
    other = make_cells([Config(7)], schema_version=1)
    assert run_cells(newer, compute, store).computed == 3
    assert run_cells(other, compute, store).computed == 1
    assert run_cells(cells, compute, store).computed == 0
    assert len(store.records()) == 7
    assert [record.hash for record in store.records(newer)] == [cell.key for cell in newer]
    assert {record.schema_version for record in store.records(cells)} == {1}


# --- writing


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "record.json"
    write_atomic(path, b"old")

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"disk full: cannot write 3 bytes to .*record\.json \(\d+ bytes free") as error:
        write_atomic(path, b"new")
    assert error.value.errno == errno.ENOSPC
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_an_interrupt_in_the_middle_of_a_write_leaves_no_file(tmp_path, monkeypatch):
    def interrupted(descriptor):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_atomic(tmp_path / "record.json", b"new")
    assert list(tmp_path.iterdir()) == []


def test_the_file_is_synced_before_it_gets_its_name_and_the_folder_after(tmp_path, monkeypatch):
    events = []
    real_sync, real_replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (events.append(os.readlink(f"/proc/self/fd/{fd}")), real_sync(fd)))
    monkeypatch.setattr(os, "replace", lambda a, b: (events.append("replace"), real_replace(a, b)))
    write_atomic(tmp_path / "record.json", b"new")
    assert events[0].startswith(f"{tmp_path}/.record.json~") and events[1:] == ["replace", str(tmp_path)]


def test_leftovers_of_dead_processes_are_removed_and_of_living_ones_kept(tmp_path):
    host = files_module.socket.gethostname()
    dead = subprocess.Popen(["true"])
    dead.wait()
    mine = tmp_path / f".a.json~{host}~{os.getpid()}~0"
    theirs = tmp_path / ".a.json~another-host~1~0"
    leftover = tmp_path / f".a.json~{host}~{dead.pid}~0"
    for path in (mine, theirs, leftover, tmp_path / "a.json"):
        path.touch()
    remove_leftovers(tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted([mine, theirs, tmp_path / "a.json"])


# --- folders and names


def test_missing_folders_are_made_also_with_spaces_and_letters_of_any_script(tmp_path, cells):
    store = open_store(tmp_path / "my results" / "Größe é 測試")
    assert run_cells(cells, compute, store).computed == 3
    assert len(open_store(tmp_path / "my results" / "Größe é 測試").records()) == 3


def test_a_file_in_place_of_the_folder_is_refused_by_name(tmp_path):
    (tmp_path / "out").write_text("")
    with pytest.raises(ValueError, match=r"out: cannot write to folder .*out: "):
        open_store(tmp_path / "out")


@pytest.fixture
def read_only_folder():
    """A folder this process cannot write, also when the tests run as root."""
    folder = pathlib.Path(tempfile.mkdtemp())
    folder.chmod(0o555)
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    yield folder
    if root:
        os.seteuid(0)
    folder.chmod(0o755)
    folder.rmdir()


def test_a_read_only_folder_is_refused_before_the_first_cell(read_only_folder):
    with pytest.raises(ValueError, match=f"out: cannot write to folder {read_only_folder}: Permission denied"):
        open_store(read_only_folder)
    with pytest.raises(ValueError, match=f"out: cannot write to folder {read_only_folder}/new: Permission denied"):
        open_store(read_only_folder, "new")


@pytest.mark.parametrize("name", ["plain", "with space", "Größe-2", "v1.2_a+b=c"])
def test_a_plain_sweep_name_is_a_folder_below_the_root(tmp_path, name):
    assert open_store(tmp_path, name).path == tmp_path / name


@pytest.mark.parametrize(
    "name",
    ["..", ".", "", "../x", "a/b", "/etc", "a\\b", "x/../..", ".hidden", " x", "x ", "x.", "a\0b", "a\nb", "<b>"],
)
def test_a_sweep_name_cannot_leave_the_root(tmp_path, name):
    with pytest.raises(ValueError, match="cannot be the name of a sweep"):
        safe_child(tmp_path, name)


@pytest.mark.parametrize("key", ["../../etc/passwd", "", "A" * 64, "0" * 63])
def test_a_key_that_is_no_hash_is_refused(store, key):
    with pytest.raises(ValueError, match="is not the hash of a cell"):
        store.record_path(key)
