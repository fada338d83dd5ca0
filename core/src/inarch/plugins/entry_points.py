"""What pip has installed, asked of importlib.metadata; the one place that does, and lazily."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

GROUPS = ("inarch.models", "inarch.adapters", "inarch.formats", "inarch.hooks")
MANIFESTS = "inarch.manifest"


@dataclass(frozen=True, slots=True)
class Installed:
    """One distribution that has something for inarch.

    Attributes:
        name: as pip lists it.
        version: likewise.
        manifests: values of its `inarch.manifest` entry points, `package:file`.
        objects: for each other group, its entry points by name, `package.module:object`.
    """

    name: str
    version: str
    manifests: tuple[str, ...]
    objects: dict[str, dict[str, str]]


def installed() -> Iterator[Installed]:
    """Every distribution with an `inarch.manifest` entry point, by name, each once."""
    from importlib.metadata import distributions

    seen: dict[str, Installed] = {}
    for distribution in distributions():
        points = [p for p in distribution.entry_points if p.group.startswith("inarch.")]
        manifests = tuple(p.value for p in points if p.group == MANIFESTS)
        name = distribution.metadata["Name"] if points else None
        if name is None or name in seen:
            continue
        objects: dict[str, dict[str, str]] = {group: {} for group in GROUPS}
        for point in points:
            if point.group in objects:
                objects[point.group][point.name] = point.value
        seen[name] = Installed(name, distribution.version, manifests, objects)
    return iter(sorted(seen.values(), key=lambda d: d.name))


def manifest_places(value: str) -> list[Path]:
    """Where the file of `package:file` may be, found without importing the package; in order."""
    package, _, name = value.partition(":")
    try:
        spec = importlib.util.find_spec(package.partition(".")[0])
    except (ImportError, ValueError):
        return []
    folders = (spec.submodule_search_locations or ()) if spec else ()
    return [Path(folder, *package.split(".")[1:], name) for folder in folders]


def manifest_path(value: str) -> Path | None:
    """The file of `package:file`; None where there is none."""
    return next((path for path in manifest_places(value) if path.is_file()), None)


def distribution_file(file: str) -> Path | None:
    """A file by its place in a site-packages folder, wherever on `sys.path` that is."""
    candidates = (Path(entry) / file for entry in sys.path if entry)
    return next((path for path in candidates if path.is_file()), None)
