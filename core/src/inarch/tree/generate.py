"""From a program to the function that runs: one code object for each structure.

Two Chains of one structure share their code: same steps, same needs, and the same below them.
Dynamo compiles per code object and keeps a small budget for each, so the key covers nested Chains
(their `Form`s) and of other modules the classes and the shapes of weights, or blocks that only
look alike would use up one another's budget. Nothing of a module or a parameter is captured.
"""

from __future__ import annotations

import functools
import linecache
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from inarch.errors import InarchError
from inarch.tree.compiled import again, compiled
from inarch.tree.failure import explain
from inarch.tree.joint import Joint, joints_of
from inarch.tree.lines import Value
from inarch.tree.names import HANDLER
from inarch.tree.signature import Call, Signature, of_module
from inarch.tree.steps import Let, Ref, Site, Step, Sum, Use, walk
from inarch.tree.text import source
from inarch.tree.write import Child, Writer


@dataclass(frozen=True, slots=True)
class Interface:
    """What a Chain says of itself, beside its steps: see `Chain`."""

    takes: tuple[str, ...]
    inputs: tuple[str, ...] | None
    keeps: frozenset[str]


@dataclass(frozen=True, eq=False)
class Form:
    """A structure: its source, its function, and how a Chain that has it is called.

    Attributes:
        source: the text of `forward`.
        function: the compiled text, unbound.
        needs: keyword-only names asked of the caller, in the order of their first use.
        gives: how many main values come out.
        exports: names of the values that leave after the main ones.
        sites: the names of the labelled steps, in program order.
        child: how a Chain around calls it.
        below: the Chains in it, by name.
        joints: terms that it computes together.
        refs: the names of the modules that are called, in program order.
        lines: the site each line of the source belongs to.
    """

    source: str
    function: Callable[..., Any]
    needs: tuple[str, ...]
    gives: int
    exports: tuple[str, ...]
    sites: tuple[str, ...]
    lines: tuple[str, ...]
    child: Child
    below: tuple[tuple[str, Form], ...]
    joints: tuple[Joint, ...]
    refs: tuple[str, ...]

    @functools.cached_property
    def region(self) -> Callable[..., Any]:
        """The function as a region of a larger compilation, which all that have this form share.

        Outside of one it is the function. Before torch 2.8 there are none, and a compilation goes
        through every Chain of this form anew.
        """
        mark = getattr(torch.compiler, "nested_compile_region", None)
        return self.function if mark is None else mark(self.function)

    @functools.cached_property
    def index(self) -> dict[str, tuple[tuple[str, ...], str]]:
        """Each address at or below a Chain of this form: the Chains on the way, the site's name."""
        index: dict[str, tuple[tuple[str, ...], str]] = {name: ((), name) for name in self.sites}
        for child, form in self.below:
            for address, (path, name) in form.index.items():
                index[f"{child}.{address}"] = ((child, *path), name)
        return index


SomeWriter = TypeVar("SomeWriter", bound=Writer)

_FORMS: weakref.WeakValueDictionary[Any, Form] = weakref.WeakValueDictionary()
_COMPILED: OrderedDict[Form, None] = OrderedDict()
_KEPT = 128
_PLAIN = (nn.Parameter, torch.Tensor)


def keep(form: Form) -> None:
    """Let a form that is being compiled outlive its trees, until many others were compiled.

    What a compiler made belongs to the code object. Whoever adapts, compiles, drops and adapts
    again would otherwise compile again, since the code would have died with the tree.
    """
    _COMPILED[form] = None
    _COMPILED.move_to_end(form)
    while len(_COMPILED) > _KEPT:
        _COMPILED.popitem(last=False)


def form_of(program: Step, interface: Interface, modules: Mapping[str, nn.Module]) -> Form:
    """The structure of a program over modules; made once, for whoever has it."""
    refs: list[str] = []
    sums: list[Sum] = []
    for step in walk(program):
        if isinstance(step, Ref):
            refs.append(step.name)
        elif isinstance(step, Sum):
            sums.append(step)
    below = tuple((name, structure(modules[name])) for name in refs)
    joints = joints_of(sums, modules) if sums else ()
    key = (program, interface, below, joints)
    form = _FORMS.get(key)
    if form is None:
        form = _FORMS[key] = _generate(program, interface, modules, joints, tuple(refs))
    return form


def form_like(
    old: Form, program: Step, interface: Interface, modules: Mapping[str, nn.Module]
) -> Form:
    """As `form_of`, where `old` is of the same program and interface over modules that differ.

    Where these are called as the others were, the text is the same, and is not written again.
    """
    below = tuple((name, structure(modules[name])) for name in old.refs)
    key = (program, interface, below, old.joints)
    form = _FORMS.get(key)
    if form is not None:
        return form
    made = {name: part for name, part in below if isinstance(part, Form)}
    called = {name: form.child for name, form in made.items()}
    if called != {name: form.child for name, form in old.below}:
        return form_of(program, interface, modules)
    function = again(old.function, old.source)
    form = _FORMS[key] = replace(old, function=function, below=tuple(made.items()))
    _noted(form)
    return form


def structure(module: nn.Module) -> Any:
    """What Dynamo tells two modules apart by: class, shapes of weights, and all that is below.

    Besides, what they must have equal to be computed together, where they say so: see `Joining`.
    """
    form = _form(module)
    if form is not None:
        return form
    kind: Any = type(module)
    weights = [
        (name, weight.shape)
        for held in (module._parameters, module._buffers)
        for name, weight in held.items()
        if weight is not None and (type(weight) in _PLAIN or not is_lazy(weight))
    ]
    joins: Any = module.joins if hasattr(kind, "joins") else None
    below = module._modules and [
        (name, structure(m)) for name, m in module._modules.items() if m is not None
    ]
    return kind, of_module(module), tuple(weights), joins, tuple(below)


def _form(module: nn.Module) -> Form | None:
    form = module.__dict__.get("form")
    return form if isinstance(form, Form) else None


def _generate(
    program: Step,
    interface: Interface,
    modules: Mapping[str, nn.Module],
    joints: tuple[Joint, ...],
    refs: tuple[str, ...],
) -> Form:
    writer = writer_of(program, interface, modules, joints, Writer)
    given = [Value(name) for name in interface.takes]
    returned = writer.run(program, given)
    needs = tuple(writer.needs)
    _check_inputs(writer.asked, interface)
    exports = tuple(writer.exports)
    text, lines = source(writer, given, returned + list(writer.exports.values()))
    functions = {name: call.function for name, call in writer.functions.items()}
    children = dict.fromkeys(refs)
    function = compiled(text, functions, children)
    takes = (len(interface.takes), float(len(interface.takes)))
    sites = tuple(s.name for s in walk(program) if isinstance(s, Site))
    below = tuple((name, f) for name in children if (f := _form(modules[name])) is not None)
    form = Form(
        source=text,
        function=function,
        needs=needs,
        gives=len(returned),
        exports=exports,
        sites=sites,
        lines=tuple(lines),
        child=Child(Signature(needs, len(returned), takes), exports),
        below=below,
        joints=joints,
        refs=refs,
    )
    _noted(form)
    return form


def _noted(form: Form) -> None:
    """Let errors in its function be explained, for as long as it lives."""
    file = form.function.__code__.co_filename
    explain.lines[file] = form.lines
    weakref.finalize(form, _forget, file).atexit = False


def writer_of(
    program: Step,
    interface: Interface,
    modules: Mapping[str, nn.Module],
    joints: tuple[Joint, ...],
    kind: type[SomeWriter],
) -> SomeWriter:
    """A writer of a program's forward, or of a kind that does more than writing."""
    children = {s.name: _child(modules[s.name]) for s in walk(program) if isinstance(s, Ref)}
    names = _value_names(program, children)
    reserved = frozenset({"self", "forward", *HANDLER, *interface.takes, *names})
    by_term = {term: joint for joint in joints for term in joint.terms}
    return kind(interface.takes, interface.keeps, children.__getitem__, reserved, by_term)


def _forget(file: str) -> None:
    linecache.cache.pop(file, None)
    explain.lines.pop(file, None)


def _child(module: nn.Module) -> Child:
    form = _form(module)
    return form.child if form is not None else Child(of_module(module))


def _value_names(program: Step, children: Mapping[str, Child]) -> Iterator[str]:
    for step in walk(program):
        if isinstance(step, (Let, Use)):
            yield from step.names
        elif isinstance(step, Call):
            yield from step.signature.needs
    for child in children.values():
        yield from child.signature.needs
        yield from child.exports


def _check_inputs(asked: Mapping[str, str], interface: Interface) -> None:
    """Refuse a need that nobody binds and that the Chain's own list of inputs doesn't have."""
    for need, where in asked.items():
        if need in interface.takes:
            raise InarchError(
                "IA103",
                f"`{need}` can't name a value",
                where=where,
                why="the main input of this Chain has that name",
                remedy='give one of the two another name: Chain(..., takes=("other",))',
            )
        if interface.inputs is not None and need not in interface.inputs:
            raise InarchError(
                "IA105",
                f"nobody binds `{need}`, and it is not an input of this Chain",
                where=where,
                why=f"the Chain's inputs are: {', '.join(interface.inputs) or 'none'}",
                remedy=f'bind it first with Let("{need}", ...), correct its spelling, or add it '
                "to the Chain's inputs",
            )
