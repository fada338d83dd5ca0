"""Model: trees, what is known of them, and the adapters put into them. A value."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from torch import Tensor, nn

from inarch.adapters.adapter import SiteView
from inarch.adapters.asks import asked, asks_of
from inarch.adapters.example import Example
from inarch.adapters.graft import filled, installed, split
from inarch.adapters.inputs import Request, read_inputs
from inarch.adapters.member import Member, Members
from inarch.adapters.merge import merged
from inarch.adapters.telling import tell
from inarch.adapters.vocabulary import taught, with_words
from inarch.errors import InarchError
from inarch.identity import of_tensors
from inarch.plugins.hooks import picture
from inarch.resolve.arrange import Order, arrange, arranged
from inarch.resolve.digest import of_members
from inarch.resolve.refusal import refuse
from inarch.stack import AdapterSpec, Stack, specs_of
from inarch.tree import Chain, Found, Selection
from inarch.tree.address import compiled
from inarch.tree.diff import diff

if TYPE_CHECKING:
    from inarch.nn.tokenizer import Tokenizer
    from inarch.weights import Checkpoint


class Model:
    """A foundation model, adapted or not.

    A model is a value: `adapt`, `without` and `merge` give new ones, and the one they are called
    on stays as it is. All that are made of one base share its weights, so any number of them live
    side by side for the price of their adapters. Placing, casting and freezing therefore belong
    to the base: it is placed when it is loaded, frozen and in evaluation mode.

    Args:
        trees: by name; a model of one tree calls it "".
        config: what the family's `parse_config` made of the checkpoint's configuration.
        roles: for each role, the address pattern of its sites.
        checkpoint: where the weights came from.
        tokenizer: for models of text.
        family: the id of the foundation model's plugin.
    """

    ignored: ClassVar[tuple[str, ...]] = ()
    """Patterns of tensors in old checkpoints that the tree has no place for and need not."""

    def __init__(
        self,
        trees: Mapping[str, Chain],
        config: Any = None,
        *,
        roles: Mapping[str, str] | None = None,
        checkpoint: Checkpoint | None = None,
        tokenizer: Tokenizer | None = None,
        family: str = "",
    ) -> None:
        self.trees = dict(trees)
        self.config = config
        self.roles = dict(roles or {})
        self.checkpoint = checkpoint
        self.tokenizer = tokenizer
        self.family = family
        self.pristine: Mapping[str, Chain] = self.trees
        self.adapters = Members()
        self.order = Order()
        self._sites: SiteView | None = None
        self._grown: Mapping[str, Tokenizer] = {}

    @classmethod
    def reading(cls, checkpoint: Checkpoint) -> Checkpoint:
        """The checkpoint as this family reads it: the same, or one that presents it otherwise.

        For names that files of one family have in two ways, and tokenizers in files of their own.
        """
        return checkpoint

    @classmethod
    def dtype_of(cls, config: Any, tree: str, dtype: torch.dtype) -> torch.dtype:
        """The dtype a tree is loaded in where `dtype` was asked for, or is the file's own."""
        return dtype

    @classmethod
    def parse_config(cls, config: dict[str, Any]) -> Any:
        """The family's configuration from a checkpoint's; unsupported settings are errors."""
        raise NotImplementedError

    @classmethod
    def build(cls, config: Any) -> dict[str, Chain]:
        """The trees of a configuration."""
        raise NotImplementedError

    @classmethod
    def tiny_configs(cls) -> Mapping[str, dict[str, Any]]:
        """Configurations of very small models of this family, by what each of them shows.

        As a checkpoint's `config.json` has them, of a few thousand weights, together with every
        branch that the tree takes. Tests make random models of them: `inarch.testing` does for
        every adapter that is installed.
        """
        return {}

    def examples(self) -> Sequence[Example]:
        """Inputs of small forwards, on the model's device: at least one for each tree.

        The resolver proves a stack on them, and tests run them. Values are the same each time.
        """
        return ()

    # What it is

    @property
    def tree(self) -> Chain:
        """The tree of a model that has one."""
        if len(self.trees) != 1:
            raise InarchError(
                "IA412",
                "this model has several trees",
                why=f"they are: {', '.join(self.trees)}",
                remedy='name one: model.trees["..."]',
            )
        return next(iter(self.trees.values()))

    @property
    def sites(self) -> SiteView:
        """The sites of the pristine trees."""
        if self._sites is None:
            settings = None if self.checkpoint is None else self.checkpoint.config
            own = self.own_tokenizers()
            self._sites = SiteView(self.pristine, self.roles, settings, own)
        return self._sites

    def own_tokenizers(self) -> Mapping[str, Tokenizer]:
        """The base's tokenizers, by the tree that reads their ids."""
        return {} if self.tokenizer is None else dict.fromkeys(self.trees, self.tokenizer)

    @property
    def tokenizers(self) -> Mapping[str, Tokenizer]:
        """The tokenizers, by tree, with the tokens that adapters taught."""
        return {**self.sites.tokenizers, **self._grown}

    @property
    def inputs(self) -> dict[str, tuple[str, ...]]:
        """Each input by name, with the addresses of the steps that ask for it."""
        inputs: dict[str, tuple[str, ...]] = {}
        for name, tree in self.trees.items():
            for key, where in tree.inputs.items():
                inputs[key] = inputs.get(key, ()) + tuple(_joined(name, a) for a in where)
        return inputs

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

    def select(
        self,
        pattern: str | None = None,
        *,
        role: str | None = None,
        type: type | tuple[type, ...] | None = None,
        where: Callable[[Found], bool] | None = None,
        count: int | None = None,
    ) -> Selection:
        """The sites of a pattern, a role (`attention.*`), a class and a predicate, all of them.

        Raises:
            InarchError: IA113 for a malformed pattern, IA114 where the count is another, IA402
                for a role the model doesn't have.
        """
        wanted = None if role is None else {s.address for s in self.sites.find([role])}
        found: list[Found] = []
        for name, tree in self.trees.items():
            for one in tree.select(type=type, where=where):
                found.append(Found(_joined(name, one.address), one.step, one.module, one.chain))
        if pattern is not None:
            match = compiled(pattern).fullmatch
            found = [one for one in found if match(one.address)]
        if wanted is not None:
            found = [one for one in found if one.address in wanted]
        asked = " and ".join(part for part in (pattern, role and f"role {role}") if part)
        selection = Selection(tuple(found), asked or "everything")
        return selection if count is None else selection.expect(count)

    def state_dict(self) -> dict[str, Tensor]:
        """Every tensor by its name: the base's as its checkpoint has them, and the adapters'."""
        return {
            _joined(name, key): tensor
            for name, tree in self.trees.items()
            for key, tensor in tree.state_dict().items()
        }

    @property
    def digest(self) -> str:
        """What identifies the stack this model has: equal for every order it may be written in.

        It covers each adapter's name, plugin, options, present scale, file and edits, and which
        are merged; not the base, which `fingerprint` is for, and not what training changed.
        """
        return of_members(self.order.names, self.adapters)

    def parameters(self) -> Iterator[nn.Parameter]:
        for tree in self.trees.values():
            yield from tree.parameters()

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    def fingerprint(self) -> str:
        """What identifies the base's weights: from its file, else from the tensors themselves."""
        if self.checkpoint is not None:
            return self.checkpoint.fingerprint()
        return of_tensors(
            (_joined(name, key), tensor)
            for name, tree in self.pristine.items()
            for key, tensor in sorted(tree.state_dict().items())
        )

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

        specs = specs_of(adapters)
        drafts, problems = fitted(self, specs)
        order, more = arranged(
            [*self.adapters, *drafts], self.pristine, names=[spec.name for spec in specs]
        )
        refuse([*problems, *more])
        model = self._with([*self.adapters, *(filled(d, self) for d in drafts)], order)
        tell(model, self)
        return model

    def without(self, *names: str) -> Self:
        """A new model without some adapters; the others keep their modules and settings."""
        for name in names:
            self.adapters[name]
        return self._with(
            [_without(m, names, self.order) for m in self.adapters if m.name not in names]
        )

    def merge(self, *names: str) -> Self:
        """A new model whose weights contain the named adapters; all that can be, by default.

        The sums are made in float32 and rounded once. This model, and the base, keep their own
        weights, so dropping the merged adapter with `without` restores the base bit for bit.

        Raises:
            InarchError: IA409 where an adapter can't be merged, what it makes is not finite, or
                it acts on what an adapter that is to stay unmerged does at the same site.
        """
        chosen = set(names) if names else set(self.adapters.names)
        for name in chosen:
            self.adapters[name]
        members = [replace(m, merged=True) if m.name in chosen else m for m in self.adapters]
        return self._with(members)

    def _with(self, members: Sequence[Member], order: Order | None = None) -> Self:
        """The pristine trees with these adapters in, in canonical order."""
        order = order or arrange(members, self.pristine)
        by_name = {member.name: member for member in members}
        ordered = [by_name[name] for name in order.names]
        trees = merged(self.pristine, ordered)
        active = [m for m in ordered if not m.merged]
        words, grown = taught(self.sites, active)
        live = with_words([edit for m in active for edit in m.edits], words)
        for name, tree in list(trees.items()):
            own = [inner for edit in live for t, inner in [split(edit, trees)] if t == name]
            trees[name] = tree.edit(own)
        model = type(self)(
            trees,
            self.config,
            roles=self.roles,
            checkpoint=self.checkpoint,
            tokenizer=({**self.sites.tokenizers, **grown}).get("", self.tokenizer),
            family=self.family,
        )
        model._grown = grown
        model.pristine = self.pristine
        model.adapters = Members(members)
        model.order = order
        model._sites = self._sites
        return model

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

        Raises:
            InarchError: IA403 for no such adapter, IA408 where it has no format.
        """
        member = self.adapters[name]
        path = Path(folder)
        path.mkdir(parents=True, exist_ok=True)
        about = {"fingerprint": self.fingerprint()}
        if self.checkpoint is not None:
            about["base"] = self.checkpoint.path.name
        asks = asks_of(member, installed())
        if asks:
            about["asks"] = json.dumps(asks, sort_keys=True)
        member.adapter.write(path, member.modules, about)
        return path

    def _repr_html_(self) -> str | None:
        """How notebooks show it, where a package that draws is installed."""
        return picture(self, "fragment")

    def __repr__(self) -> str:
        head = f"{type(self).__name__} with {', '.join(self.adapters.names) or 'no adapters'}"
        trees = (f"{name}: {tree!r}" if name else repr(tree) for name, tree in self.trees.items())
        return "\n".join([head, *trees])


def _without(member: Member, gone: Sequence[str], order: Order) -> Member:
    """The member as it stands without some others: after those that it came after until now."""
    kept = {v.a for v in order.verdicts if v.word != "commute" and v.b == member.name}
    told = dict.fromkeys([*member.spec.after, *sorted(kept)])
    after = tuple(name for name in told if name not in gone)
    before = tuple(name for name in member.spec.before if name not in gone)
    return replace(member, spec=replace(member.spec, after=after, before=before))


def _joined(tree: str, address: str) -> str:
    return f"{tree}.{address}" if tree and address else tree or address
