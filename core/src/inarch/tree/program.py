"""From steps as an author writes them to a program: labels checked, modules registered."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from torch import nn

from inarch.errors import InarchError
from inarch.tree.names import is_index, is_name
from inarch.tree.signature import Call
from inarch.tree.steps import Combinator, Labelled, Let, Ref, Seq, Site, Step, Weight


@dataclass(slots=True)
class Registry:
    """Where a Chain's modules and labels go while its program is built.

    Attributes:
        reserved: names a module can't have, since `nn.Module` or Chain uses them.
        register: puts a module under a dotted name, or a parameter under a plain one.
        prefix: for what an edit brings, the name that its modules' labels follow.
    """

    reserved: frozenset[str]
    register: Callable[[str, nn.Module | nn.Parameter], None]
    prefix: str = ""
    names: set[str] = field(default_factory=set[str])
    bound: set[str] = field(default_factory=set[str])

    def claim(self, name: str) -> str:
        if name in self.names:
            raise InarchError(
                "IA102",
                f"the label `{name}` is used twice",
                why="labels address steps and name weights, so each stands once in a Chain",
                remedy="give one of the two another label",
            )
        self.names.add(name)
        return name


def adopt(step: Step, registry: Registry, *, top: bool = False, path: tuple[str, ...] = ()) -> Step:
    """The program of `step`: `Site`s for labels, `Ref`s for modules, `Call`s for functions."""
    if isinstance(step, Labelled):
        return _labelled(step, registry, path)
    if isinstance(step, Seq) and top:
        children = (
            Labelled(str(i), s) if isinstance(s, nn.Module) else s for i, s in enumerate(step.steps)
        )
        return Seq(*(adopt(child, registry) for child in children))
    if isinstance(step, Let):
        return _let(step, registry, path)
    if isinstance(step, Combinator):
        children = step.children
        if not children:
            return step
        return step.with_children(tuple(adopt(c, registry, path=path) for c in children))
    if isinstance(step, nn.Module):
        if not registry.prefix:
            raise InarchError(
                "IA102",
                f"a {type(step).__name__} inside a combinator has no label",
                where=".".join(path),
                why="only a module at the Chain's first level is named by its position",
                remedy='write ("label", module) or label=module',
            )
        registry.register(registry.prefix, step)
        return Ref(registry.prefix)
    if callable(step):
        return Call.of(step)
    raise InarchError(
        "IA106",
        f"{step!r} is not a step",
        where=".".join(path),
        why="a step is a torch module, a function, a Chain or a combinator",
        remedy="wrap it in a function of the value that flows",
    )


def _labelled(item: Labelled, registry: Registry, path: tuple[str, ...]) -> Step:
    label, step = item.label, item.step
    if isinstance(step, nn.Module):
        _check_parts(label, registry.reserved)
        if registry.prefix:
            name = f"{registry.prefix}.{label}"
            registry.register(name, step)
            return Ref(name)
        registry.claim(label)
        registry.register(label, step)
        return Site(label, Ref(label))
    if not is_name(label) or "__" in label:
        raise _bad_label(label, "it names no weights, so it must be one identifier")
    if isinstance(step, nn.Parameter) and not registry.prefix:
        return _parameter(label, step, registry)
    inner = (*path, label)
    if registry.prefix:
        return adopt(step, registry, path=inner)
    if isinstance(step, Let) and step.names == (label,):
        return _let(step, registry, path)
    name = registry.claim(".".join(inner))
    return Site(name, adopt(step, registry, path=inner))


def _parameter(label: str, step: nn.Parameter, registry: Registry) -> Step:
    """A Let of the parameter's label, which is its name in the checkpoint too."""
    _check_parts(label, registry.reserved)
    if not is_name(label):
        raise _bad_label(label, "a parameter belongs to the Chain itself, so it has one name")
    bound = _let(Let(label, Weight(label, tuple(step.shape))), registry, ())
    registry.register(label, step)
    return bound


def _let(step: Let, registry: Registry, path: tuple[str, ...]) -> Step:
    """A Let of one name is a site of that name: what an edit puts there changes what is bound."""
    if registry.prefix or len(step.names) != 1:
        return step.with_children((adopt(step.step, registry, path=path),))
    [bound] = step.names
    if bound in registry.bound:
        raise InarchError(
            "IA101",
            f"the name `{bound}` is bound twice",
            where=".".join(path),
            remedy="give one of the two another name",
        )
    registry.bound.add(bound)
    inner = (*path, bound)
    name = registry.claim(".".join(inner))
    return step.with_children((Site(name, adopt(step.step, registry, path=inner)),))


def _check_parts(label: str, reserved: frozenset[str]) -> None:
    for part in label.split("."):
        if is_index(part):
            continue
        if not is_name(part):
            raise _bad_label(label, f"`{part}` is no identifier")
        if "__" in part:
            raise _bad_label(label, "`__` is kept for what adapters add")
        if part in reserved:
            raise _bad_label(label, f"nn.Module or Chain has an attribute `{part}`")


def _bad_label(label: str, why: str) -> InarchError:
    return InarchError(
        "IA103", f"`{label}` can't be a label", why=why, remedy="choose another label"
    )
