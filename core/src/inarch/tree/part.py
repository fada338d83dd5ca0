"""A stretch of a Chain as a Chain of its own, for trees that are also run by halves."""

from __future__ import annotations

from inarch.errors import InarchError
from inarch.tree.chain import Chain
from inarch.tree.edit import refuse_sharded
from inarch.tree.steps import Graft, Seq, Site, Step


def part(tree: Chain, first: str | None = None, last: str | None = None) -> Chain:
    """The steps of a tree from `first` to `last`, both included, with whatever edits are in them.

    The part shares all modules and their names with the tree; what edits provide is provided in
    every part. It takes under the tree's own name what `first` takes.

    Args:
        tree: which must give one value where the part begins and ends.
        first, last: labels of steps at the tree's first level; None is the tree's own end.

    Raises:
        InarchError: IA110 for a label that is not there, or where `last` comes before `first`;
            IA108 for a tree that FSDP2 manages.
    """
    refuse_sharded(tree)
    steps = tree.program.children
    names = [step.name if isinstance(step, Site) else "" for step in steps]
    for label in (first, last):
        if label is not None and label not in names:
            raise _absent(label, names)
    begin = 0 if first is None else names.index(first)
    end = len(steps) if last is None else names.index(last) + 1
    if end <= begin:
        raise _absent(last or "", names[begin:])
    provided: list[Step] = [s for s in steps[:begin] if isinstance(s, Graft)]
    twin = tree._twin()  # pyright: ignore[reportPrivateUsage]
    twin._write(Seq(*provided, *steps[begin:end]))  # pyright: ignore[reportPrivateUsage]
    return twin


def _absent(label: str, names: list[str]) -> InarchError:
    return InarchError(
        "IA110",
        f"no step `{label}` to begin or end a part with",
        why=f"the steps are: {', '.join(name for name in names if name)}",
        remedy="name two of them, in their order",
    )
