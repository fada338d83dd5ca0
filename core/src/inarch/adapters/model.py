"""Model: a foundation model and the adapters put into it. A value."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from copy import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from torch import nn

from inarch.adapters.adapter import SiteView
from inarch.adapters.asks import asked, asks_of
from inarch.adapters.foundation import Foundation
from inarch.adapters.graft import by_tree, filled, installed
from inarch.adapters.inputs import Request, read_inputs
from inarch.adapters.member import Member, Members
from inarch.adapters.merge import Merged, merged
from inarch.adapters.packing import packed_trees
from inarch.adapters.row_edges import has_rows, other_batch
from inarch.adapters.rows import Row, Rows, in_rows, of_rows, rows_of
from inarch.adapters.stepping import left, stepped
from inarch.adapters.telling import tell
from inarch.adapters.vocabulary import taught, with_words
from inarch.errors import InarchError
from inarch.plugins.hooks import picture
from inarch.resolve.arrange import Order, arrange, arranged
from inarch.resolve.digest import identity_of, of_members
from inarch.resolve.refusal import refuse
from inarch.stack import AdapterSpec, Stack, specs_of
from inarch.tree import Chain
from inarch.tree.diff import diff

if TYPE_CHECKING:
    from inarch.adapters.swap import Filling
    from inarch.distribute import Spread  # what sharding attaches; nothing here makes one
    from inarch.nn.tokenizer import Tokenizer


class Model(Foundation):
    """A foundation model, adapted or not.

    A model is a value: `adapt`, `without` and `merge` give new ones, and the one they are called
    on stays as it is. All that are made of one base share its weights, so any number of them live
    side by side for the price of their adapters. Placing, casting and freezing therefore belong
    to the base: it is placed when it is loaded, frozen and in evaluation mode.

    Args:
        trees, config, roles, checkpoint, tokenizer, family: see `Foundation`.
    """

    def __init__(self, trees: Mapping[str, Chain], config: Any = None, **known: Any) -> None:
        super().__init__(trees, config, **known)
        self.adapters = Members()
        self.order = Order()
        self.layout: Spread | None = None
        self.row_adapters: Rows | None = None
        self._grown: Mapping[str, Tokenizer] = {}
        self._made: Mapping[str, Chain] = {}
        self._merged: Merged | None = None
        self._packed = False

    # What its adapters make of it

    @property
    def tokenizers(self) -> Mapping[str, Tokenizer]:
        """The tokenizers, by tree, with the tokens that adapters taught."""
        return {**self.sites.tokenizers, **self._grown}

    def read_inputs(self, given: Mapping[str, Any], request: Request) -> dict[str, Any]:
        """What the trees get for the inputs that adapters added, each read by its adapter.

        Args:
            given: a user's values by name.
            request: what a task is about to do, which the values must suit.

        Raises:
            InarchError: IA507 where an adapter's input is missing, IA508 for one that none asks
                for, IA505 for a value that can't be one.
        """
        return read_inputs(self.adapters, given, request)

    def resting(self, start: float, end: float) -> tuple[str, ...]:
        """The adapters that do nothing in a step of sampling, from one share done to another."""
        return tuple(
            m.name for m in self.adapters if not m.merged and not m.adapter.acts(start, end)
        )

    @property
    def digest(self) -> str:
        """What identifies the stack this model has: equal for every order it may be written in.

        It covers each adapter's name, plugin, options, present scale, file and edits, and which
        are merged; not the base, which `fingerprint` is for, and not what training changed.
        """
        return of_members(self.order.names, self.adapters)

    @property
    def asks(self) -> dict[str, Any]:
        """What its adapters ask of its tasks, by the names of their arguments: their defaults."""
        return asked(self.adapters, installed())

    # Adapting

    def adapt(self, *adapters: AdapterSpec | Stack | str) -> Self:
        """A new model with more adapters; this one is untouched and shares its weights with it.

        Args:
            adapters: made by `inarch.adapter`, ids of trained weights, or stacks.

        The order they are given in means nothing: what they do decides, and where that leaves two
        results, what is declared. See `order` and `digest`.

        Raises:
            InarchError: 4xx, all that is wrong at once; nothing was changed.
        """
        from inarch.resolve.fit import fitted  # which knows what a Model is

        self._refuse_shared()
        specs = specs_of(adapters)
        drafts, problems = fitted(self, specs)
        order, more = arranged(
            [*self.adapters, *drafts], self.pristine, [spec.name for spec in specs], self.order
        )
        refuse([*problems, *more])
        model = self._with([*self.adapters, *(filled(d, self) for d in drafts)], order)
        tell(model, self)
        return model

    def without(self, *names: str) -> Self:
        """A new model without some adapters; the others keep their modules and settings.

        Raises:
            InarchError: IA108 for a model that FSDP2 shares out, or whose layers are split with
                what was merged into them.
        """
        gone = [self.adapters[name] for name in names]
        if self.layout is None or not self.layout.lets_go(gone):
            self._refuse_shared()
        members = left(self.adapters, names, self.order)
        return self._with(members, self.order.of([member.name for member in members]))

    def merge(self, *names: str) -> Self:
        """A new model whose weights contain the named adapters; all that can be, by default.

        The sums are made in float32 and rounded once. This model, and the base, keep their own
        weights, so dropping the merged adapter with `without` restores the base bit for bit.

        Raises:
            InarchError: IA409 where an adapter can't be merged, what it makes is not finite, or
                it acts on what an adapter that is to stay unmerged does at the same site.
        """
        self._refuse_shared()
        chosen = set(names) if names else set(self.adapters.names)
        for name in chosen:
            self.adapters[name]
        members = [m.as_merged() if m.name in chosen else m for m in self.adapters]
        return self._with(members)

    def prepare(self, name: str, weights: str | Path) -> Filling:
        """Weights for `swap`, read and checked now and put in later, any number of times.

        Args:
            name: of the adapter they are for.
            weights: a file or folder, or the id of trained weights that a package ships.

        Raises:
            InarchError: as `swap`.
        """
        from inarch.adapters.swap import prepared

        self._refuse_shared()
        return prepared(self, self.adapters[name], weights)

    def swap(self, name: str, weights: str | Path | Filling) -> None:
        """Put other weights into an adapter, in place: one copy, and nothing is compiled again.

        The adapter's modules are shared, so every model that has them follows, `digest` and
        `save_adapter` included. Its name, options, scale and whether it trains stay. What training
        made of the weights is overwritten: save it before.

        Args:
            name: of the adapter.
            weights: what `prepare` takes, or what it gave.

        Raises:
            InarchError: IA108 for a model that lies over several processes, IA401 for what is no
                weights, IA498 where the file would make another structure than the adapter has,
                or it is merged here; 2xx and 4xx as `adapt` has them for the file. Nothing was
                changed.
        """
        from inarch.adapters.swap import Filling, prepared, put_in

        self._refuse_shared()
        member = self.adapters[name]
        ready = isinstance(weights, Filling)
        put_in(weights if ready else prepared(self, member, weights), member)

    def combine(
        self, weights: Mapping[str, float], *, name: str = "mix", rank: int | None = None
    ) -> Self:
        """A new model with one adapter in place of several: their weighted sum.

        LoRAs are summed by rank: their A's under one another, their B's side by side, so that there
        are no cross terms. What a part's own scale makes of it now counts; the sum's is 1.

        Args:
            weights: for the name of each part, what it is multiplied by; below 0 takes it away.
            name: of the sum.
            rank: the most it may have at a layer, by the best approximation of that rank; without
                one it is the sum of the parts' ranks, and exact.

        Raises:
            InarchError: IA403 for a name the model has not, IA499 where there is no such sum, 4xx
                as for `adapt`. This model is untouched.
        """
        from inarch.adapters.combine import combined

        self._refuse_shared()
        members = combined(self, weights, name, rank, identity_of)
        order, problems = arranged(members, self.pristine, names=[name])
        refuse(problems)
        model = self._with(members, order)
        tell(model, self)
        return model

    def packed(self) -> Self:
        """A new model that makes queries, keys and values in one product, and gates and ups.

        Fewer and larger operations, of the same weights: the base's are laid out anew once, in
        this model and all that share them, and no second copy of them stays. Names, values and
        the state dict are as before. Adapters fit as they do otherwise, and what `adapt`, `without`
        and `merge` make of a packed model is packed too. Layers whose inputs an adapter makes
        different stay apart. What is hooked to a packed layer isn't called.

        Raises:
            InarchError: IA108 for a model that lies over several processes.
        """
        self._refuse_shared()
        return self._with(self.adapters, self.order if self.adapters else None, packed=True)

    def unpacked(self) -> Self:
        """This model, or one as it was before `packed`, of the same adapters."""
        if not self._packed:
            return self
        apart = copy(self)
        apart._packed = False
        return apart._with(self.adapters, self.order if self.adapters else None)

    def _with(
        self, members: Sequence[Member], order: Order | None = None, *, packed: bool = False
    ) -> Self:
        """The pristine trees with these adapters in, in canonical order, packed if this one is."""
        order = order or arrange(members, self.pristine)
        by_name = {member.name: member for member in members}
        ordered = [by_name[name] for name in order.names]
        packed = packed or self._packed
        trees: Mapping[str, Chain] | None = None
        below: Merged | None = None
        grown: Mapping[str, Tokenizer] = {}
        if self.layout is not None and self.layout.grafted is not None:
            trees, grown = self.layout.grafted(ordered)
        elif self.layout is None and not packed and self.trees == self._made:
            trees = stepped(self, ordered, order)
        if trees is None:
            below = merged(self.pristine, ordered, self._merged)
            live = [m for m in ordered if not m.merged]
            trees, grown = adapted(below.trees, self.sites, live)
        if packed:
            trees = packed_trees(trees, self.sites)
        model = type(self)(
            trees,
            self.config,
            roles=self.roles,
            checkpoint=self.checkpoint,
            tokenizer=({**self.sites.tokenizers, **grown}).get("", self.tokenizer),
            family=self.family,
        )
        model._grown, model._made, model._merged = grown, dict(trees), below
        model.pristine = self.pristine
        model.adapters = Members(members)
        model.order = order
        model._sites = self._sites
        model._packed = packed
        if self.layout is not None:
            model.layout, model._fingerprint = self.layout, self.fingerprint()
        return model

    def rows(self, adapters: Sequence[Row]) -> Self:
        """This model for batches in which each row has adapters of its own.

        Rows don't see each other: what is no number in one of them stays there. It shares all
        weights with this one; of LoRA's it holds a copy that is laid out for the rows.

        Args:
            adapters: one entry a row: a name, None for the base, or several names, which act in
                this model's order.

        Raises:
            InarchError: IA403 for an adapter this model doesn't have, IA513 for entries that can't
                be, or an adapter that is merged, IA514 for one that can't run on some rows only.
        """
        self._refuse_shared()
        return in_rows(self, rows_of(self, adapters))

    def refuse_batch(self, count: int, tree: Chain) -> None:
        """Refuse a batch that isn't of this model's rows, before one row is taken for all of them.

        Args:
            count: of rows in the batch.
            tree: that it is for. One that no row has an adapter in takes any batch.

        Raises:
            InarchError: IA513.
        """
        rows = self.row_adapters
        if rows is not None and count != len(rows) and has_rows(tree):
            raise other_batch(len(rows), count)

    def _refuse_shared(self) -> None:
        """Refuse to make another model of one that lies over several processes, or is of rows."""
        if self.row_adapters is not None:
            raise of_rows()
        if self.layout is not None:
            raise InarchError(
                "IA108",
                "a model that was sharded can't be adapted, merged, packed or swapped into",
                why="each process has its part of what it was made of",
                remedy="do so first; shard the value that will run, last",
            )

    def diff(self, other: Model) -> str:
        """What differs from another model, usually the base, as source; empty for nothing."""
        parts: list[str] = []
        for name, tree in self.trees.items():
            text = diff(other.trees[name], tree) if name in other.trees else ""
            if text:
                parts.append(f"# {name}\n{text}" if name else text)
        return "\n".join(parts)

    # Saving and training

    def adapter_parameters(self, name: str) -> dict[str, nn.Parameter]:
        """The parameters of one adapter, by the address of their module and their own name."""
        return self.adapters[name].parameters()

    def save_adapter(self, name: str, folder: str | Path) -> Path:
        """Save one adapter in its own format, with the base's fingerprint.

        A model that lies over processes is asked by all of them; the first writes the whole.

        Raises:
            InarchError: IA403 for no such adapter, IA408 where it has no format, or its weights are
                no longer what was merged here.
        """
        member = self.adapters[name]
        member.refuse_rewritten()
        path, layout = Path(folder), self.layout
        modules = member.modules if layout is None else layout.whole(member)

        about = {"fingerprint": self.fingerprint()}
        if self.checkpoint is not None:
            about["base"] = self.checkpoint.path.name
        asks = asks_of(member, installed())
        if asks:
            about["asks"] = json.dumps(asks, sort_keys=True)
        if member.header is not None and member.header.path.parent.resolve() == path.resolve():
            member.header.fingerprint()  # of which its digest is, while the file is there

        def write() -> None:
            path.mkdir(parents=True, exist_ok=True)
            member.adapter.write(path, modules, about)

        if layout is None:
            write()
        else:
            layout.by_first(write)
        return path

    def _repr_html_(self) -> str | None:
        """How notebooks show it, where a package that draws is installed."""
        return picture(self, "fragment")

    def __repr__(self) -> str:
        head = f"{type(self).__name__} with {', '.join(self.adapters.names) or 'no adapters'}"
        trees = (f"{name}: {tree!r}" if name else repr(tree) for name, tree in self.trees.items())
        return "\n".join([head, *trees])


def adapted(
    trees: Mapping[str, Chain], sites: SiteView, members: Sequence[Member]
) -> tuple[dict[str, Chain], dict[str, Tokenizer]]:
    """The trees with what some members do, and the tokenizers that grow of it.

    Args:
        trees: by name.
        sites: of the pristine model.
        members: in canonical order.
    """
    words, grown = taught(sites, members)
    live = with_words([edit for m in members for edit in m.edits], words)
    of_tree = by_tree(live, trees)
    return {name: tree.edit(of_tree[name]) for name, tree in trees.items()}, grown
