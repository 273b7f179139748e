"""Files that are whole or absent: atomic writes, damaged files set aside, names that cannot leave their folder."""

from __future__ import annotations

import contextlib
import errno
import itertools
import logging
import os
import pathlib
import re
import shutil
import socket
from collections.abc import Iterator

logger = logging.getLogger(__name__)

_serial = itertools.count()
_TEMPORARY = re.compile(r"^\.(?P<target>.+)~(?P<host>[^~]+)~(?P<pid>\d+)~\d+$")
_NAME = re.compile(r"^\w[\w .+=-]*$")


def write_atomic(path: pathlib.Path, data: bytes) -> None:
    """Write `data` so that `path` holds all of it or is as it was, also after a crash or a power cut.

    A temporary file in the same folder is written, synced, moved over `path`, and the folder is synced.
    Returns nothing; raises OSError naming the file, and the free space if the disk is full, and leaves nothing behind.
    """
    # Host and pid in the name: writers never share a temporary file, and leftovers of a dead process can be told.
    temporary = path.with_name(f".{path.name}~{socket.gethostname()}~{os.getpid()}~{next(_serial)}")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        if disk_full(error):
            raise disk_full_error(error, f"{len(data)} bytes to {path}", path.parent) from error
        raise OSError(error.errno, f"cannot write {path}: {error.strerror}") from error
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _sync_folder(folder: pathlib.Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def disk_full(error: BaseException) -> bool:
    """Whether `error` says that the disk, or the quota on it, is full."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


def disk_full_error(error: OSError, what: str, folder: pathlib.Path) -> OSError:
    """The error as one that says what could not be written and how much space is left in `folder`."""
    try:
        free = f"{shutil.disk_usage(folder).free} bytes free"
    except OSError:
        free = "free space unknown"
    return OSError(error.errno, f"disk full: cannot write {what} ({free} in {folder})")


def move_aside(path: pathlib.Path, folder: pathlib.Path, reason: str) -> None:
    """Move a damaged file into `folder` under a free name and say so; another process may have moved it first."""
    folder.mkdir(exist_ok=True)
    target = next(candidate for n in itertools.count() if not (candidate := folder / f"{path.name}.{n}").exists())
    with contextlib.suppress(FileNotFoundError):
        os.replace(path, target)
        logger.warning("%s is damaged (%s): moved to %s", path, reason, target)


def remove_leftovers(folder: pathlib.Path) -> None:
    """Remove temporary files that processes of this host left behind when they were killed."""
    for path in folder.glob(".*~*"):
        match = _TEMPORARY.match(path.name)
        if match and match["host"] == socket.gethostname() and not _alive(int(match["pid"])):
            path.unlink(missing_ok=True)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


@contextlib.contextmanager
def locked(path: pathlib.Path) -> Iterator[None]:
    """Return a context that holds the lock file `path`; other processes that ask for it wait."""
    # Not on every system, and needed by few.
    import fcntl

    # The kernel lets go of this lock when its process ends, however it ends.
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def make_folder(path: pathlib.Path) -> None:
    """Create folder `path` if needed and prove that it can be written.

    Raises ValueError naming the folder and the reason.
    """
    probe = path / f".probe~{socket.gethostname()}~{os.getpid()}~{next(_serial)}"
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise ValueError(f"out: cannot write to folder {path}: {error.strerror or error}") from error


def safe_child(root: pathlib.Path, name: str) -> pathlib.Path:
    """Folder `name` directly below `root`; ValueError for a name that could lead out of it or hide in it."""
    if not _NAME.match(name) or name != name.strip() or name.endswith("."):
        raise ValueError(
            f"name: {name!r} cannot be the name of a sweep; use letters, digits, spaces and _ . + = - only"
        )
    return root / name
