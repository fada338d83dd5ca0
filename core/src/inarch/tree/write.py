"""From a program of steps to the lines of a `forward`: which value goes where, under which name.

A value is named after the label of the step that made it. Names are reused once their value is
not needed any more, so a residual stream stays `x` throughout; named values (`Let`) keep their
name for the whole forward, and no line only renames.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from inarch.errors import InarchError
from inarch.tree.joint import Joint
from inarch.tree.lines import Line, Part, Value
from inarch.tree.names import can_name_a_value, is_index
from inarch.tree.signature import Call, Signature
from inarch.tree.steps import (
    Concat,
    Distribute,
    Export,
    Graft,
    Here,
    Identity,
    Let,
    Parallel,
    Product,
    Ref,
    Residual,
    Seq,
    Site,
    Step,
    Sum,
    Use,
    Weight,
)


@dataclass(frozen=True, slots=True)
class Child:
    """What the writer must know of a module: how it is called, and what else it leaves behind."""

    signature: Signature
    exports: tuple[str, ...] = ()


@dataclass(slots=True)
class Writer:
    """Collects the lines of one Chain's forward; `joints` by the names of their terms."""

    takes: tuple[str, ...]
    keeps: frozenset[str]
    child: Callable[[str], Child]
    reserved: frozenset[str]
    joints: Mapping[str, Joint]
    lines: list[Line] = field(default_factory=list[Line])
    scope: dict[str, Value] = field(default_factory=dict[str, Value])
    needs: dict[str, Value] = field(default_factory=dict[str, Value])
    exports: dict[str, Value] = field(default_factory=dict[str, Value])
    functions: dict[str, Call] = field(default_factory=dict[str, Call])
    asked: dict[str, str] = field(default_factory=dict[str, str])
    sites: list[str] = field(default_factory=list[str])

    def run(self, step: Step, given: list[Value], hint: str = "") -> list[Value]:
        """Write `step` applied to `given`; what comes out is named `hint` where it can be."""
        return _WRITE[type(step)](self, step, given, hint)

    # Names

    def named(self, name: str) -> Value:
        """The value bound to a name, which is asked of the caller where nothing bound it."""
        if name not in self.scope:
            check_value_name(name, self.where())
            self.asked[name] = self.where()
            self.scope[name] = self.needs[name] = Value(name, True, name)
        return self.scope[name]

    def bind(self, name: str, value: Value) -> None:
        check_value_name(name, self.where())
        if name in self.scope or name in self.takes:
            why = "an earlier step of this Chain binds it"
            if name in self.needs:
                why = f"`{self.asked[name]}` asks the caller for it before"
            elif name in self.takes:
                why = "the main input of this Chain has that name"
            raise InarchError(
                "IA101",
                f"the name `{name}` is bound twice",
                where=self.where(),
                why=why,
                remedy="give one of the two another name",
            )
        self.scope[name] = value
        if not value.fixed:
            value.fixed, value.name = True, name

    def export(self, name: str) -> None:
        if name not in self.keeps:
            self.exports[name] = self.scope[name]

    def where(self) -> str:
        return ".".join(self.sites) or "the Chain's first level"

    # Lines

    def emit(self, head: str, arguments: list[list[Part]], hints: Sequence[str]) -> list[Value]:
        targets = [Value(hint) for hint in hints]
        self.lines.append(Line(targets, head, arguments, site=self.sites[-1] if self.sites else ""))
        return targets

    def call(
        self,
        head: str,
        signature: Signature,
        given: list[Value],
        hint: str,
        extra: Sequence[str] = (),
        total: Value | None = None,
    ) -> list[Value]:
        """A call with the main values and each need, and with `plus=total` where there is one.

        The names `extra` are bound to what returns after the main values.
        """
        if signature.takes is not None:
            fewest, most = signature.takes
            if not fewest <= len(given) <= most:
                raise _misfit(head, f"takes {_range(fewest, most)}", len(given), self.where())
        arguments: list[list[Part]] = [[value] for value in given]
        arguments += [
            [f"{name}=", total if total and name == "plus" else self.named(name)]
            for name in signature.needs
        ]
        if total and "plus" not in signature.needs:
            arguments.append(["plus=", total])
        count = signature.gives
        hints = [hint] if count == 1 else [f"{hint}_{i}" for i in range(count)]
        values = self.emit(head, arguments, [*hints, *extra])
        for name, value in zip(extra, values[count:], strict=True):
            self.bind(name, value)
            self.export(name)
        return values[:count]

    def one(self, step: Step, given: list[Value], of: str, hint: str = "") -> Value:
        values = self.run(step, given, hint)
        if len(values) != 1:
            raise _misfit(of, "takes 1 value of each branch", len(values), self.where())
        return values[0]

    def join(self, operator: str, values: list[Value], hint: str) -> list[Value]:
        line = Line([Value(hint)], "", [[v] for v in values], operator)
        line.site = self.sites[-1] if self.sites else ""
        self.lines.append(line)
        return line.targets

    def global_name(self, call: Call) -> str:
        """The name the source calls a function by: its own, unless another one has it."""
        wanted, number = call.name, 1
        while wanted in self.reserved or self.functions.setdefault(wanted, call) != call:
            number += 1
            wanted = f"{call.name}_{number}"
        return wanted


def check_value_name(name: str, where: str = "") -> None:
    """Refuse a name that can't stand in a forward.

    Raises:
        InarchError: IA103.
    """
    if not can_name_a_value(name):
        raise InarchError(
            "IA103",
            f"`{name}` can't name a value",
            where=where,
            why="it is no free identifier",
            remedy="choose another name",
        )


def _range(fewest: int, most: float) -> str:
    if fewest == most:
        return f"{fewest} value{'' if fewest == 1 else 's'}"
    return f"at least {fewest} values" if most == float("inf") else f"{fewest} to {most:g} values"


def _misfit(step: str, wants: str, count: int, where: str) -> InarchError:
    return InarchError(
        "IA104",
        f"`{step}` {wants}, and {count} arrive{'s' if count == 1 else ''}",
        where=where,
        why="how many values a function gives is read from its return annotation",
        remedy="annotate the return, as in `-> tuple[Tensor, Tensor]`, or fit the steps",
    )


def accessor(name: str) -> str:
    """`resnets.0` as the source reaches it: `self.resnets[0]`."""
    parts = (f"[{part}]" if is_index(part) else f".{part}" for part in name.split("."))
    return "self" + "".join(parts)


def _hint(hint: str, given: list[Value], own: str) -> str:
    if hint:
        return hint
    if own.isidentifier():
        return own
    return given[0].hint if given else "value"


# One function for each kind of step


def _identity(_writer: Writer, _step: Identity, given: list[Value], _hint: str) -> list[Value]:
    return given


def _ref(writer: Writer, step: Ref, given: list[Value], hint: str) -> list[Value]:
    child = writer.child(step.name)
    hint = _hint(hint, given, step.name.rpartition(".")[2])
    return writer.call(accessor(step.name), child.signature, given, hint, child.exports)


def _call(writer: Writer, step: Call, given: list[Value], hint: str) -> list[Value]:
    head = writer.global_name(step)
    return writer.call(head, step.signature, given, _hint(hint, given, ""))


def _use(writer: Writer, step: Use, _given: list[Value], _hint: str) -> list[Value]:
    return [writer.named(name) for name in step.names]


def _weight(_writer: Writer, step: Weight, _given: list[Value], _hint: str) -> list[Value]:
    return [Value(step.name, True, accessor(step.name))]


def _site(writer: Writer, step: Site, given: list[Value], hint: str) -> list[Value]:
    own = step.name.rpartition(".")[2]
    writer.sites.append(step.name)
    if not own.isidentifier() or isinstance(step.step, Residual):  # whose stream keeps its name
        own = ""
    values = writer.run(step.step, given, hint or own)
    writer.sites.pop()
    return values


def _graft(writer: Writer, step: Graft, given: list[Value], hint: str) -> list[Value]:
    return writer.run(step.step, given, hint)


def _let(writer: Writer, step: Let, given: list[Value], _hint: str) -> list[Value]:
    values = writer.run(step.step, given)
    if len(values) != len(step.names):
        raise _misfit(f"Let{step.names}", f"names {len(step.names)}", len(values), writer.where())
    for name, value in zip(step.names, values, strict=True):
        writer.bind(name, value)
        if isinstance(step, Export):
            writer.export(name)
    return given


def _seq(writer: Writer, step: Seq, given: list[Value], hint: str) -> list[Value]:
    last = len(step.steps) - 1
    for i, child in enumerate(step.steps):
        given = writer.run(child, given, hint if i == last else "")
    return given


def _residual(writer: Writer, step: Residual, given: list[Value], hint: str) -> list[Value]:
    if len(given) != 1:
        raise _misfit("Residual", "takes 1 value", len(given), writer.where())
    branch = writer.one(Seq(*step.steps), given, "Residual")
    return writer.join(" + ", [given[0], branch], hint or given[0].hint)


def _parallel(writer: Writer, step: Parallel, given: list[Value], _hint: str) -> list[Value]:
    return [value for child in step.steps for value in writer.run(child, given)]


def _distribute(writer: Writer, step: Distribute, given: list[Value], _hint: str) -> list[Value]:
    if len(given) != len(step.steps):
        raise _misfit("Distribute", f"takes {len(step.steps)} values", len(given), writer.where())
    pairs = zip(step.steps, given, strict=True)
    return [value for child, one in pairs for value in writer.run(child, [one])]


def _branches(writer: Writer, step: Sum | Product | Concat) -> tuple[Step, ...]:
    if not step.steps:
        raise _misfit(type(step).__name__, "joins branches", 0, writer.where())
    return step.steps


def _sum(writer: Writer, step: Sum, given: list[Value], hint: str) -> list[Value]:
    hint = hint or (given[0].hint if given else "total")
    terms: list[Value] = []
    for child in _branches(writer, step):
        name = _accumulating(writer, child)
        joint = writer.joints.get(name)
        if joint and name != joint.terms[0]:
            continue
        if terms and name:
            total = terms[0] if len(terms) == 1 else writer.join(" + ", terms, hint)[0]
            head = accessor(joint.name if joint else name)
            terms = [_accumulate(writer, head, name, given, total, hint)]
        else:
            terms.append(writer.one(child, given, "Sum", _own(child, hint)))
    return terms if len(terms) == 1 else writer.join(" + ", terms, hint)


def _own(step: Step, hint: str) -> str:
    """A branch is named after its own label, or a function that an edit joined after the site."""
    return hint if isinstance(step, Call) else ""


def _accumulating(writer: Writer, step: Step) -> str:
    """The name of the module of a term that takes the sum so far; empty for other terms."""
    if not isinstance(step, Graft) or not isinstance(step.step, Ref):
        return ""
    return step.step.name if writer.child(step.step.name).signature.plus else ""


def _accumulate(
    writer: Writer, head: str, name: str, given: list[Value], total: Value, hint: str
) -> Value:
    """A module that takes the sum so far spares the addition: `self.q_proj__a(x, plus=q_proj)`."""
    values = writer.call(head, writer.child(name).signature, given, hint, total=total)
    if len(values) != 1:
        raise _misfit("Sum", "takes 1 value of each branch", len(values), writer.where())
    return values[0]


def _product(writer: Writer, step: Product, given: list[Value], hint: str) -> list[Value]:
    hint = hint or (given[0].hint if given else "product")
    factors = [
        writer.one(child, given, "Product", _own(child, hint)) for child in _branches(writer, step)
    ]
    return writer.join(" * ", factors, hint) if len(factors) > 1 else factors


def _concat(writer: Writer, step: Concat, given: list[Value], hint: str) -> list[Value]:
    head = writer.global_name(_CAT)
    parts: list[Part] = []
    for child in _branches(writer, step):
        parts += [writer.one(child, given, "Concat"), ", "]
    arguments: list[list[Part]] = [["(", *parts[:-1], ")" if len(parts) > 2 else ",)"]]
    hint = hint or (given[0].hint if given else "joined")
    return writer.emit(head, [*arguments, [f"dim={step.dim}"]], [hint])


def _here(writer: Writer, _step: Here, _given: list[Value], _hint: str) -> list[Value]:
    raise InarchError(
        "IA112",
        "Here() stands outside of a wrap edit",
        where=writer.where(),
        remedy="use Identity() for the main value",
    )


_CAT = Call.of(torch.cat)
_WRITE: dict[type, Callable[[Writer, Any, list[Value], str], list[Value]]] = {
    Identity: _identity,
    Ref: _ref,
    Call: _call,
    Use: _use,
    Weight: _weight,
    Site: _site,
    Graft: _graft,
    Let: _let,
    Export: _let,
    Here: _here,
    Seq: _seq,
    Residual: _residual,
    Parallel: _parallel,
    Distribute: _distribute,
    Sum: _sum,
    Product: _product,
    Concat: _concat,
}
