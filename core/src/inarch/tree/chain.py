"""Chain: a module whose forward is written for it, from a program of steps it holds as data."""

from __future__ import annotations

import functools
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MethodType
from typing import TYPE_CHECKING, Any, Self

from torch import nn

from inarch.errors import InarchError
from inarch.tree.generate import Form, Interface, form_of, keep
from inarch.tree.joint import joined
from inarch.tree.program import Registry, adopt
from inarch.tree.steps import Seq, Step
from inarch.tree.twin import holding, twin_of
from inarch.tree.write import check_value_name

if TYPE_CHECKING:
    from inarch.tree.edit import Edit
    from inarch.tree.select import Selection


class Container(nn.Module):
    """Holds children under a dotted label's first part; adds a name and nothing else."""

    def __getitem__(self, index: int) -> nn.Module | None:
        return self._modules[str(index)]


@dataclass(frozen=True, slots=True)
class Pack:
    """Layers of a Chain that are one product: see `inarch.tree.pack`.

    Attributes:
        name: of the module that multiplies.
        sites: the layers whose rows it holds.
    """

    name: str
    sites: tuple[str, ...]


class Chain(nn.Module):
    """Steps, one after another: a boundary with its own forward and its own part of the name.

    Args:
        steps: modules, functions, Chains and combinators; `("label", step)` labels one. A module
            without a label is named by its position, as in `nn.Sequential`.
        takes: the names of the main values that come in.
        inputs: the named values the caller may be asked for. A need outside of them that no
            step binds is an error here instead of a surprise in the caller's signature. None
            leaves it to the Chains around.
        keeps: names that Chains below export and that stop here.
        named: labelled steps.

    Raises:
        InarchError: IA101 to IA107, for what can't be a tree, when it is built.
    """

    form: Form
    program: Step
    interface: Interface
    ties: tuple[tuple[str, str], ...]
    packs: tuple[Pack, ...]
    forward: Callable[..., Any]

    def __init__(
        self,
        *steps: Step,
        takes: str | Sequence[str] = ("x",),
        inputs: str | Sequence[str] | None = None,
        keeps: str | Iterable[str] = (),
        **named: Step,
    ) -> None:
        super().__init__()
        self.ties, self.packs = (), ()
        closed = None if inputs is None else tuple(sorted(set(_names(inputs))))
        self.interface = Interface(_names(takes), closed, frozenset(_names(keeps)))
        for name in self.interface.takes:
            check_value_name(name, "takes")
            if self.interface.takes.count(name) > 1:
                raise InarchError(
                    "IA101",
                    f"the name `{name}` is bound twice",
                    where="takes",
                    remedy="name each value once",
                )
        registry = Registry(_reserved(type(self)), self._register)
        self._write(adopt(Seq(*steps, **named), registry, top=True))

    # What it is

    @property
    def source(self) -> str:
        """The Python text of `forward`, as it runs."""
        return self.form.source

    @property
    def inputs(self) -> dict[str, tuple[str, ...]]:
        """Each input by name, with the addresses of the steps that ask for it."""
        from inarch.tree.draw import inputs_of

        return inputs_of(self)

    def select(
        self,
        pattern: str | None = None,
        *,
        type: type | tuple[type, ...] | None = None,
        where: Callable[[Any], bool] | None = None,
        count: int | None = None,
    ) -> Selection:
        """The sites that match an address pattern, a class of module and a predicate, all of them.

        Args:
            pattern: names with `*` for one level and `{a,b}` for either.
            type: the class of the module at the site.
            where: asked with each `Found`.
            count: how many there must be.

        Raises:
            InarchError: IA113 for a malformed pattern, IA114 where the count is another.
        """
        from inarch.tree.select import select

        return select(self, pattern, type=type, where=where, count=count)

    def edit(self, edits: Iterable[Edit]) -> Self:
        """A new tree with the edits applied, which shares all it can with this one.

        Raises:
            InarchError: IA108 and IA110 to IA117; this tree is as it was in any case.
        """
        from inarch.tree.edit import apply

        return apply(self, edits)

    def diff(self, other: Chain) -> str:
        """What differs from `other`, Chain by Chain, as a unified difference of their sources."""
        from inarch.tree.diff import diff

        return diff(other, self)

    def tie(self, alias: str, source: str) -> Self:
        """Declare that the parameter `alias` is the parameter `source`, and make it so.

        Raises:
            InarchError: IA118 where one of them is no parameter or the shapes differ.
        """
        shapes = [_shape(self, name) for name in (alias, source)]
        if None in shapes or shapes[0] != shapes[1]:
            raise InarchError(
                "IA118",
                f"`{alias}` can't be tied to `{source}`",
                why=f"their shapes are {shapes[0]} and {shapes[1]}",
                remedy="name two parameters of one shape below this Chain",
            )
        self.ties = (*self.ties, (alias, source))
        self.retie()
        return self

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """As torch's, in place. It serves every Chain of this structure, later ones too.

        Args:
            args, kwargs: of `torch.compile`.
        """
        keep(self.form)
        super().compile(*args, **kwargs)

    def __repr__(self) -> str:
        from inarch.tree.draw import draw

        return draw(self)

    def __getitem__(self, index: int) -> nn.Module | None:
        return self._modules[str(index)]

    def __iter__(self) -> Iterator[nn.Module]:
        return self.children()

    # How it is held together

    def _register(self, name: str, module: nn.Module | nn.Parameter) -> None:
        """Register a module under a dotted name, with bare containers on the way."""
        if not isinstance(module, nn.Module):
            self.register_parameter(name, module)
            return
        holder: nn.Module = self
        *path, last = name.split(".")
        for part in path:
            inner = holder._modules.setdefault(part, Container())
            if not isinstance(inner, Container):
                raise _used_twice(name, f"`{part}` is a {type(inner).__name__} of its own")
            holder = inner
        if last in holder._modules:
            raise _used_twice(name, "a module of that name is there")
        holder._modules[last] = module

    def module_at(self, name: str) -> nn.Module:
        """The module registered under a dotted name of this Chain."""
        module = self._modules.get(name)
        if module is not None:
            return module
        module = self
        for part in name.split("."):
            module = None if module is None else module._modules.get(part)
        if module is None:
            raise KeyError(name)
        return module

    def _write(self, program: Step) -> None:
        self.program = program
        self._generate()

    def _generate(self) -> None:
        self._take(self.program, form_of(self.program, self.interface, ModulesOf(self)))

    def _take(self, program: Step, form: Form) -> None:
        """Hold a program, and run as its form says."""
        if "form" in self.__dict__:
            object.__setattr__(self, "__dict__", self._written())
        made = {"program": program, "form": form, "forward": MethodType(form.function, self)}
        self.__dict__.update(made)  # past nn.Module, which looks for parameters in all it is given
        held = self._modules
        for joint in form.joints:
            terms = [held[name] if name in held else self.module_at(name) for name in joint.terms]
            onto = self.module_at(joint.onto) if joint.onto else None
            self.__dict__[joint.name] = joined(terms, onto)

    def _written(self) -> dict[str, Any]:
        """What it holds, without what is made from its program and its modules."""
        written = self.__dict__.copy()
        for name in ("forward", "form", *(joint.name for joint in self.form.joints)):
            written.pop(name, None)
        return written

    def _twin(self, origin: Chain | None = None) -> Self:
        """A new object that holds the same children and nothing that was attached to this one.

        Args:
            origin: the Chain this was made of by edits, whatever was done to this one since. The
                twin has its state, and this one's program and children.
        """
        written = self._written() if origin is None else origin._written()
        for name in HOOKS:
            written[name] = OrderedDict()
        for name in ("_parameters", "_buffers"):
            written[name] = written[name].copy()
        written["_non_persistent_buffers_set"] = written["_non_persistent_buffers_set"].copy()
        written["_modules"] = self._modules.copy()
        written["program"], written["interface"] = self.program, self.interface
        return holding(type(self), written)

    def _replace(self, modules: Mapping[str, nn.Module]) -> None:
        """Put others under dotted names; containers on the way become new objects, each once."""
        holders: dict[str, nn.Module] = {"": self}
        for name, module in modules.items():
            path, _, last = name.rpartition(".")
            holder = holders.get(path)
            if holder is None:
                holder = self._own(path, holders)
            holder._modules[last] = module

    def _own(self, path: str, holders: dict[str, nn.Module]) -> nn.Module:
        """A container of its own at a dotted name, noted in `holders`."""
        above, _, last = path.rpartition(".")
        around = holders[above] if above in holders else self._own(above, holders)
        inner = around._modules[last]
        if inner is None:
            raise KeyError(path)
        holders[path] = around._modules[last] = twin_of(inner)
        return holders[path]

    def __getstate__(self) -> dict[str, Any]:
        state = self._written()
        state.pop("_compiled_call_impl", None)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._generate()
        self._repack()

    # Tied and packed weights

    def _repack(self) -> None:
        """Make the layers of every pack rows of one tensor, after parameters were replaced."""
        for pack in self.packs:
            packed: Any = self.module_at(pack.name)
            packed.take([self.module_at(site) for site in pack.sites])

    def retie(self) -> None:
        """Make every tied parameter the one it is tied to, after parameters were replaced."""
        self._repack()
        for alias, source in self.ties:
            module, _, name = alias.rpartition(".")
            owner, _, own = source.rpartition(".")
            tied = self.get_submodule(owner)._parameters[own]
            self.get_submodule(module)._parameters[name] = tied

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)
        self.retie()
        return self

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """As torch's, but a tied parameter may be left out, and is still tied afterwards."""
        state = dict(state_dict)
        tied = [(name, m) for name, m in self.named_modules() if isinstance(m, Chain)]
        for prefix, chain in tied:
            for alias, source in chain.ties:
                alias, source = (f"{prefix}.{n}" if prefix else n for n in (alias, source))
                for given, other in ((source, alias), (alias, source)):
                    if given in state:
                        state.setdefault(other, state[given])
        result = super().load_state_dict(state, strict=strict, assign=assign)
        for _, chain in tied:
            chain.retie()
        return result


@functools.cache
def _reserved(kind: type[Chain]) -> frozenset[str]:
    """Names that a Chain of some class can't give to a module."""
    return RESERVED | frozenset(dir(kind))


class ModulesOf(Mapping[str, nn.Module]):
    """A Chain's modules by dotted name, looked up when asked."""

    def __init__(self, chain: Chain) -> None:
        self.chain = chain

    def __getitem__(self, name: str) -> nn.Module:
        return self.chain._modules.get(name) or self.chain.module_at(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.chain._modules)

    def __len__(self) -> int:
        return len(self.chain._modules)


def _shape(chain: Chain, parameter: str) -> list[int] | None:
    try:
        return list(chain.get_parameter(parameter).shape)
    except AttributeError:
        return None


def _names(names: str | Iterable[str]) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else tuple(names)


def _used_twice(label: str, why: str) -> InarchError:
    return InarchError(
        "IA102",
        f"the label `{label}` is used twice",
        why=why,
        remedy="give one of the two another label",
    )


RESERVED = frozenset(dir(nn.Module())) | frozenset(dir(Chain)) | frozenset(Chain.__annotations__)
HOOKS = tuple(name for name, value in vars(nn.Module()).items() if "hooks" in name and value == {})
