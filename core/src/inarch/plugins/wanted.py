"""What a specification asks for: the plugin that is installed, and the file."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from inarch.errors import InarchError
from inarch.plugins.index import Index
from inarch.plugins.load import locate_weights
from inarch.plugins.manifest import AdapterEntry

if TYPE_CHECKING:
    from inarch.stack import AdapterSpec


def located(spec: AdapterSpec, listed: Index, family: str) -> tuple[AdapterEntry, Path | None]:
    """The plugin's entry and the file, for the id of a plugin or of trained weights.

    Args:
        spec: what is asked for.
        listed: what is installed.
        family: the id of the foundation model; empty where it isn't known.

    Raises:
        InarchError: IA401 for weights of weights, IA406 for an id or plugin that isn't installed,
            IA410 for weights of another model, IA310 for weights whose file is missing.
    """
    path = None if spec.weights is None else Path(spec.weights)
    if spec.use in listed.adapters:
        return listed.adapters[spec.use], path
    entry = listed.weights.get(spec.use)
    if entry is None:
        known = [*listed.adapters, *listed.weights]
        near = difflib.get_close_matches(spec.use, known, 3, 0.5)
        if not near and Path(spec.use).exists():
            raise InarchError(
                "IA406",
                f"`{spec.use}` is a path, and an adapter is named by the plugin that reads it",
                where=spec.where or f"adapter `{spec.name}`",
                why='its weights are told beside: use = "lora", weights = "FILE OR FOLDER"',
                remedy=f'inarch.adapter("lora", weights="{spec.use}"), or the same in a stack file',
            )
        raise InarchError(
            "IA406",
            f"no installed package has an adapter or weights `{spec.use}`",
            where=spec.where or f"adapter `{spec.name}`",
            why=f"installed are: {', '.join(known) or 'none'}",
            remedy=f"did you mean: {', '.join(near)}" if near else f"pip install inarch-{spec.use}",
        )
    if path is not None:
        raise InarchError(
            "IA401",
            f"`{spec.use}` names trained weights, so it takes no weights",
            where=str(path),
            remedy=f'inarch.adapter("{entry.adapter}", weights=...)',
        )
    if family and entry.model != family:
        raise InarchError(
            "IA410",
            f"the weights `{spec.use}` belong to another model",
            where=f"{entry.distribution}: {entry.manifest}",
            why=f"they were trained for {entry.model}; this is {family}",
            remedy=f"inarch adapters --for {family}",
        )
    if entry.adapter not in listed.adapters:
        raise InarchError(
            "IA406",
            f"the weights `{spec.use}` need the adapter `{entry.adapter}`, which is not installed",
            where=f"{entry.distribution}: {entry.manifest}",
            remedy=f"pip install inarch-{entry.adapter}",
        )
    return listed.adapters[entry.adapter], locate_weights(spec.use)


def refuse_base(name: str, path: str, recorded: Mapping[str, str], own: str) -> None:
    """Refuse an adapter's file that records another base than the model's.

    Args:
        name: the adapter's.
        path: its file.
        recorded: the file's own strings.
        own: the model's fingerprint.

    Raises:
        InarchError: IA410.
    """
    told = recorded.get("inarch.base_fingerprint", own)
    if told != own:
        base = recorded.get("inarch.base", "another base")
        raise InarchError(
            "IA410",
            f"adapter `{name}` was trained on another base",
            where=path,
            why=f"it records {base} with fingerprint {told[:24]}..., this model's is {own[:24]}...",
            remedy="load the base it was trained on, or train it on this one",
        )
