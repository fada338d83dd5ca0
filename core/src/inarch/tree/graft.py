"""What one more edit makes of the expression at a site, in normal form."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import takewhile

from torch import nn

from inarch.errors import InarchError
from inarch.tree.chain import Chain
from inarch.tree.steps import Combinator, Graft, Here, Product, Ref, Seq, Site, Step, Sum, walk


def graft(site: str, step: Step, new: Graft, module_at: Callable[[str], nn.Module]) -> Step:
    """The expression `step` at a site with one more graft.

    Args:
        site: its name within the Chain.
        step: what stands there now.
        new: what an edit puts there.
        module_at: the Chain's modules by name: a Chain that is replaced may hold edits itself.

    Raises:
        InarchError: IA111 where a replacement would lose a graft, IA112 for a wrap without
            exactly one `Here()`, IA115 where the adapter has such a graft there already.
    """
    for old in _at_site(step):
        same = (old.adapter, old.kind) == (new.adapter, new.kind)
        if same and (new.kind != "tap" or old.step == new.step):
            raise duplicate(site, new.adapter, new.kind)
    if new.kind == "replace":
        _refuse_loss(site, step, new, module_at)
    return _GRAFT[new.kind](site, step, new)


def duplicate(site: str, adapter: str, kind: str) -> InarchError:
    return InarchError(
        "IA115",
        f"adapter `{adapter}` stands at `{site}` already",
        where=f"its second {kind} edit there",
        why="an adapter's name is its identity, and it makes one edit of a kind at a site",
        remedy='give the second one another name: inarch.adapter(..., name="other")',
    )


def _at_site(step: Step) -> Iterator[Graft]:
    """The grafts at a site itself, without those at sites inside what its author put there."""
    if isinstance(step, Graft):
        yield step
    if isinstance(step, Combinator) and not isinstance(step, Site):
        for child in step.children:
            yield from _at_site(child)


def grafts(step: Step, module_at: Callable[[str], nn.Module]) -> Iterator[Graft]:
    """All that edits put into a step and into the Chains in it."""
    for one in walk(step):
        if isinstance(one, Graft):
            yield one
        module = module_at(one.name) if isinstance(one, Ref) else None
        if isinstance(module, Chain):
            yield from grafts(module.program, module.module_at)


def _grafted(step: Step, kind: str) -> bool:
    """Whether an edit made this combinator, which then holds a graft of the kind."""
    return isinstance(step, Combinator) and any(
        isinstance(child, Graft) and child.kind == kind for child in step.children
    )


def _by_adapter(grafts: list[Step]) -> list[Step]:
    return sorted(grafts, key=lambda g: g.adapter)


def _add(_site: str, step: Step, new: Graft) -> Step:
    if isinstance(step, Sum) and _grafted(step, "add"):
        base, *terms = step.steps
        return Sum(base, *_by_adapter([*terms, new]))
    return Sum(step, new)


def _scale(_site: str, step: Step, new: Graft) -> Step:
    if isinstance(step, Product) and _grafted(step, "scale"):
        base, *factors = step.steps
        return Product(base, *_by_adapter([*factors, new]))
    return Product(step, new)


def _line(step: Step) -> tuple[Step, ...]:
    """The steps of a Seq that edits made, or the one step."""
    made = isinstance(step, Seq) and any(_grafted(step, k) for k in ("before", "after", "tap"))
    return step.children if made else (step,)


def _kin(steps: Iterable[Step], new: Graft) -> list[Step]:
    """The grafts at the beginning of some steps among which the new one has its place by name."""
    alike = (new.kind, new.kin)
    return list(takewhile(lambda s: isinstance(s, Graft) and (s.kind, s.kin) == alike, steps))


def _before(_site: str, step: Step, new: Graft) -> Step:
    line = _line(step)
    kin = _kin(line, new) if new.kin else []
    return Seq(*_by_adapter([new, *kin]), *line[len(kin) :])


def _after(_site: str, step: Step, new: Graft) -> Step:
    line = _line(step)
    kin = _kin(reversed(line), new) if new.kin else []
    return Seq(*line[: len(line) - len(kin)], *_by_adapter([new, *kin]))


def _tap(_site: str, step: Step, new: Graft) -> Step:
    line = list(_line(step))
    taps: list[Step] = [new]
    while isinstance(line[-1], Graft) and line[-1].kind == "tap":
        taps.append(line.pop())
    return Seq(*line, *sorted(taps, key=_tapped))


def _tapped(tap: Step) -> tuple[str, tuple[str, ...]]:
    """Taps sort by adapter, and one adapter's by the names they give."""
    return tap.adapter, tap.step.names


def _wrap(site: str, step: Step, new: Graft) -> Step:
    count = sum(isinstance(s, Here) for s in walk(new.step))
    if count != 1:
        raise InarchError(
            "IA112",
            f"the wrap of adapter `{new.adapter}` holds Here() {count} times",
            where=site,
            why="what is wrapped runs exactly once",
            remedy="let Here() stand in the step once",
        )
    return Graft(new.adapter, new.kind, _filled(new.step, step))


def _filled(step: Step, here: Step) -> Step:
    if isinstance(step, Here):
        return here
    if not isinstance(step, Combinator) or not step.children:
        return step
    return step.with_children(tuple(_filled(child, here) for child in step.children))


def _replace(_site: str, _step: Step, new: Graft) -> Step:
    return new


def _refuse_loss(site: str, step: Step, new: Graft, module_at: Callable[[str], nn.Module]) -> None:
    lost = next(grafts(step, module_at), None)
    if lost is not None:
        raise InarchError(
            "IA111",
            f"the replacement by adapter `{new.adapter}` would lose an edit",
            where=site,
            why=f"adapter `{lost.adapter}` put its {lost.kind} there",
            remedy="leave one of the two adapters out",
        )


_GRAFT: dict[str, Callable[[str, Step, Graft], Step]] = {
    "add": _add,
    "scale": _scale,
    "before": _before,
    "after": _after,
    "tap": _tap,
    "wrap": _wrap,
    "replace": _replace,
}
