"""Slots: the modules of an adapter, and what they hold at present."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from inarch.adapters.flat import Flat, Key
from inarch.adapters.memory import Place, places
from inarch.stack import AdapterSpec
from inarch.tree import Edit

if TYPE_CHECKING:
    from inarch.adapters.adapter import Adapter
    from inarch.adapters.graft import Draft
    from inarch.adapters.pattern import Pattern
    from inarch.weights import WeightsHeader


@dataclass(frozen=True, slots=True, eq=False)
class Content:
    """What an adapter's modules hold.

    Attributes:
        adapter: what its plugin made of its options and its file.
        header: of the file; None for weights that came from none.
        use, weights, options, where: the specification's words for it.
        made: what it was made of that no file holds, for its digest.
    """

    adapter: Adapter
    header: WeightsHeader | None
    use: str
    weights: str | None
    options: Mapping[str, Any]
    where: str
    made: Mapping[str, Any] | None = None

    @classmethod
    def of(cls, draft: Draft) -> Content:
        spec = draft.spec
        return cls(draft.adapter, draft.header, spec.use, spec.weights, spec.options, spec.where)

    def told(self, asked: AdapterSpec) -> AdapterSpec:
        """A specification, asking for this in place of what it asked for."""
        return replace(
            asked, use=self.use, weights=self.weights, options=self.options, where=self.where
        )


@dataclass(frozen=True, eq=False)
class Frozen:
    """What an adapter was when a model was merged.

    Attributes:
        content: what its modules held.
        scale: how strongly it acted.
        versions: of its parameters, which count what is written into them; None in a copy, whose
            parameters are counted anew.
    """

    content: Content
    scale: float
    versions: tuple[int, ...] | None

    def __getstate__(self) -> dict[str, Any]:
        return {"content": self.content, "scale": self.scale, "versions": None}


@dataclass(eq=False)
class Slot:
    """What every model that has an adapter shares of it.

    Attributes:
        content: what it holds now.
        edits: whose modules hold it.
        flats: the memory they were given. A copy of a slot has none: they lie by themselves.
        patterns: what is known of files like those that were put in, the last one's first.
    """

    content: Content
    edits: Sequence[Edit]
    flats: Sequence[Flat] = ()
    patterns: tuple[Pattern, ...] = ()

    @cached_property
    def places(self) -> Mapping[Key, Place]:
        """Where its parameters are, and its edges' buffers."""
        return places(self.edits)

    def __getstate__(self) -> dict[str, Any]:
        return {"content": self.content, "edits": self.edits, "flats": (), "patterns": ()}
