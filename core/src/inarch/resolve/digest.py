"""The digest of a stack: equal for all ways to write an equivalent one down."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from inarch.errors import InarchError
from inarch.tree import Edit
from inarch.weights import WeightsHeader, open_checkpoint

if TYPE_CHECKING:
    from inarch.adapters.adapter import Adapter
    from inarch.adapters.member import Member


def digest(
    order: Sequence[str], members: Mapping[str, Mapping[str, Any]], merged: Iterable[str] = ()
) -> str:
    """`inarch-stack1:` and a SHA-256 over the members, each as `identity` tells it, in order."""
    text = json.dumps(
        {"members": [[name, members[name]] for name in order], "merged": sorted(merged)},
        sort_keys=True,
        ensure_ascii=False,
        default=str,
    )
    return f"inarch-stack1:{hashlib.sha256(text.encode()).hexdigest()}"


def of_members(names: Sequence[str], members: Iterable[Member]) -> str:
    """The digest of the adapters a model has, `names` being their canonical order."""
    members = tuple(members)
    told = {m.name: identity_of(m) for m in members}
    return digest(names, told, (m.name for m in members if m.merged))


def identity_of(member: Member) -> dict[str, Any]:
    """What a member of a model is: see `identity`."""
    inner = member.inner and member.inner.digest
    told = identity(member.adapter, member.kind, member.edits, member.header, member.scale, inner)
    made = member.content.made
    return told if made is None else {**told, "made": made}


def identity(
    adapter: Adapter,
    kind: str,
    edits: Iterable[Edit],
    header: WeightsHeader | None,
    scale: float,
    inner: str | None = None,
) -> dict[str, Any]:
    """What a member is, as far as what it does goes: plugin, options, scale, file, edits.

    A file counts by the fingerprint of its tensors and by the settings beside it, so where it lies
    and what it is called count for nothing. The values of a fresh adapter's weights don't count.
    `inner` is the digest of the adapters in the tree that it brings, where there are some.
    """
    weights = None if header is None else [header.fingerprint(), header.settings]
    made = sorted([e.address, e.kind, list(e.names), list(e.inputs)] for e in edits)
    told = {
        "kind": kind,
        "options": _options(adapter),
        "scale": scale,
        "weights": weights,
        "edits": made,
    }
    return told if inner is None else {**told, "adapters": inner}


def _options(adapter: Adapter) -> Any:
    """An adapter's options; of a path, what lies there."""
    told = msgspec.to_builtins(adapter.options)
    return told | {name: _at(told[name]) for name in adapter.paths if told.get(name)}


def _at(path: str) -> str:
    try:
        return open_checkpoint(Path(path)).fingerprint()
    except InarchError:  # which is told when it is opened to be used
        return Path(path).name
