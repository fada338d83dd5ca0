"""Importing what a stack names, and finding the files that manifests name."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from inarch.errors import InarchError
from inarch.plugins.index import index

if TYPE_CHECKING:
    from pathlib import Path


def load_object(group: str, name: str) -> Any:
    """Import the object of an entry point.

    Raises:
        InarchError: IA308 where nothing installed has it, IA309 where importing it fails.
    """
    value, distribution = index().objects.get(group, {}).get(name, ("", ""))
    if not value:
        raise InarchError(
            "IA308",
            f"no installed package has `{name}` in `{group}`",
            remedy="inarch doctor",
        )
    module, _, attribute = value.partition(":")
    try:
        found: Any = importlib.import_module(module)
        for part in filter(None, attribute.split(".")):
            found = getattr(found, part)
    except (Exception, SystemExit) as error:
        raise InarchError(
            "IA309",
            f"the package {distribution} can't be loaded",
            where=f"{group}: {name} = {value}",
            why=f"{type(error).__name__}: {error}",
            remedy=f"pip install --force-reinstall {distribution}",
        ) from error
    return found


def locate_checkpoint(name: str) -> Path:
    """The file of a checkpoint that a manifest names, found without importing its package.

    Raises:
        InarchError: IA308 for an unknown id, IA310 where its package is not installed.
    """
    from inarch.plugins.entry_points import distribution_file

    entry = index().checkpoints.get(name)
    if entry is None:
        raise _unknown("checkpoint", name, list(index().checkpoints))
    path = distribution_file(entry.file)
    if path is None:
        raise InarchError(
            "IA310",
            f"the checkpoint `{name}` is not installed",
            where=entry.file,
            why=f"the package {entry.package} ships it",
            remedy=entry.install,
        )
    return path


def locate_weights(name: str) -> Path:
    """The file or folder of trained weights that a package ships.

    Raises:
        InarchError: IA308 for an unknown id, IA310 where the file is missing.
    """
    from pathlib import Path

    entry = index().weights.get(name)
    if entry is None:
        raise _unknown("weights", name, list(index().weights))
    path = Path(entry.manifest).parent / entry.path
    if not path.exists():
        raise InarchError(
            "IA310",
            f"the weights `{name}` are missing",
            where=str(path),
            why=f"the manifest of {entry.distribution} names them",
            remedy=f"pip install --force-reinstall {entry.distribution}",
        )
    return path


def _unknown(kind: str, name: str, known: list[str]) -> InarchError:
    import difflib

    near = difflib.get_close_matches(name, known, 3, 0.5)
    return InarchError(
        "IA308",
        f"no installed package has a {kind} `{name}`",
        why=f"known are: {', '.join(known) or 'none'}",
        remedy=f"did you mean: {', '.join(near)}" if near else "inarch models",
    )
