"""The sidecar of a table or figure: a JSON file that says which command made it, from what, where and when."""

from __future__ import annotations

import datetime
import hashlib
import json
import pathlib
import shlex
import sys
from typing import Any

from amortgap._internal.files import write_atomic
from amortgap.sweep.cells import canonical
from amortgap.sweep.manifest import device, git_commit, machine, peak_memory, versions
from amortgap.sweep.table import Schema


def write_sidecar(
    path: str | pathlib.Path,
    *,
    config: Any,
    files: list[pathlib.Path],
    schema: Schema | None = None,
    computed: bool = True,
    devices: list[str] | None = None,
    **facts: Any,
) -> pathlib.Path:
    """Write the sidecar of `files` at `path`, atomically, and return the path.

    Args:
      path: where to write, beside the files.
      config: dataclass with the whole configuration.
      files: what the sidecar vouches for; their names and sha256 are recorded.
      schema: columns of the table, written with their meanings.
      computed: False if this run only drew anew what an earlier one computed; of a sidecar of the same configuration
        only the hashes of the files are then renewed, and command, machine and time stay those of the computation.
      devices: what was computed on, where it was not this process that computed.
      facts: anything else worth keeping, such as seconds or counts; plain data.

    Raises:
      OSError: the file cannot be written, or one of `files` cannot be read.
    """
    path = pathlib.Path(path)
    script = pathlib.Path(sys.argv[0]).resolve()
    # From the folder of experiments on: an absolute path would say where, not what.
    home = next((parent for parent in script.parents if parent.name == "experiments"), script.parent)
    place = script.relative_to(home.parent).as_posix()
    hashes = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
    if not computed and path.exists():
        old = json.loads(path.read_text())
        # A table of other cells, though all of them were kept from before, is not the one that is described there.
        if old["config"] == described(config):
            return write_json(path, old | {"files": hashes})
    document = {
        "command": shlex.join(["python", place, *(flag for flag in sys.argv[1:] if flag != "--promote")]),
        "config": described(config),
        "files": hashes,
        "git_commit": git_commit(),
        "versions": versions(),
        "machine": machine() | {"devices": devices or [device()], "peak_memory_mib": peak_memory()},
        "written": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        **facts,
    }
    if schema is not None:
        document["columns"] = {column.name: column.meaning for column in schema.columns}
    return write_json(path, document)


def described(config: Any) -> dict[str, Any]:
    """The configuration as a sidecar states it: plain JSON data of all fields that can change a result."""
    return {name: value for name, value in canonical(config).items() if name != "_type"}


def write_json(path: pathlib.Path, document: dict[str, Any]) -> pathlib.Path:
    """Write a sidecar that is complete, atomically, and return the path."""
    write_atomic(path, (json.dumps(document, indent=1, allow_nan=False, default=str) + "\n").encode())
    return path
