"""What a plan says of the model, of each member, and of their files."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from inarch.adapters.asks import asks_of
from inarch.adapters.graft import Draft, installed
from inarch.adapters.inner import Inner
from inarch.adapters.member import Member
from inarch.adapters.memory import parts
from inarch.stack import AdapterSpec, adapter
from inarch.tree import Edit
from inarch.weights import WeightsHeader

if TYPE_CHECKING:
    from inarch.adapters.model import Model


class PlannedFile(msgspec.Struct, frozen=True):
    """A weights file, as it was when the plan was made."""

    path: str
    bytes: int
    sha256: str


class PlannedMember(msgspec.Struct, frozen=True):
    """A member of the stack, in a plan.

    Attributes:
        name, kind, use, scale, options, after, before: as asked for.
        present: whether the model had it before.
        distribution: the package of its plugin.
        version: of that package.
        edits: how many of each kind.
        inputs: names that the model's forward newly asks for.
        asks: what it asks of the model's tasks.
        parameters: how many numbers it brings.
        files: what its weights are read from; none for one that starts untrained.
        adapters: those in the tree it brings, likewise, in canonical order.
    """

    name: str
    kind: str
    use: str
    scale: float
    options: dict[str, Any]
    after: list[str]
    before: list[str]
    present: bool
    distribution: str
    version: str
    edits: dict[str, int]
    inputs: list[str]
    parameters: int
    files: list[PlannedFile]
    asks: dict[str, Any] = {}
    adapters: list[PlannedMember] = []


class PlannedModel(msgspec.Struct, frozen=True):
    """The model a plan is for."""

    family: str
    distribution: str
    version: str
    source: str
    fingerprint: str
    digest: str


def every(members: Iterable[PlannedMember]) -> Iterator[PlannedMember]:
    """Members, each followed by the adapters in the tree that it brings."""
    for member in members:
        yield member
        yield from every(member.adapters)


def planned_model(model: Model) -> PlannedModel:
    entry = installed().models.get(model.family)
    source = "" if model.checkpoint is None else str(model.checkpoint.path)
    return PlannedModel(
        model.family,
        entry.distribution if entry else "",
        entry.version if entry else "",
        source,
        model.fingerprint(),
        model.digest,
    )


def planned(member: Member | Draft) -> PlannedMember:
    spec, entry = member.spec, member.entry
    options = member.adapter.with_whole_paths(spec.options)
    kinds: dict[str, int] = {}
    for edit in member.edits:
        kinds[edit.kind] = kinds.get(edit.kind, 0) + 1
    return PlannedMember(
        member.name,
        member.kind,
        spec.use,
        spec.scale,
        msgspec.json.decode(msgspec.json.encode(options, enc_hook=str)),
        list(spec.after),
        list(spec.before),
        isinstance(member, Member),
        entry.distribution if entry else "",
        entry.version if entry else "",
        dict(sorted(kinds.items())),
        _inputs(member.edits),
        _count(member),
        [] if member.header is None else _files(member.header),
        asks_of(member, installed()),
        [planned(one) for one in _inside(member)],
    )


def _count(member: Member | Draft) -> int:
    """How many numbers a member brings, without what stands in a tree of its own."""
    if isinstance(member, Member):
        every = {id(p): p for module in member.modules.values() for p in module.parameters()}
        return sum(parameter.numel() for parameter in every.values())
    # Until they are filled, equal edges may share their parameters (`Edge.twin`).
    modules = {id(module): module for edit in member.edits for _, module in parts(edit)}
    return sum(p.numel() for module in modules.values() for p in module.parameters())


def _inside(member: Member | Draft) -> list[Member | Draft]:
    """The adapters in the tree that a member brings, in canonical order."""
    inner = member.inner
    if inner is None:
        return []
    held = inner.drafts if isinstance(inner, Inner) else inner.adapters
    by_name: dict[str, Member | Draft] = {one.name: one for one in held}
    return [by_name[name] for name in inner.order.names]


def _inputs(edits: Sequence[Edit]) -> list[str]:
    return sorted({name for edit in edits for name in edit.inputs})


def _files(header: WeightsHeader) -> list[PlannedFile]:
    beside = [header.path.parent / name for name in ("adapter_config.json", "config.json")]
    settings = [path for path in beside if path.is_file()][:1] if header.settings else []
    return [file_of(path) for path in (header.path, *settings)]


def file_of(path: Path) -> PlannedFile:
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return PlannedFile(str(path.resolve()), path.stat().st_size, sha256)


def spec_of(member: PlannedMember) -> AdapterSpec:
    shipped = member.use in installed().weights
    return adapter(
        member.use,
        weights=member.files[0].path if member.files and not shipped else None,
        name=member.name,
        scale=member.scale,
        after=member.after,
        before=member.before,
        adapters=[spec_of(one) for one in member.adapters],
        **member.options,
    )
