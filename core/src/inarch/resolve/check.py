"""What manifests and file headers alone say of a stack. Imports neither torch nor a plugin."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path

from inarch.errors import InarchError
from inarch.identity import fingerprint
from inarch.layout import adapter_file, read_layout
from inarch.naming import check_adapter_name
from inarch.plugins.fit import misfit, model_named
from inarch.plugins.index import Finding, Index
from inarch.plugins.manifest import AdapterEntry, ModelEntry
from inarch.plugins.wanted import located, refuse_base
from inarch.resolve import graph
from inarch.resolve.declared import (
    circle_error,
    misnamed,
    precedences,
    taken,
    unknown_ids,
    unmet,
    versions,
)
from inarch.resolve.kinds import COMMUTING, DOES
from inarch.resolve.refusal import flattened
from inarch.stack import AdapterSpec, Stack


@dataclass(frozen=True, slots=True)
class Listed:
    """A member of a stack, as far as its manifest tells."""

    spec: AdapterSpec
    entry: AdapterEntry
    path: Path | None
    bytes: int = 0
    inner: tuple[Listed, ...] = ()

    @property
    def name(self) -> str:
        return self.spec.name

    @property
    def kind(self) -> str:
        return self.entry.id

    @property
    def after(self) -> tuple[str, ...]:
        return self.spec.after

    @property
    def before(self) -> tuple[str, ...]:
        return self.spec.before


@dataclass(slots=True)
class Report:
    """What was found.

    Attributes:
        family: the foundation model; None where it can't be told without a plugin.
        members: those that are installed and whose files are in order.
        problems: what is wrong.
        findings: what is worth knowing and stops nothing.
        left: what only the edits can decide, which `inarch plan` looks at.
    """

    family: ModelEntry | None = None
    members: list[Listed] = field(default_factory=list[Listed])
    problems: list[InarchError] = field(default_factory=list[InarchError])
    findings: list[Finding] = field(default_factory=list[Finding])
    left: list[str] = field(default_factory=list[str])


def check(stack: Stack, listed: Index, where: str = "") -> Report:
    """Check a stack by manifests and file headers.

    Args:
        stack: what to check.
        listed: what is installed.
        where: the stack's file, for messages.
    """
    report = Report()
    report.family = _family(stack, listed, where, report)
    own = _fingerprint(stack, report)
    report.members += _listed_all(stack.specs, listed, report, own)
    members, names = report.members, list(dict.fromkeys(spec.name for spec in stack.specs))
    report.problems += misnamed(members, names)
    report.problems += unmet(members, listed.adapters)
    for member in members:
        report.problems += versions(member.name, member.entry, report.family)
        report.problems += _roles(member, report.family)
    entries = {member.kind: member.entry for member in members}
    for entry in entries.values():
        report.findings += unknown_ids(entry, listed.adapters)
    _order(members, report)
    options = sorted(m.name for m in members if m.spec.options)
    if options:
        report.left.append(f"whether the options of {_quoted(options)} are right")
    files = sorted(m.name for m in members if m.path is not None)
    if files:
        report.left.append(f"whether the tensors of {_quoted(files)} fit the model's layers")
    return report


def _family(stack: Stack, listed: Index, where: str, report: Report) -> ModelEntry | None:
    if stack.model is None:
        report.left.append("which model it is for: the stack names none")
        return None
    path = Path(stack.model)
    formats = [s for entry in listed.formats.values() for s in entry.suffixes]
    if path.is_file() and path.suffix in formats:
        report.left.append(f"which model `{path.name}` is: its format is read by a plugin")
        return None
    try:
        return model_named(stack.model, listed)
    except InarchError as error:
        error.where = error.where or where
        report.problems.append(error)
        return None


def _fingerprint(stack: Stack, report: Report) -> str:
    """The base's fingerprint where it is a folder of safetensors; empty where it isn't told."""
    folder = Path(stack.model or "")
    if stack.model is None or not (folder / "config.json").is_file():
        return ""
    try:
        files = [folder / "model.safetensors"]
        listed = folder / "model.safetensors.index.json"
        if listed.is_file():
            shards = json.loads(listed.read_text("utf-8"))["weight_map"].values()
            files = [folder / name for name in sorted(set(shards))]
        elif not files[0].is_file():
            return ""
        return fingerprint([(file, read_layout(file).tensors) for file in files])
    except (ValueError, KeyError, AttributeError) as error:
        report.problems.append(
            InarchError(
                "IA202",
                "the index of the shards can't be read",
                where=str(folder),
                why=str(error),
                remedy="download or save the checkpoint again",
            )
        )
        return ""
    except InarchError as error:
        report.problems.append(error)
        return ""


def _listed_all(
    specs: Iterable[AdapterSpec], listed: Index, report: Report, own: str
) -> Iterator[Listed]:
    """The adapters of one tree; what is wrong with one is reported, and the others are listed."""
    names: set[str] = set()
    for spec in specs:
        if spec.name in names:
            report.problems.append(taken(spec))
            continue
        names.add(spec.name)
        try:
            yield _listed(spec, listed, report, own)
        except InarchError as error:
            report.problems += flattened(error)


def _listed(spec: AdapterSpec, listed: Index, report: Report, own: str) -> Listed:
    check_adapter_name(spec.name)
    entry, path = located(spec, listed, report.family.id if report.family else "")
    inner = tuple(_listed_all(spec.adapters, listed, report, ""))  # whose base is its own tree
    if path is None:
        return Listed(spec, entry, None, inner=inner)
    file = adapter_file(path)
    layout = read_layout(file)
    if own:
        refuse_base(spec.name, str(file), layout.metadata, own)
    elif "inarch.base_fingerprint" in layout.metadata:
        report.left.append(f"whether `{spec.name}` was trained on these weights of the base")
    size = max((placed.span[1] for placed in layout.tensors.values()), default=0)
    return Listed(spec, entry, file, size, inner)


def _roles(member: Listed, family: ModelEntry | None) -> Iterator[InarchError]:
    """IA801 where the model has none of the roles an adapter is for and nothing else is asked."""
    if family is None or member.spec.options or member.path is not None:
        return
    why = misfit(member.entry, family)
    if why:
        yield InarchError(
            "IA801",
            f"`{member.name}` does not fit this model",
            where=member.entry.manifest,
            why=why,
            remedy=f"inarch adapters --for {family.id}",
        )


def _order(members: Sequence[Listed], report: Report) -> None:
    said = precedences(members)
    follows: dict[str, list[str]] = {}
    for one in said:
        follows.setdefault(one.first, []).append(one.second)
    names = [member.name for member in members]
    circles = graph.cycles(names, follows)
    report.problems += [circle_error(circle, said) for circle in circles[:3]]
    if circles:
        return
    after: Mapping[str, set[str]] = graph.reach(names, follows)
    for a, b in combinations(sorted(members, key=lambda m: m.name), 2):
        settled = b.name in after.get(a.name, ()) or a.name in after.get(b.name, ())
        if not settled and not _commute(a.entry, b.entry):
            report.left.append(
                f"whether the order of `{a.name}` and `{b.name}` matters: the one "
                f"{_does(a.entry)}, the other {_does(b.entry)}"
            )


def _commute(a: AdapterEntry, b: AdapterEntry) -> bool:
    """Whether all edits of two adapters commute, wherever they meet; a name may still be shared."""
    pairs = {frozenset((x, y)) for x in a.kinds for y in b.kinds}
    return bool(pairs) and pairs <= COMMUTING


def _does(entry: AdapterEntry) -> str:
    return " and ".join(DOES[kind] for kind in entry.kinds) or "does what its manifest doesn't say"


def _quoted(names: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)
