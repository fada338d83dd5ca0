"""The protocol: what an adapter sees of a model, and what it gives back."""

from __future__ import annotations

import difflib
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import msgspec
from torch import Tensor, nn

from inarch.adapters.example import Example
from inarch.adapters.guidance import Ahead, Moment
from inarch.adapters.inputs import AddedInput, Request
from inarch.adapters.vocabulary import Learned
from inarch.errors import InarchError
from inarch.tree import Chain, Edit
from inarch.tree.address import compiled
from inarch.tree.select import sites as sites_of
from inarch.weights.blank import blank

if TYPE_CHECKING:
    from inarch.adapters.foundation import Foundation
    from inarch.nn.tokenizer import Tokenizer
    from inarch.weights import WeightsHeader


@dataclass(frozen=True, slots=True)
class TargetSite:
    """A site of the pristine model.

    Attributes:
        address: begins with the tree's name in a model of several trees.
        module: the base's own module, to read from; None where a function or combinator stands.
        tree: the name of its tree, empty in a model of one.
    """

    address: str
    module: nn.Module | None
    tree: str


@dataclass(frozen=True, slots=True)
class OwnTree:
    """A tree that an adapter brings, and that may be adapted itself.

    Attributes:
        chain: the step of one of the adapter's edits.
        roles: for each role, the address pattern of its sites in the tree.
    """

    chain: Chain
    roles: Mapping[str, str]


class SiteView:
    """The pristine model as an adapter sees it: its sites, by role or by address.

    Args:
        trees: the trees before any adapter.
        roles: for each role, the address pattern its sites match.
        settings: the checkpoint's configuration as its files have it, empty where there is none.
        tokenizers: the base's, by the tree that reads their ids.
        family: what builds trees of such settings.
    """

    def __init__(
        self,
        trees: Mapping[str, Chain],
        roles: Mapping[str, str],
        settings: Mapping[str, Any] | None = None,
        tokenizers: Mapping[str, Tokenizer] | None = None,
        family: type[Foundation] | None = None,
    ) -> None:
        self._matched: dict[str, set[str]] = {}
        self.trees = trees
        self.roles = roles
        self.settings: Mapping[str, Any] = settings or {}
        self.tokenizers = tokenizers or {}
        self.family = family
        self.all: dict[str, TargetSite] = {
            found.address: TargetSite(found.address, found.module, name)
            for name, tree in trees.items()
            for found in sites_of(tree, f"{name}." if name else "")
        }

    @cached_property
    def layers(self) -> tuple[str, ...]:
        """The addresses at which modules stand, in the order of the model."""
        return tuple(address for address, site in self.all.items() if site.module is not None)

    def module_at(self, address: str) -> nn.Module | None:
        """What stands at an address; None for a function, a combinator, or no site."""
        site = self.all.get(address)
        return None if site is None else site.module

    def find(self, targets: Sequence[str], *, modules: bool = False) -> list[TargetSite]:
        """The sites of roles (`attention.*`) and address patterns, in the order of the model.

        Args:
            targets: role names with `*`, or address patterns.
            modules: leave out sites where no module stands.

        Raises:
            InarchError: IA402 for a target that matches nothing, even where others match.
        """
        wanted: set[str] = set()
        for target in targets:
            found = {s for s in self._matching(target) if not modules or self.all[s].module}
            if not found:
                raise self._missing(target)
            wanted |= found
        return [site for address, site in self.all.items() if address in wanted]

    def variant(self, settings: Mapping[str, Any]) -> SiteView:
        """The sites that a model of this family has under other settings, on the meta device.

        For an adapter that brings a tree of its own that is not quite a copy of the model's.

        Args:
            settings: as `settings` are.

        Raises:
            InarchError: IA210 for settings that make no model.
        """
        if self.family is None:
            raise TypeError("these sites know no family that builds trees")
        with blank():
            trees = self.family.build(self.family.parse_config(dict(settings)))
        return SiteView(trees, self.roles, settings, self.tokenizers, self.family)

    def _matching(self, target: str) -> set[str]:
        known = self._matched.get(target)
        if known is None:
            roles = self.roles.items()
            patterns = [p for role, p in roles if fnmatchcase(role, target)] or [target]
            matches = [compiled(pattern).fullmatch for pattern in patterns]
            known = {a for a in self.all if any(match(a) for match in matches)}
            self._matched[target] = known
        return known

    def _missing(self, target: str) -> InarchError:
        near = difflib.get_close_matches(target, [*self.roles, *self.all], 3, 0.5)
        return InarchError(
            "IA402",
            f"the target `{target}` matches nothing in this model",
            why=f"its roles are: {', '.join(self.roles) or 'none'}",
            remedy=f"did you mean: {', '.join(near)}" if near else "name a role or an address",
        )


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """An adapter in a weighted sum.

    Attributes:
        name: its name in the model.
        adapter: what its plugin made of it.
        modules: by the address each stands at; their edges have the strength they act with.
        weight: of the sum, beside that strength.
        asks: settings of the model's tasks that it was made for.
    """

    name: str
    adapter: Adapter
    modules: Mapping[str, nn.Module]
    weight: float
    asks: Mapping[str, Any]


class Adapter(ABC):
    """One adapter of a model: what a plugin's class makes of a name and its options.

    A subclass reads nothing but what it is given and changes nothing: it answers with edits,
    whose modules are made on the meta device and filled by inarch.
    """

    Options: ClassVar[type[msgspec.Struct]]

    for_training: ClassVar[Collection[str]] = ()
    """Options for one that is yet to be trained: with a file they are refused, not ignored."""

    paths: ClassVar[tuple[str, ...]] = ()
    """Options that name a file or folder: they count from a stack file's folder, and in a digest
    for what the file is, wherever it lies."""

    conversion: ClassVar[str] = ""
    """What makes a safetensors file of the pickles that its own formats may come as."""

    by_header: ClassVar[bool] = False
    """Whether what it makes of a file, its edges' buffers included, follows from the file's header,
    the settings beside it and the tensors it `read`s. Swaps then remember it for the next file."""

    def __init__(self, name: str, options: Any) -> None:
        self.name = name
        self.options = options

    def with_whole_paths(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Options as they were given, with paths that are found from any folder."""
        own = {name: getattr(self.options, name) for name in self.paths if name in options}
        whole = {n: str(Path(v).resolve()) for n, v in own.items() if v and Path(v).exists()}
        return {**options, **whole}

    @abstractmethod
    def edits(self, sites: SiteView, weights: WeightsHeader | None) -> Iterable[Edit]:
        """The edits that make the adapter, under the name `self.name`.

        Args:
            sites: the pristine model.
            weights: the adapter's file, or None for one that is yet to be trained.
        """

    def learned(self) -> Sequence[Learned]:
        """The words that its edits teach, once they were made: see `inarch.adapters.vocabulary`."""
        return ()

    def own_tree(self) -> OwnTree | None:
        """The tree that its edits bring, once they were made, where that may be adapted itself."""
        return None

    def example_inputs(self, example: Example) -> Mapping[str, Any]:
        """Values for the inputs of the whole model that the edits newly ask for, by name.

        Args:
            example: the model's own inputs, whose batch, sizes and device these must suit.
        """
        return {}

    def inputs(self) -> Sequence[AddedInput]:
        """The inputs of the whole model that its edits ask for, once they were made."""
        return ()

    def read_input(self, added: AddedInput, value: Any, request: Request) -> Mapping[str, Any]:
        """What the trees get for a value that a user gave.

        Args:
            added: one of `inputs()`.
            value: as it was given.
            request: what the value must suit. One row serves for all, where they are equal.

        Returns:
            Values by the names of the trees' inputs.

        Raises:
            InarchError: IA505 for a value that can't be one.
        """
        return {added.name: value}

    def asks(self) -> Mapping[str, Any]:
        """Settings of the model's tasks that it was made for, by the names of their arguments.

        They are defaults: what the user passes goes first. Two adapters of a stack that ask for
        different values are refused.
        """
        return {}

    def acts(self, start: float, end: float) -> bool:
        """Whether it does anything in a step of sampling, from one share done to another.

        A step in which it does nothing is run by the model without it.
        """
        return True

    def prepare(self, ahead: Ahead) -> Mapping[str, Any]:
        """Values for one step of sampling, by the names of the trees' inputs.

        For adapters that ask the model about something else first, in every step. What has a row
        for each row the tree runs on is cut where only some of them are asked about.
        """
        return {}

    def guide(self, moment: Moment) -> Tensor | None:
        """What is to be added to a step's guided prediction; None for nothing.

        Every adapter sees the same moment, so what several add is a sum that knows no order.
        """
        return None

    def combine(self, parts: Sequence[Part], sites: SiteView, rank: int | None) -> Iterable[Edit]:
        """The edits of the weighted sum of some adapters of this kind, in place of `edits`.

        Args:
            parts: one or more, none of which is changed.
            sites: the pristine model.
            rank: the most that the sum may have; None for what is exact.

        Returns:
            Edits whose modules hold their parameters, on the devices of their sites.

        Raises:
            InarchError: IA499 where there is no such sum.
        """
        raise NotImplementedError(f"{type(self).__name__} does not say what a sum of it is")

    def write(self, folder: Path, edges: Mapping[str, nn.Module], about: Mapping[str, str]) -> None:
        """Save the adapter in its own format.

        Args:
            folder: exists and is the adapter's alone.
            edges: the adapter's modules by the address they stand at.
            about: `base`, the base's name, `fingerprint`, where they are known, and `asks`, a
                JSON object, where it asks for something.
        """
        raise InarchError(
            "IA408",
            f"adapters of kind {type(self).__name__} can't be saved",
            where=self.name,
            why="the plugin names no file format",
            remedy="give the plugin's Adapter a `write`",
        )
