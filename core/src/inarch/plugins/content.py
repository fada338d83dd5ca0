"""What an installed distribution is: a hash of its content, whoever installed it.

The hash of a wheel's files as they lie in site-packages. What installers write beside them (RECORD,
INSTALLER, direct_url.json, REQUESTED, uv's cache notes), compiled files and the scripts they
generate is left out, so that pip and uv give one hash for one wheel. Of an editable installation
the files of its packages count, and its metadata.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from importlib.metadata import Distribution

_INSTALLERS = {
    "RECORD",
    "RECORD.jws",
    "RECORD.p7s",
    "INSTALLER",
    "direct_url.json",
    "REQUESTED",
    "uv_cache.json",
    "uv_build.json",
}


class Content(msgspec.Struct, frozen=True):
    """A distribution as it is installed.

    Attributes:
        name: as pip lists it.
        version: likewise.
        sha256: of its files' names and contents.
        editable: whether it is read from where it is written.
    """

    name: str
    version: str
    sha256: str
    editable: bool = False


def content(name: str) -> Content | None:
    """The content of an installed distribution; None where it isn't installed."""
    from importlib.metadata import PackageNotFoundError, distribution

    try:
        found = distribution(name)
    except PackageNotFoundError:
        return None
    editable = _editable(found)
    files = dict(_sources(found) if editable else _files(found))
    whole = hashlib.sha256()
    for place in sorted(files):
        whole.update(place.encode() + b" " + _digest(files[place]) + b"\n")
    return Content(found.metadata["Name"], found.version, whole.hexdigest(), editable)


def _editable(found: Distribution) -> bool:
    text = found.read_text("direct_url.json")
    if text:
        try:
            return bool(json.loads(text).get("dir_info", {}).get("editable"))
        except (ValueError, AttributeError):
            return False
    return any(str(file).endswith(".pth") for file in found.files or ())


def _files(found: Distribution) -> Iterator[tuple[str, Path]]:
    for file in found.files or ():
        place = PurePosixPath(str(file))
        own = place.parts[0].endswith(".dist-info") and place.name in _INSTALLERS
        if not own and ".." not in place.parts and not _compiled(place):
            yield str(place), Path(str(file.locate()))


def _sources(found: Distribution) -> Iterator[tuple[str, Path]]:
    """The files of the packages that an editable distribution's entry points name."""
    for name, path in _files(found):
        if ".dist-info/" in name:
            yield name, path
    for package in sorted({p.value.split(":")[0].split(".")[0] for p in found.entry_points}):
        spec = importlib.util.find_spec(package)
        for folder in (spec.submodule_search_locations or ()) if spec else ():
            for path in Path(folder).rglob("*"):
                place = PurePosixPath(package, path.relative_to(folder).as_posix())
                if path.is_file() and not _compiled(place):
                    yield str(place), path


def _compiled(place: PurePosixPath) -> bool:
    return place.suffix in (".pyc", ".pyo") or "__pycache__" in place.parts


def _digest(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").digest()
    except OSError:
        return b"missing"
