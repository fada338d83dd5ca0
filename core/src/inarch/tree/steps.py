"""The steps a Chain is written with: data, not modules, so that a tree can be read and edited.

Each class says what becomes of the main value, one value or several, and nothing runs here:
`inarch.tree.generate` turns a program of steps into the source that does. Any torch module and any
function are steps too. A function's constants are bound with `functools.partial`; whatever else it
needs is a keyword-only parameter without a default. A labelled `nn.Parameter` is a `Let` of its
label, for checkpoints whose weights are not all in layers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Self

from inarch.errors import InarchError

Step = Any
"""A module, a function or a `Combinator`; torch's own callables share no narrower type."""


@dataclass(frozen=True, slots=True)
class Labelled:
    """A step and the label its author gave it: in code, `("label", step)` or `label=step`."""

    label: str
    step: Step


def labelled(steps: tuple[Step, ...], named: dict[str, Step]) -> tuple[Step, ...]:
    """Positional steps, `("label", step)` pairs and keywords as one tuple of steps."""
    pairs = [
        Labelled(s[0], s[1])
        if isinstance(s, tuple) and len(s) == 2 and isinstance(s[0], str)  # pyright: ignore
        else s
        for s in steps
    ]
    return (*pairs, *(Labelled(label, step) for label, step in named.items()))


class Combinator:
    """What all steps that are neither modules nor functions share."""

    __slots__ = ()

    @property
    def children(self) -> tuple[Step, ...]:
        return ()

    def with_children(self, children: tuple[Step, ...]) -> Self:
        """The same step around other children."""
        if children:
            raise InarchError(
                "IA106",
                f"{type(self).__name__} holds no steps",
                remedy="put the steps beside it, in a Seq",
            )
        return self


@dataclass(frozen=True, slots=True, init=False)
class Group(Combinator):
    """Steps under one combinator."""

    steps: tuple[Step, ...]

    def __init__(self, *steps: Step, **named: Step) -> None:
        object.__setattr__(self, "steps", labelled(steps, named))

    @property
    def children(self) -> tuple[Step, ...]:
        return self.steps

    def with_children(self, children: tuple[Step, ...]) -> Self:
        copy = object.__new__(type(self))
        for field in self.__dataclass_fields__:
            object.__setattr__(copy, field, getattr(self, field))
        object.__setattr__(copy, "steps", children)
        return copy


class Seq(Group):
    """One after another: `g(f(x))`."""

    __slots__ = ()


class Parallel(Group):
    """The same input to all; a tuple comes out: `f(x), g(x)`."""

    __slots__ = ()


class Distribute(Group):
    """One input each, as many steps as main values: `f(a), g(b)`."""

    __slots__ = ()


class Sum(Group):
    """Branches that share the input, added in order: `f(x) + g(x)`."""

    __slots__ = ()


class Product(Group):
    """Branches that share the input, multiplied in order: `f(x) * g(x)`."""

    __slots__ = ()


class Residual(Group):
    """The input plus what the steps, one after another, make of it: `x + g(f(x))`."""

    __slots__ = ()


@dataclass(frozen=True, slots=True, init=False)
class Concat(Group):
    """Branches that share the input, concatenated along `dim`: `cat((f(x), g(x)), dim=dim)`."""

    dim: int

    def __init__(self, *steps: Step, dim: int, **named: Step) -> None:
        Group.__init__(self, *steps, **named)
        if type(dim) is not int:
            raise InarchError(
                "IA104",
                f"Concat's dim must be an integer, not {dim!r}",
                remedy="dim=1",
            )
        object.__setattr__(self, "dim", dim)


@dataclass(frozen=True, slots=True)
class Identity(Combinator):
    """The main value as it is."""


@dataclass(frozen=True, slots=True, init=False)
class Use(Combinator):
    """Named values in place of the main one: bound earlier in the Chain, or asked of the caller."""

    names: tuple[str, ...]

    def __init__(self, *names: str) -> None:
        if not names:
            raise InarchError("IA104", "Use() names no value", remedy='write Use("name")')
        object.__setattr__(self, "names", names)


@dataclass(frozen=True, slots=True, init=False)
class Let(Combinator):
    """Binds names to what `step` makes of the main value, which itself flows on unchanged.

    The names are known to later steps of this Chain and inside them. Without a step they name the
    main value itself.
    """

    names: tuple[str, ...]
    step: Step

    def __init__(self, names: str | tuple[str, ...], step: Step = Identity()) -> None:
        object.__setattr__(self, "names", (names,) if isinstance(names, str) else tuple(names))
        pair = labelled((step,), {})
        object.__setattr__(self, "step", pair[0])

    @property
    def children(self) -> tuple[Step, ...]:
        return (self.step,)

    def with_children(self, children: tuple[Step, ...]) -> Self:
        return type(self)(self.names, children[0])


class Export(Let):
    """A `Let` whose values also leave the Chain, upward, to the first Chain that keeps the name."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Here(Combinator):
    """In the step of a `wrap` edit: the place where what is wrapped stands, exactly once."""


@dataclass(frozen=True, slots=True)
class Site(Combinator):
    """In a program: a labelled step, found under `name` within its Chain."""

    name: str
    step: Step

    @property
    def children(self) -> tuple[Step, ...]:
        return (self.step,)

    def with_children(self, children: tuple[Step, ...]) -> Self:
        return replace(self, step=children[0])


@dataclass(frozen=True, slots=True)
class Graft(Combinator):
    """In a program: what the edit of one adapter put there."""

    adapter: str
    kind: str
    step: Step
    kin: str = ""

    @property
    def beside(self) -> bool:
        """Whether it stands beside what is at the site, not around it or in its place."""
        return self.kind not in ("wrap", "replace")

    @property
    def children(self) -> tuple[Step, ...]:
        return (self.step,)

    def with_children(self, children: tuple[Step, ...]) -> Self:
        return replace(self, step=children[0])


@dataclass(frozen=True, slots=True)
class Ref(Combinator):
    """In a program: the module registered under this dotted name of the Chain."""

    name: str


@dataclass(frozen=True, slots=True)
class Weight(Combinator):
    """In a program: the Chain's own parameter of this name, in place of the main value."""

    name: str
    shape: tuple[int, ...]


def walk(step: Step) -> Iterator[Step]:
    """A step and every step under it, from the outside in, in program order."""
    ahead = [step]
    while ahead:
        step = ahead.pop()
        yield step
        if isinstance(step, Labelled):
            ahead.append(step.step)
        elif isinstance(step, Combinator):
            ahead.extend(reversed(step.children))
