"""The lock of a stack: everything a plan was made of, so that it can be made again, or refused.

Sorted TOML without times. Making a lock needs a plan; checking one runs no plugin and no torch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from inarch.errors import InarchError
from inarch.plugins.content import content
from inarch.plugins.index import index
from inarch.plugins.tomlfile import read_toml
from inarch.stack import AdapterSpec, Stack

if TYPE_CHECKING:
    from inarch.resolve.plan import Plan
    from inarch.resolve.planned import PlannedMember

SCHEMA = 1
_SAMPLES, _WIDTH = 1024, 64


class LockedDistribution(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    name: str
    version: str
    sha256: str
    editable: bool = False


class LockedFile(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A file of weights. `sample` is of a base's, which may be too large to read whole."""

    path: str
    bytes: int
    sha256: str = ""
    sample: str = ""


class LockedAdapter(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A member as it was asked for, its files, and the adapters in the tree it brings."""

    name: str
    kind: str
    use: str
    scale: float
    asked: str
    file: list[LockedFile] = []
    adapter: list[LockedAdapter] = []


class LockedModel(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    family: str = ""
    source: str = ""
    fingerprint: str = ""
    file: list[LockedFile] = []


class Lock(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What `lock` writes.

    Attributes:
        digest: of the stack.
        order: the members, canonically.
        model: the base: its fingerprint, and a sample of each of its files.
        adapter: each member; `asked` is a hash of what the stack file says of it.
        distribution: each package, with its version and a hash of its content.
    """

    schema: int = SCHEMA
    digest: str
    order: list[str] = []
    model: LockedModel
    adapter: list[LockedAdapter] = []
    distribution: list[LockedDistribution] = []

    def text(self) -> str:
        """The lock as TOML, sorted, without a time or a machine's path in it."""
        import tomli_w

        head = "# Made by inarch lock. inarch lock --check STACK says whether it still holds.\n"
        return head + tomli_w.dumps(_sorted(msgspec.to_builtins(self)))


def lock(plan: Plan, stack: Stack, folder: Path) -> Lock:
    """The lock of a planned stack.

    Args:
        plan: made of the stack.
        stack: as its file says.
        folder: the file's; paths below it are written from there.
    """
    source = Path(plan.model.source)
    model = LockedModel(
        family=plan.model.family,
        source=_source(stack, folder),
        fingerprint=plan.model.fingerprint,
        file=[_sampled(path, folder) for path in _base_files(source)],
    )
    return Lock(
        digest=plan.digest,
        order=list(plan.order),
        model=model,
        adapter=_locked(plan.members, stack.specs, folder),
        distribution=list(_distributions(plan)),
    )


def _locked(
    members: Iterable[PlannedMember], specs: Iterable[AdapterSpec], folder: Path
) -> list[LockedAdapter]:
    """Members as a lock holds them, by name."""
    asked = {spec.name: spec for spec in specs}
    return [
        LockedAdapter(
            name=m.name,
            kind=m.kind,
            use=m.use,
            scale=m.scale,
            asked=_asked(asked[m.name], folder),
            file=[
                LockedFile(path=_from(Path(f.path), folder), bytes=f.bytes, sha256=f.sha256)
                for f in m.files
            ],
            adapter=_locked(m.adapters, asked[m.name].adapters, folder),
        )
        for m in sorted(members, key=lambda member: member.name)
    ]


def _every(adapters: Iterable[LockedAdapter]) -> Iterator[LockedAdapter]:
    for one in adapters:
        yield one
        yield from _every(one.adapter)


def read_lock(path: Path) -> Lock:
    """Read a lock.

    Raises:
        InarchError: IA810 for a file that isn't there, is no lock, or of another schema.
    """
    try:
        found = read_toml(path, Lock, unreadable="IA810", malformed="IA810")
    except InarchError as error:
        error.remedy = "inarch lock STACK"
        raise
    if found.schema != SCHEMA:
        raise InarchError(
            "IA810",
            f"the lock has schema {found.schema}, and this inarch reads {SCHEMA}",
            where=str(path),
            remedy="inarch lock STACK",
        )
    return found


def changed(held: Lock, stack: Stack, folder: Path) -> list[str]:
    """What is not as the lock has it, one clause each; empty where it holds."""
    return [
        *_changed_stack(held, stack, folder),
        *_changed_distributions(held),
        *(fact for member in _every(held.adapter) for fact in _changed_files(member.file, folder)),
        *_changed_files(held.model.file, folder),
    ]


def stale(path: Path, facts: list[str], stack: Path) -> InarchError:
    """IA804 with all that changed."""
    return InarchError(
        "IA804",
        "the lock is stale",
        where=str(path),
        why="\n".join(facts),
        remedy=f"inarch lock {stack}",
    )


def _changed_stack(held: Lock, stack: Stack, folder: Path) -> Iterator[str]:
    if _source(stack, folder) != held.model.source:
        yield f"the stack is for the model {stack.model}, the lock for {held.model.source}"
    told = {member.name: member for member in held.adapter}
    now = {spec.name: spec for spec in stack.specs}
    for name in sorted(told.keys() - now.keys()):
        yield f"the stack has no adapter `{name}` any more"
    for name in sorted(now.keys() - told.keys()):
        yield f"the stack has an adapter `{name}` that the lock doesn't know"
    for name in sorted(now.keys() & told.keys()):
        if _asked(now[name], folder) != told[name].asked:
            yield f"the stack asks for `{name}` otherwise than it did"


def _changed_distributions(held: Lock) -> Iterator[str]:
    for told in held.distribution:
        now = content(told.name)
        if now is None:
            yield f"{told.name} {told.version} is not installed any more"
        elif now.version != told.version:
            yield f"{told.name} was {told.version}, and is {now.version}"
        elif now.sha256 != told.sha256:
            yield f"{told.name} {told.version} has other content than it had"


def _changed_files(told: list[LockedFile], folder: Path) -> Iterator[str]:
    for one in told:
        path = _to(one.path, folder)
        if path is None or not path.is_file():
            yield f"the file {one.path} is gone"
        elif path.stat().st_size != one.bytes:
            yield f"the file {one.path} was {one.bytes} bytes, and is {path.stat().st_size}"
        elif one.sha256 not in ("", _sha256(path)) or one.sample not in ("", _sample(path)):
            yield f"the file {one.path} has other content than it had"


def _distributions(plan: Plan) -> Iterator[LockedDistribution]:
    listed = index()
    from inarch.resolve.planned import every  # which needs torch

    members = list(every(plan.members))
    names = {"inarch", plan.model.distribution, *(m.distribution for m in members)}
    for member in members:
        if member.use in listed.weights:
            names.add(listed.weights[member.use].distribution)
    suffix = Path(plan.model.source).suffix
    names |= {e.distribution for e in listed.formats.values() if suffix in e.suffixes}
    for name in sorted(names - {""}):
        found = content(name)
        if found is not None:
            yield LockedDistribution(
                name=found.name,
                version=found.version,
                sha256=found.sha256,
                editable=found.editable,
            )


def _base_files(source: Path) -> list[Path]:
    """The files a base is: one, or those of its folder that say anything."""
    if source.is_file():
        return [source]
    kinds = (".json", ".safetensors")
    return sorted(p for p in source.rglob("*") if p.suffix in kinds and p.is_file())


def _sampled(path: Path, folder: Path) -> LockedFile:
    return LockedFile(path=_from(path, folder), bytes=path.stat().st_size, sample=_sample(path))


def _sample(path: Path) -> str:
    """SHA-256 of a file's beginning and of a thousand stretches of it, evenly apart."""
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        digest.update(file.read(1 << 16))
        for i in range(_SAMPLES):
            file.seek((max(size - _WIDTH, 0) * i) // (_SAMPLES - 1))
            digest.update(file.read(_WIDTH))
    return digest.hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _from(path: Path, folder: Path) -> str:
    """A path as the lock writes it: from the stack's folder or from site-packages."""
    path, folder = path.resolve(), folder.resolve()
    if path.is_relative_to(folder):
        return path.relative_to(folder).as_posix()
    for entry in _search_path():
        if path.is_relative_to(entry):
            return f"site-packages:{path.relative_to(entry).as_posix()}"
    return path.as_posix()


def _to(text: str, folder: Path) -> Path | None:
    place, mark, rest = text.partition("site-packages:")
    if mark and not place:
        return next((e / rest for e in _search_path() if (e / rest).is_file()), None)
    return folder / text


def _search_path() -> list[Path]:
    import sys

    return [Path(entry).resolve() for entry in sys.path if entry]


def _source(stack: Stack, folder: Path) -> str:
    model = stack.model or ""
    return _from(Path(model), folder) if model and Path(model).exists() else model


def _asked(spec: AdapterSpec, folder: Path) -> str:
    """A hash of what a stack says of one adapter."""
    told: dict[str, Any] = msgspec.to_builtins(spec)
    for name in ("where", "folder", "adapters"):
        told.pop(name, None)
    if told["weights"] is not None:
        told["weights"] = _from(Path(told["weights"]), folder)
    if spec.adapters:
        told["adapters"] = [_asked(one, folder) for one in spec.adapters]
    return hashlib.sha256(msgspec.json.encode(told, order="sorted")).hexdigest()


def _sorted(value: Any) -> Any:
    """The same with sorted keys, plain ones before tables, and without what is empty."""
    if isinstance(value, list):
        return [_sorted(one) for one in value]
    if not isinstance(value, dict):
        return value
    plain = {k: v for k, v in sorted(value.items()) if not isinstance(v, dict | list)}
    nested = {k: v for k, v in sorted(value.items()) if isinstance(v, dict | list)}
    return {k: _sorted(v) for k, v in {**plain, **nested}.items() if v not in ("", False, [])}
