"""One branch of a tree as a tree: it shares the modules, and runs nothing beside them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from inarch.tree.chain import Chain
from inarch.tree.generate import Interface
from inarch.tree.steps import Graft, Let, Ref, Seq, Site, Weight, walk


def branch(tree: Chain, label: str, takes: Sequence[str]) -> Chain:
    """The step of one label as a tree of its own, with the adapters that are in it.

    Values that adapters provide to the whole tree are provided here where the branch asks for
    them. The label is one of the tree's first Chain.

    Args:
        tree: which stays as it is.
        label: of a step in its program, such as a tower of several.
        takes: the names of the main values the branch takes.

    Raises:
        InarchError: IA110 where the tree has no such step, IA108 where FSDP2 manages it.
    """
    from inarch.tree.edit import no_site, refuse_sharded

    refuse_sharded(tree)
    found = next((s for s in walk(tree.program) if isinstance(s, Site) and s.name == label), None)
    if found is None:
        raise no_site(tree, label, "the branch of a tree")
    twin = tree._twin()  # pyright: ignore[reportPrivateUsage]
    face = tree.interface
    twin.interface = Interface(tuple(takes), None, face.keeps)
    twin._write(Seq(found))  # pyright: ignore[reportPrivateUsage]
    given = [step for step in _provided(tree) if {*step.step.names} & {*twin.form.needs}]
    program = Seq(*given, found)
    twin.interface = Interface(tuple(takes), face.inputs, face.keeps)
    _forget(twin, {step.name for step in walk(program) if isinstance(step, Ref | Weight)})
    twin._write(program)  # pyright: ignore[reportPrivateUsage]
    return twin


def _provided(tree: Chain) -> Iterator[Graft]:
    """What adapters provide before the tree's first step."""
    for step in tree.program.children:
        if isinstance(step, Graft) and step.kind == "provide" and isinstance(step.step, Let):
            yield step


def _forget(twin: Chain, kept: set[str]) -> None:
    """Take away the weights of the other branches: they are not this tree's."""
    roots = {name.partition(".")[0] for name in kept}
    for held in (twin._modules, twin._parameters):
        for name in [n for n in held if n not in roots]:
            del held[name]
    twin.ties = ()
