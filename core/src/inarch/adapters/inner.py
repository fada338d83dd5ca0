"""Adapters of a tree that an adapter brings: it is a model of its own, and is adapted first.

A ControlNet brings a copy of an encoder with weights of its own. What is to stand in that copy is
asked for with it (`inarch.adapter("controlnet", ..., adapters=[...])`), is checked and arranged as
in any other model, and never meets what others do to the base.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from inarch.adapters.adapter import Adapter
from inarch.adapters.graft import Draft, filled, installed, sketched
from inarch.adapters.model import Model
from inarch.adapters.telling import tell
from inarch.errors import InarchError
from inarch.resolve.arrange import Order, arranged
from inarch.resolve.digest import digest, identity
from inarch.resolve.fit import fitted
from inarch.resolve.refusal import refuse
from inarch.tree import Chain

if TYPE_CHECKING:
    from inarch.stack import AdapterSpec
    from inarch.weights import WeightsHeader


@dataclass(frozen=True, slots=True)
class Origin:
    """What the tree's weights are of: the adapter's file, or the base where there is none."""

    fingerprint: str


class InnerModel(Model):
    """The tree that an adapter brings, as a model."""

    config: Origin

    def fingerprint(self) -> str:
        return self.config.fingerprint


@dataclass(eq=False)
class Inner:
    """The adapters of an adapter's own tree, drafted.

    Attributes:
        base: the tree without them.
        drafts: of the adapters.
        order: theirs.
    """

    base: InnerModel
    drafts: tuple[Draft, ...]
    order: Order

    @property
    def digest(self) -> str:
        told = {
            d.name: identity(d.adapter, d.kind, d.edits, d.header, d.spec.scale)
            for d in self.drafts
        }
        return digest(self.order.names, told)

    def filled(self) -> InnerModel:
        """The tree with its adapters in, whose modules are filled. The tree's own are already."""
        model = self.base._with([filled(draft, self.base) for draft in self.drafts], self.order)  # pyright: ignore[reportPrivateUsage]
        tell(model, self.base)
        return model

    def sketched(self) -> Chain:
        """The same on the meta device."""
        edits = {draft.name: sketched(draft, self.base.sites) for draft in self.drafts}
        return self.base.tree.edit([edit for name in self.order.names for edit in edits[name]])


def inner_of(
    spec: AdapterSpec, adapter: Adapter, header: WeightsHeader | None, model: Model
) -> Inner:
    """The drafts of the adapters that are asked for in an adapter's own tree.

    Args:
        spec: of the adapter, which asks for some.
        adapter: whose edits were made.
        header: of its file.
        model: what it is for.

    Raises:
        InarchError: IA429 for an adapter without such a tree, or adapters that can't be in one;
            4xx as in any model.
    """
    own = adapter.own_tree()
    if own is None:
        raise _refused(
            f"`{spec.name}` has no tree that adapters could be put in",
            spec.where or f"adapter `{spec.name}`: adapters",
            f"adapters of kind {spec.use} bring none",
            "put them into the model, beside it",
        )
    origin = model.fingerprint() if header is None else header.fingerprint()
    base = InnerModel({"": own.chain}, Origin(origin), roles=own.roles)
    specs = [dataclasses.replace(one, where=one.where or spec.where) for one in spec.adapters]
    drafts, problems = fitted(base, specs)
    problems += [found for draft in drafts for found in _unfit(draft, spec)]
    order, more = arranged(drafts, base.pristine, names=[one.name for one in specs])
    refuse([*problems, *more])
    return Inner(base, tuple(drafts), order)


def _unfit(draft: Draft, outer: AdapterSpec) -> Iterator[InarchError]:
    """IA429 for what an adapter can only do to a whole model."""
    asked = [name for edit in draft.edits for name in edit.inputs]
    own: Mapping[str, bool] = {
        f"it asks for `{asked[0] if asked else ''}`": bool(asked),
        "it lets values out of the tree": any(edit.export for edit in draft.edits),
        "it guides the steps of sampling": type(draft.adapter).guide is not Adapter.guide,
        "it teaches words": bool(draft.adapter.learned()),
        "it asks for settings of the model's tasks": bool(_asks(draft)),
        "its name is that of the adapter around it": draft.name == outer.name,
    }
    for why in (words for words, holds in own.items() if holds):
        yield _refused(
            f"`{draft.name}` can't be in the tree of `{outer.name}`",
            draft.spec.where or f"adapter `{outer.name}`: adapters",
            why,
            "give it another name"
            if draft.name == outer.name
            else "put it into the model, beside that adapter",
        )


def _asks(draft: Draft) -> Mapping[str, object]:
    from inarch.adapters.asks import asks_of

    return asks_of(draft, installed())


def _refused(what: str, where: str, why: str, remedy: str) -> InarchError:
    return InarchError("IA429", what, where=where, why=why, remedy=remedy)
