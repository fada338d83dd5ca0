"""The index of all manifests, cached, so that no question needs an import or sixty file reads.

Annotations are evaluated as they stand: from text, msgspec would compile each when it first reads.
"""

import functools
import os
import sys
import time
import zlib
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import msgspec

from inarch.errors import InarchError
from inarch.plugins.manifest import (
    SCHEMA,
    AdapterEntry,
    CheckpointEntry,
    CodeEntry,
    Described,
    FormatEntry,
    Manifest,
    ModelEntry,
    WeightsEntry,
    read_manifest,
)

if TYPE_CHECKING:
    from pathlib import Path

    from inarch.plugins import entry_points

_SETTLED = 2_000_000_000
"""Nanoseconds in which a file system may not tell two changes apart: FAT's two seconds."""
_MISSING = -1
_READERS = (__file__, os.path.join(os.path.dirname(__file__), "manifest.py"))
"""What reads manifests; another state of it may read them otherwise."""


class Finding(msgspec.Struct, frozen=True):
    """Something wrong with an installed package; it stops nothing else.

    Attributes:
        code: as in `inarch.codes`.
        distribution: the pip package.
        what: one sentence.
        where: file and line, or entry point.
        remedy: one thing to do.
    """

    code: str
    distribution: str
    what: str
    where: str = ""
    remedy: str = ""

    def _repr_html_(self) -> str | None:
        """How notebooks show it, where a package that draws is installed."""
        from inarch.plugins.hooks import picture

        return picture(self, "fragment")


class Index(msgspec.Struct):
    """All that the installed packages say of themselves, by id."""

    models: dict[str, ModelEntry] = {}
    checkpoints: dict[str, CheckpointEntry] = {}
    adapters: dict[str, AdapterEntry] = {}
    formats: dict[str, FormatEntry] = {}
    weights: dict[str, WeightsEntry] = {}
    codes: dict[str, CodeEntry] = {}
    objects: dict[str, dict[str, tuple[str, str]]] = {}
    findings: list[Finding] = []

    def model_for(self, config: dict[str, Any], where: str = "") -> ModelEntry:
        """The foundation model whose checkpoints have this configuration.

        Raises:
            InarchError: IA306 where no installed one has.
        """
        kind = config.get("model_type")
        wanted = [*(config.get("architectures") or ()), kind]
        for entry in self.models.values():
            if kind in entry.model_types or set(wanted) & set(entry.architectures):
                return entry
        known = sorted({t for entry in self.models.values() for t in entry.model_types})
        named = next((str(name) for name in (kind, *wanted) if name), None)
        raise InarchError(
            "IA306",
            f"no installed foundation model reads `{named}` checkpoints"
            if named
            else "the configuration does not say which model it is of",
            where=where,
            why=f"the installed ones read: {', '.join(known) or 'none'}",
            remedy=f"pip install inarch-{named.replace('_', '-').lower()}"
            if named
            else 'give config.json a "model_type"',
        )


class _Cached(msgspec.Struct):
    schema: int
    files: dict[str, int]
    index: Index


@functools.lru_cache(maxsize=1)
def _cached_index(key: tuple[tuple[str, int], ...]) -> Index:
    path = _cache_file()
    folders = dict(key)
    try:
        with open(path, "rb") as file:
            cached = msgspec.json.decode(file.read(), type=_Cached)
        manifests = {f: m for f, m in cached.files.items() if f not in folders}
        # Two paths may share a name of the cache; the folders it was made of tell them apart.
        if cached.schema == SCHEMA and cached.files == {**folders, **_mtimes(manifests)}:
            return cached.index
    except (OSError, msgspec.MsgspecError, ValueError):
        pass
    index, files = _built()
    times = {**folders, **_mtimes(files)}
    now = time.time_ns()
    if all(abs(now - changed) > _SETTLED for changed in times.values()):
        _store(path, _Cached(SCHEMA, times, index))
    return index


def index() -> Index:
    """The index of what is installed now: from its cache while nothing has been installed since."""
    try:
        here = os.getcwd()
    except OSError:  # removed meanwhile
        here = ""
    folders = [entry or here for entry in sys.path]
    return _cached_index(tuple(_mtimes([*folders, *_READERS]).items()))


def _mtimes(paths: Iterable[str]) -> dict[str, int]:
    """When each path last changed; installing or removing a package changes its folder."""
    times: dict[str, int] = {}
    for path in paths:
        try:
            times[path] = os.stat(path).st_mtime_ns
        except OSError:
            times[path] = _MISSING
    return times


def _cache_file() -> str:
    base = os.environ.get("INARCH_CACHE_DIR")
    home = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    place = zlib.crc32("\n".join([sys.prefix, *sys.path]).encode())
    return os.path.join(base or os.path.join(home, "inarch"), f"index-{place:08x}.json")


def _store(path: str, cached: _Cached) -> None:
    """Write the cache whole or not at all; a cache that can't be written costs time, no more."""
    import tempfile

    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        handle, name = tempfile.mkstemp(dir=os.path.dirname(path))
        with os.fdopen(handle, "wb") as file:
            file.write(msgspec.json.encode(cached))
        os.replace(name, path)
    except OSError:
        pass


def _built() -> tuple[Index, list[str]]:
    """Read every manifest there is; what is wrong with one becomes a finding."""
    from inarch.plugins import entry_points

    index = Index(objects={group: {} for group in entry_points.GROUPS})
    files: list[str] = []
    for distribution in entry_points.installed():
        for group, objects in distribution.objects.items():
            for name, value in objects.items():
                index.objects[group].setdefault(name, (value, distribution.name))
        for value in distribution.manifests:
            places = entry_points.manifest_places(value)
            files += map(str, places)  # one that is missing may yet come
            path = next((place for place in places if place.is_file()), None)
            if path is None:
                what = f"its manifest `{value}` is not where its entry point says"
                index.findings.append(Finding("IA304", distribution.name, what, value))
                continue
            try:
                manifest = read_manifest(path)
            except InarchError as error:
                what = f"{error.what}: {error.why}" if error.why else error.what
                finding = Finding(error.code, distribution.name, what, error.where, error.remedy)
                index.findings.append(finding)
                continue
            index.findings += _take(index, manifest, path, distribution)
    return index, files


def _take(
    index: Index, manifest: Manifest, path: "Path", distribution: "entry_points.Installed"
) -> Iterator[Finding]:
    """Put a manifest's entries into the index; of two with one id the first by name stays."""
    tables: list[tuple[dict[str, Any], list[Any], str]] = [
        (index.models, manifest.model, "inarch.models"),
        (index.checkpoints, manifest.checkpoint, ""),
        (index.adapters, manifest.adapter, "inarch.adapters"),
        (index.formats, manifest.format, "inarch.formats"),
        (index.weights, manifest.weights, ""),
        (index.codes, manifest.code, ""),
    ]
    for table, entries, group in tables:
        ids = {entry.id for entry in entries}
        for entry in entries:
            if not isinstance(entry, Described) or entry.id in table:
                other = table[entry.id].distribution
                what = f"its id `{entry.id}` is taken by {other}, which is used"
                remedy = f"pip uninstall {distribution.name}"
                yield Finding("IA305", distribution.name, what, str(path), remedy)
                continue
            entry.manifest = str(path)
            entry.distribution = distribution.name
            entry.version = distribution.version
            table[entry.id] = entry
        if group:
            points = set(distribution.objects[group])
            for name in sorted(ids ^ points):
                side = "entry point" if name in ids else "manifest entry"
                what = f"`{name}` has no {side} in `{group}`"
                yield Finding("IA307", distribution.name, what, str(path), "inarch validate")
