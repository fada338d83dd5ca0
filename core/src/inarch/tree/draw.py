"""A tree as a person reads it: one line a step, equal siblings folded, adapters' edges marked."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from torch import nn

from inarch.tree.chain import Chain
from inarch.tree.signature import Call, of_module
from inarch.tree.steps import (
    Combinator,
    Concat,
    Export,
    Graft,
    Identity,
    Let,
    Ref,
    Seq,
    Site,
    Step,
    Use,
    Weight,
    walk,
)

_LARGE = 6
_SIZES = re.compile(r" \[[\d, ]*\]")
_MARKS = {"add": "+", "scale": "x", "before": "<", "after": ">", "wrap": "()", "replace": "!="}


@dataclass(frozen=True, slots=True)
class Node:
    """One line of the drawing: a label, what stands there, and the lines below.

    Attributes:
        label: its name in the Chain around, or how an edit's line begins.
        text: what stands there.
        below: the lines under it.
        site: the name of the site within its Chain, where it is one.
        graft: the kind and the adapter of the edit that put it there.
        needs: the named values that it asks for.
        names: the named values that it binds.
        module: what is registered there.
    """

    label: str
    text: str
    below: tuple[Node, ...] = field(default=())
    site: str = ""
    graft: tuple[str, str] | None = None
    needs: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    module: nn.Module | None = field(default=None, compare=False, repr=False)

    @property
    def shape(self) -> tuple[str, tuple[Node, ...]]:
        """What makes two numbered siblings fold into one."""
        return self.text, self.below

    @property
    def line(self) -> str:
        return f"{self.label}: {self.text}" if self.label else self.text


def draw(chain: Chain) -> str:
    """The drawing of a Chain and all below it; what was drawn already is named, not drawn again."""
    root = chain_node("", chain)
    return "\n".join([root.line, *_lines(root.below, "", "", {})])


def _lines(
    nodes: tuple[Node, ...], indent: str, prefix: str, seen: dict[Node, tuple[str, Node]]
) -> Iterable[str]:
    folded = list(_folded(nodes))
    for i, node in enumerate(folded):
        last = i == len(folded) - 1
        line, inner = f"{indent}{'└─ ' if last else '├─ '}{node.line}", prefix
        if isinstance(node.module, Chain):
            address = prefix + (node.site or node.label)
            inner = f"{address}."
            if _count(node.below) >= _LARGE:
                earlier, one = seen.setdefault(_sizeless(node), (address, node))
                if earlier != address:
                    same = one.shape == node.shape
                    yield f"{line}, as {earlier}{'' if same else ' in other sizes'}"
                    continue
        yield line
        yield from _lines(node.below, indent + ("   " if last else "│  "), inner, seen)


def _count(nodes: tuple[Node, ...]) -> int:
    return sum(1 + _count(node.below) for node in nodes)


def _sizeless(node: Node) -> Node:
    """What two Chains of one structure have in common, whatever their sizes and names."""
    below = tuple(replace(_sizeless(one), label=one.label) for one in node.below)
    return Node("", _SIZES.sub("", node.text), below, graft=node.graft)


def _folded(nodes: tuple[Node, ...]) -> Iterable[Node]:
    """Runs of equal numbered siblings as one: `(0-29) x30`."""
    i = 0
    while i < len(nodes):
        j = i + 1
        if nodes[i].label.isdigit():
            while j < len(nodes) and nodes[j].label.isdigit() and nodes[j].shape == nodes[i].shape:
                j += 1
        if j - i > 1:
            label = f"({nodes[i].label}-{nodes[j - 1].label}) x{j - i}"
            yield Node(label, nodes[i].text, nodes[i].below)
        else:
            yield nodes[i]
        i = j


def chain_node(label: str, chain: Chain) -> Node:
    below = tuple(_below(chain.program, chain))
    return Node(label, type(chain).__name__, below, needs=chain.form.needs, module=chain)


def _below(step: Step, chain: Chain) -> Iterable[Node]:
    if isinstance(step, Seq):
        for child in step.steps:
            yield from _below(child, chain)
    else:
        yield _node(step, chain, "")


def _node(step: Step, chain: Chain, label: str) -> Node:
    if isinstance(step, Site):
        registered = any(isinstance(s, Ref) and s.name == step.name for s in walk(step.step))
        inner = step.name if registered else step.name.rpartition(".")[2]
        return replace(_node(step.step, chain, label or inner), site=step.name)
    if isinstance(step, Graft):
        return _graft(step, chain, label)
    if isinstance(step, Ref):
        module = chain.module_at(step.name)
        if isinstance(module, Chain):
            return chain_node(label or step.name, module)
        needs = of_module(module).needs
        return Node(label or step.name, module_text(module), needs=needs, module=module)
    if isinstance(step, Call):
        needs = step.signature.needs
        label = "" if label == step.name else label
        return Node(label, f"{step.name}(){_asks(needs)}", needs=needs)
    if isinstance(step, Let):
        return _let(step, chain)
    if isinstance(step, Use):
        return Node(label, f"use {', '.join(step.names)}", needs=step.names)
    if isinstance(step, Identity):
        return Node(label, "identity")
    if isinstance(step, Weight):
        return Node("", f"Parameter {_brackets(step.shape)}")
    return _combined(step, chain, label)


def _combined(step: Combinator, chain: Chain, label: str) -> Node:
    name = type(step).__name__ + (f"(dim={step.dim})" if isinstance(step, Concat) else "")
    children = step.children
    edited = [c for c in children if isinstance(c, Graft) and c.beside]
    base = [c for c in children if not isinstance(c, Graft) or not c.beside]
    if edited and len(base) == 1:
        node = _node(base[0], chain, label)
        marks = tuple(_graft(graft, chain) for graft in edited)
        return replace(node, label=node.label or label, below=(*node.below, *marks))
    below = tuple(node for child in children for node in _below(child, chain))
    return Node(label, name, below)


def _graft(graft: Graft, chain: Chain, label: str = "") -> Node:
    whose = (graft.kind, graft.adapter)
    if graft.kind in ("tap", "provide"):
        bound = _let(graft.step, chain)
        text = f"{graft.kind} {bound.line} [{graft.adapter}]"
        return replace(bound, label="", text=text, graft=whose)
    node = _node(graft.step, chain, "")
    mark, text = _MARKS[graft.kind], f"{node.text} [{graft.adapter}]"
    if graft.beside and node.label:
        return replace(node, label=f"{mark} {node.label}", text=text, graft=whose)
    label = "" if graft.beside else label
    return replace(node, label=label, text=f"{mark} {text}", graft=whose)


def _let(step: Let, chain: Chain) -> Node:
    names = ", ".join(step.names)
    word = "export" if isinstance(step, Export) else "let"
    inner, site = step.step, ""
    if isinstance(inner, Site) and inner.name.rpartition(".")[2] == names:
        inner, site = inner.step, inner.name
    if isinstance(inner, Identity):
        return Node("", f"{word} {names}", site=site, names=step.names)
    node = _node(inner, chain, "")
    text = f"{word} {names} = {node.line}"
    return replace(node, label="", text=text, site=site or node.site, names=step.names)


def module_text(module: nn.Module) -> str:
    """A module's class, the shapes of its weights, and what it asks for."""
    shapes = [_brackets(p.shape) for p in module.parameters()]
    text = " ".join([type(module).__name__, *shapes[:4], *(["..."] if len(shapes) > 4 else [])])
    return text + _asks(of_module(module).needs)


def _brackets(shape: Iterable[int]) -> str:
    return f"[{', '.join(str(n) for n in shape)}]"


def _asks(needs: tuple[str, ...]) -> str:
    return f" ({', '.join(needs)})" if needs else ""


def inputs_of(chain: Chain) -> dict[str, tuple[str, ...]]:
    """Each input of a Chain, with the addresses of the steps that ask for it, below included."""
    asked = {name: list[str]() for name in (*chain.interface.takes, *chain.form.needs)}
    for address, name in _asked(chain, ""):
        if name in asked:
            asked[name].append(address)
    return {name: tuple(dict.fromkeys(addresses)) for name, addresses in asked.items()}


def _asked(chain: Chain, prefix: str, site: str = "") -> Iterable[tuple[str, str]]:
    """Pairs of an address and a name that the step there asks the chain's caller for."""
    bound: set[str] = set()

    def visit(step: Step, site: str) -> Iterable[tuple[str, str]]:
        if isinstance(step, Site):
            site = step.name
        elif isinstance(step, Let):
            site = site or step.names[0]
        names: tuple[str, ...] = ()
        if isinstance(step, Call):
            names, site = step.signature.needs, site or step.name
        elif isinstance(step, Use):
            names, site = step.names, site or "use"
        elif isinstance(step, Ref):
            module = chain.module_at(step.name)
            if isinstance(module, Chain):
                inner = _asked(module, f"{prefix}{step.name}.")
                yield from ((a, n) for a, n in inner if n not in bound)
                bound.update(module.form.exports)
            else:
                names, site = of_module(module).needs, step.name
        yield from ((prefix + site, name) for name in names if name not in bound)
        for child in step.children if isinstance(step, Combinator) else ():
            yield from visit(child, site)
        if isinstance(step, Let):
            bound.update(step.names)

    yield from visit(chain.program, site)
