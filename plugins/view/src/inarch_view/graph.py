"""A model as a graph in text: Graphviz's DOT or Mermaid, equal layers folded.

What holds steps is a box around them; arrows are the order in which they run. What an adapter put
there has its colour, and an arrow that says what it does to the site.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import graphviz

from inarch.adapters import Model
from inarch.cli.colours import LIGHT
from inarch_view.outline import Line, outlines

_BRANCHES = ("Parallel", "Distribute", "Sum", "Product", "Concat")


@dataclass(slots=True)
class Box:
    """A node, or a box of nodes where it holds some.

    Attributes:
        key: its name in the graph.
        text: what is written on it.
        colour: the place of the adapter that put it there; -1 for the model's own.
        inside: what it holds.
        edges: arrows between keys, with what is written on them and their adapter's place.
    """

    key: str
    text: str
    colour: int = -1
    inside: list[Box] = field(default_factory=list["Box"])
    edges: list[tuple[str, str, str, int]] = field(default_factory=list[tuple[str, str, str, int]])

    branches: bool = False

    @property
    def starts(self) -> list[str]:
        """The keys of the nodes that run first: one, or one of each branch."""
        return self._ends(slice(None, 1), "starts")

    @property
    def stops(self) -> list[str]:
        """The keys of the nodes that run last."""
        return self._ends(slice(-1, None), "stops")

    def _ends(self, one: slice, side: str) -> list[str]:
        own = [box for box in self.inside if box.colour < 0 or self.colour >= 0]
        chosen = own if self.branches else own[one]
        return [key for box in chosen for key in getattr(box, side)] or [self.key]


def boxes(model: Model) -> list[Box]:
    """The trees of a model as boxes, in the model's order."""
    numbers = iter(range(1_000_000))
    places = {name: i for i, name in enumerate(model.adapters.names)}
    lines = outlines(model)[0]
    return [_box(line, name, numbers, places) for name, line in lines.items()]


def _box(line: Line, tree: str, numbers: Iterator[int], places: dict[str, int]) -> Box:
    label = line.label
    if line.folded:
        label = f"({line.folded[0]}-{line.folded[-1]}) x{len(line.folded)}"
    text = f"{label}: {line.text}" if label else line.text
    box = Box(f"n{next(numbers)}", f"{tree} {text}".strip(), places.get(line.by, -1))
    box.branches = line.text.startswith(_BRANCHES)
    added = [child for child in line.below if child.by and child.by != line.by]
    box.inside = [_box(c, "", numbers, places) for c in line.below if c not in added]
    if not box.branches:
        for before, after in zip(box.inside, box.inside[1:], strict=False):
            box.edges += [(a, b, "", -1) for a in before.stops for b in after.starts]
    if added and not box.inside and box.colour < 0:
        box.inside = [Box(f"n{next(numbers)}", box.text)]
    for child in added:
        brought = _box(child, "", numbers, places)
        kind = next((m.kind for m in line.marks if m.adapter == child.by), "provide")
        box.edges.append((brought.stops[-1], box.stops[-1], kind, brought.colour))
        box.inside.append(brought)
    return box


def dot(model: Model) -> str:
    """The graph in Graphviz's language."""
    graph = graphviz.Digraph("inarch")
    graph.attr("graph", rankdir="TB", fontname="Helvetica", compound="true", newrank="true")
    graph.attr("node", shape="box", style="rounded", fontname="Helvetica", fontsize="11")
    for box in boxes(model):
        _dot_box(graph, box)
    return graph.source.rstrip("\n")


def _dot_box(graph: graphviz.Digraph, box: Box) -> None:
    colour = f"#{LIGHT[box.colour % len(LIGHT)]}" if box.colour >= 0 else "#667085"
    label = graphviz.escape(box.text)
    if not box.inside:
        graph.node(box.key, label, color=colour, fontcolor=colour if box.colour >= 0 else "black")
        return
    with graph.subgraph(name=f"cluster_{box.key}") as inner:
        inner.attr(label=label, color=colour, style="rounded", fontsize="11")
        for one in box.inside:
            _dot_box(inner, one)
        for tail, head, text, place in box.edges:
            shade = f"#{LIGHT[place % len(LIGHT)]}" if place >= 0 else "#667085"
            style = "dashed" if place >= 0 else "solid"
            inner.edge(tail, head, label=text, color=shade, fontcolor=shade, style=style)


def mermaid(model: Model) -> str:
    """The graph in Mermaid's language."""
    lines = ["flowchart TB"]
    coloured: dict[int, list[str]] = {}
    for box in boxes(model):
        lines += _mermaid_box(box, "  ", coloured)
    for place, keys in sorted(coloured.items()):
        shade = LIGHT[place % len(LIGHT)]
        lines.append(f"  classDef a{place} stroke:#{shade},color:#{shade}")
        lines.append(f"  class {','.join(keys)} a{place}")
    return "\n".join(lines)


def _mermaid_box(box: Box, indent: str, coloured: dict[int, list[str]]) -> Iterator[str]:
    text = box.text.replace('"', "#quot;")
    if box.colour >= 0:
        coloured.setdefault(box.colour, []).append(box.key)
    if not box.inside:
        yield f'{indent}{box.key}["{text}"]'
        return
    yield f'{indent}subgraph {box.key}["{text}"]'
    for one in box.inside:
        yield from _mermaid_box(one, indent + "  ", coloured)
    yield f"{indent}end"
    for tail, head, word, place in box.edges:
        arrow = f"-. {word} .->" if place >= 0 else "-->"
        yield f"{indent}{tail} {arrow} {head}"


GRAPHS: dict[str, Callable[[Model], str]] = {"dot": dot, "mermaid": mermaid}
