"""`resolve`: from a model and a stack to a plan, which says everything and has changed nothing."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
import torch

import inarch
from inarch.adapters.graft import Draft, installed
from inarch.adapters.member import Member
from inarch.errors import InarchError
from inarch.plugins.hooks import picture
from inarch.plugins.index import Finding
from inarch.resolve.arrange import arranged
from inarch.resolve.digest import digest, identity, identity_of
from inarch.resolve.fit import fitted, notes
from inarch.resolve.meeting import Verdict
from inarch.resolve.planned import (
    PlannedMember,
    PlannedModel,
    every,
    file_of,
    planned,
    planned_model,
    spec_of,
)
from inarch.resolve.proof import Proof, prove
from inarch.resolve.refusal import refuse
from inarch.stack import AdapterSpec, Stack, specs_of

if TYPE_CHECKING:
    from inarch.adapters.model import Model

SCHEMA = 1
SomeModel = TypeVar("SomeModel", bound="Model")


@dataclass(frozen=True)
class Plan:
    """What a stack will be, decided and proved before anything of it is made.

    Attributes:
        model: what it is for.
        members: all of them, in canonical order.
        layers: their names in Foata's layers: members of a layer commute.
        verdicts: for each pair, whether the order matters, why, and where they meet.
        digest: of the stack, equal for every way to write it down.
        proof: what running without data showed; None where that was not asked for.
        findings: what is worth knowing and stops nothing.
    """

    model: PlannedModel
    members: tuple[PlannedMember, ...]
    layers: tuple[tuple[str, ...], ...]
    verdicts: tuple[Verdict, ...]
    digest: str
    proof: Proof | None = None
    findings: tuple[Finding, ...] = field(default=())

    @property
    def order(self) -> tuple[str, ...]:
        """The members' names, in canonical order."""
        return tuple(member.name for member in self.members)

    @property
    def specs(self) -> tuple[AdapterSpec, ...]:
        """What has to be adapted with: the members the model didn't have."""
        return tuple(spec_of(member) for member in self.members if not member.present)

    def as_dict(self) -> dict[str, Any]:
        """The plan as JSON holds it; `schema()` describes it."""
        return {
            "schema": SCHEMA,
            "inarch": inarch.__version__,
            "model": msgspec.to_builtins(self.model),
            "order": list(self.order),
            "layers": [list(layer) for layer in self.layers],
            "digest": self.digest,
            "members": [msgspec.to_builtins(member) for member in self.members],
            "verdicts": [verdict.as_dict() for verdict in self.verdicts],
            "proof": msgspec.to_builtins(self.proof),
            "findings": [msgspec.to_builtins(finding) for finding in self.findings],
        }

    def to_json(self) -> str:
        """The plan as a JSON document; `Plan.from_json` reads it again."""
        return json.dumps(self.as_dict(), ensure_ascii=False, indent=2, sort_keys=True) + "\n"

    def _repr_html_(self) -> str | None:
        """How notebooks show it, where a package that draws is installed."""
        return picture(self, "fragment")

    @classmethod
    def from_json(cls, text: str | bytes) -> Plan:
        """Read a plan that `to_json` wrote.

        Raises:
            InarchError: IA803 for a text that is no plan, or of another schema.
        """
        try:
            read = msgspec.json.decode(text, type=_File)
        except msgspec.MsgspecError as error:
            raise _no_plan(str(error)) from None
        if read.schema != SCHEMA:
            raise _no_plan(f"it has schema {read.schema}, and this inarch reads {SCHEMA}")
        by_name = {member.name: member for member in read.members}
        if set(by_name) != set(read.order) or len(read.order) != len(read.members):
            raise _no_plan("its order and its members disagree")
        return cls(
            read.model,
            tuple(by_name[name] for name in read.order),
            tuple(map(tuple, read.layers)),
            tuple(
                Verdict(*v.pair, v.verdict, v.reason, tuple(v.at), v.deciding)
                for v in read.verdicts
            ),
            read.digest,
            read.proof,
            tuple(read.findings),
        )

    def apply(self, model: SomeModel) -> SomeModel:
        """The adapted model: all of the plan, or nothing at all.

        Args:
            model: the one the plan was made for, or another that was loaded from the same weights.

        Raises:
            InarchError: IA802 where the model, a package or a file is not what it was when the
                plan was made, with all that changed. `model` is as it was in any case.
        """
        stale = [*_changed_model(self, model), *_changed_packages(self), *_changed_files(self)]
        if stale:
            raise _stale(stale)
        adapted = model.adapt(*self.specs)
        if adapted.digest != self.digest or adapted.order.names != self.order:
            raise _stale(["the stack is another, though nothing it was made of has changed"])
        return adapted


def resolve(
    model: Model,
    *adapters: AdapterSpec | Stack | str,
    proof: bool = True,
    device: torch.device | str | None = None,
) -> Plan:
    """Decide whether a stack fits a model and what its order is, and prove that it runs.

    Nothing is changed: `model` is left as it is, no weight is read, and nothing is put on a device.

    Args:
        model: what is to be adapted; one loaded with device="meta" will do.
        adapters: made by `inarch.adapter`, ids of trained weights, or stacks.
        proof: whether to run the patched trees without data, on the model's examples.
        device: where it is to run, for the memory it needs; by default where the model is.

    Raises:
        InarchError: 4xx and 8xx, `inarch.resolve.Refused` for several: all that is wrong.
    """
    specs = specs_of(adapters)
    drafts, problems = fitted(model, specs)
    members: list[Member | Draft] = [*model.adapters, *drafts]
    order, more = arranged(members, model.pristine, names=[spec.name for spec in specs])
    refuse([*problems, *more])
    by_name = {member.name: member for member in members}
    told_of = tuple(planned(by_name[name]) for name in order.names)
    told = {name: _identity(member) for name, member in by_name.items()}
    merged = [member.name for member in model.adapters if member.merged]
    proved, wrong = None, []
    if proof:
        place = None if device is None else torch.device(device)
        proved, wrong = prove(model, drafts, order.names, place)
    refuse(wrong)
    return Plan(
        planned_model(model),
        told_of,
        order.layers,
        order.verdicts,
        digest(order.names, told, merged),
        proved,
        tuple(notes(members, installed())),
    )


def read_plan(path: Path) -> Plan:
    """Read a plan's file.

    Raises:
        InarchError: IA803.
    """
    try:
        text = path.read_bytes()
    except OSError as error:
        raise _no_plan(error.strerror or str(error), str(path)) from None
    try:
        return Plan.from_json(text)
    except InarchError as error:
        raise _no_plan(error.why, str(path)) from None


def schema() -> dict[str, Any]:
    """The JSON schema of a plan (draft 2020-12)."""
    return json.loads(files("inarch.resolve").joinpath("plan.schema.json").read_text("utf-8"))


class _Said(msgspec.Struct):
    pair: tuple[str, str]
    verdict: Any
    reason: str
    at: list[str]
    deciding: int


class _File(msgspec.Struct):
    schema: int
    model: PlannedModel
    order: list[str]
    layers: list[list[str]]
    digest: str
    members: list[PlannedMember]
    verdicts: list[_Said]
    proof: Proof | None
    findings: list[Finding]


def _identity(member: Member | Draft) -> dict[str, Any]:
    if isinstance(member, Member):
        return identity_of(member)
    inner, scale = member.inner and member.inner.digest, member.spec.scale
    return identity(member.adapter, member.kind, member.edits, member.header, scale, inner)


def _changed_model(plan: Plan, model: Model) -> list[str]:
    facts: list[str] = []
    if model.family != plan.model.family:
        facts.append(f"the model is of the family {model.family}, not {plan.model.family}")
    if model.fingerprint() != plan.model.fingerprint:
        facts.append("the base has other weights: its fingerprint differs")
    if model.digest != plan.model.digest:
        facts.append("the model has other adapters than it had")
    return facts


def _changed_packages(plan: Plan) -> list[str]:
    listed = installed()
    now = {e.distribution: e.version for e in (*listed.models.values(), *listed.adapters.values())}
    told: Mapping[str, str] = {m.distribution: m.version for m in every(plan.members)}
    told = {**told, plan.model.distribution: plan.model.version}
    return [
        f"{name} was {version}, and is {now.get(name, 'not installed any more')}"
        for name, version in sorted(told.items())
        if name and now.get(name) != version
    ]


def _changed_files(plan: Plan) -> list[str]:
    facts: list[str] = []
    for member in every(plan.members):
        for told in () if member.present else member.files:
            try:
                now = file_of(Path(told.path))
            except OSError:
                facts.append(f"the file of `{member.name}` is gone: {told.path}")
                continue
            if now.sha256 != told.sha256:
                facts.append(f"the file of `{member.name}` has other content: {told.path}")
    return facts


def _stale(facts: Sequence[str]) -> InarchError:
    return InarchError(
        "IA802",
        "the plan is stale",
        where=f"{len(facts)} thing{'s' if len(facts) > 1 else ''} changed since it was made",
        why="\n".join(facts),
        remedy="make it again: inarch plan STACK -o plan.json",
    )


def _no_plan(why: str, where: str = "") -> InarchError:
    return InarchError(
        "IA803",
        "this is no plan",
        where=where,
        why=why,
        remedy="make one: inarch plan STACK -o plan.json",
    )
