"""Slots: the modules of an adapter, and what they hold at present."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from inarch.adapters.memory import Flat, Key, Place, places
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


@dataclass(eq=False)
class Slot:
    """What every model that has an adapter shares of it.

    Attributes:
        content: what it holds now.
        places: where its parameters are, and its edges' buffers.
        flats: the memory they were given. A copy of a slot has none: they lie by themselves.
        patterns: what is known of files like those that were put in, the last one's first.
    """

    content: Content
    places: Mapping[Key, Place]
    flats: Sequence[Flat] = ()
    patterns: tuple[Pattern, ...] = ()

    @classmethod
    def of(cls, content: Content, edits: Sequence[Edit], flats: Sequence[Flat] = ()) -> Slot:
        """The slot of what some edits bring."""
        return cls(content, places(edits) | places(edits, of_buffers=True), flats)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "flats": (), "patterns": ()}
