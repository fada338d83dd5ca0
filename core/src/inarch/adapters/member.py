"""The adapters a model has: what each is, and the properties a user may set."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, overload

from torch import nn

from inarch.adapters.edge import Edge, rescale
from inarch.adapters.slot import Content, Frozen, Slot
from inarch.errors import InarchError
from inarch.stack import AdapterSpec, finite_scale
from inarch.tree import Edit

if TYPE_CHECKING:
    from inarch.adapters.adapter import Adapter
    from inarch.adapters.model import Model
    from inarch.plugins.manifest import AdapterEntry
    from inarch.weights import WeightsHeader


@dataclass(eq=False)
class Member:
    """One adapter in one model.

    Scale, training and weights belong to its modules, which every model that holds it shares;
    whether it is merged belongs to the model.

    Attributes:
        name: its identity in the model.
        kind: the id of the plugin, such as `lora`.
        asked: the specification it was made from.
        edits: at exact addresses.
        modules: what it brought, by the address each stands at.
        slot: what its modules hold, which `Model.swap` replaces in every model at once.
        frozen: what it was when this model was merged; None where it isn't.
        entry: what the plugin's manifest says of it.
        inner: the tree it brings as a model, with the adapters that were asked for in it: their
            scales, training and saving are there, and are none of this member's. None without.
    """

    name: str
    kind: str
    asked: AdapterSpec = field(repr=False)
    edits: tuple[Edit, ...] = field(repr=False)
    modules: Mapping[str, nn.Module] = field(repr=False)
    slot: Slot = field(repr=False)
    frozen: Frozen | None = field(default=None, repr=False)
    entry: AdapterEntry | None = field(default=None, repr=False)
    inner: Model | None = field(default=None, repr=False)

    @property
    def content(self) -> Content:
        return self.slot.content if self.frozen is None else self.frozen.content

    @property
    def merged(self) -> bool:
        """Whether the model's weights contain it."""
        return self.frozen is not None

    def as_merged(self) -> Member:
        """This member in a model whose weights contain it as it is now."""
        if self.merged:
            return self
        return replace(self, frozen=Frozen(self.slot.content, self.scale, self._versions()))

    @property
    def rewritten(self) -> str:
        """What was made of its weights since this model was merged; empty for nothing."""
        if self.frozen is None:
            return ""
        if self.frozen.content is not self.slot.content:
            return "swapped"
        return "" if self.frozen.versions in (None, self._versions()) else "trained"

    def refuse_rewritten(self) -> None:
        """Refuse to save what isn't what this model was merged with: IA408."""
        if self.rewritten:
            raise InarchError(
                "IA408",
                f"what was merged of the adapter `{self.name}` can't be saved",
                why=f"its weights were {self.rewritten} since this model was merged",
                remedy="save it in the model that it was merged from, before that",
            )

    def _versions(self) -> tuple[int, ...]:
        values = self.parameters().values()
        return tuple(0 if value.is_inference() else value._version for value in values)

    @property
    def adapter(self) -> Adapter:
        """What its plugin made of its options and its file."""
        return self.content.adapter

    @property
    def header(self) -> WeightsHeader | None:
        """Of the file its weights came from; None for one that started untrained."""
        return self.content.header

    @property
    def spec(self) -> AdapterSpec:
        """The specification that would make it as it is now."""
        return self.content.told(self.asked)

    @property
    def after(self) -> tuple[str, ...]:
        """Names of members the user put before it."""
        return self.asked.after

    @property
    def before(self) -> tuple[str, ...]:
        """Names of members the user put after it."""
        return self.asked.before

    @property
    def edges(self) -> Iterator[Edge]:
        for module in self.modules.values():
            within = module.modules() if module._modules else (module,)
            yield from (m for m in within if isinstance(m, Edge))

    @property
    def scale(self) -> float:
        """How strongly it acts; 1.0 is as trained. Setting it recompiles nothing."""
        if self.frozen is not None:
            return self.frozen.scale
        return next((edge.strength for edge in self.edges), 1.0)

    @scale.setter
    def scale(self, value: float) -> None:
        if self.merged:
            raise InarchError(
                "IA409",
                f"the merged adapter `{self.name}` can't be rescaled",
                why="the model's weights hold it at the scale it was merged with",
                remedy=f'rescale the unmerged model and merge that: model.merge("{self.name}")',
            )
        value = finite_scale(value, self.name, f'model.adapters["{self.name}"].scale = 0.5')
        edges = list(self.edges)
        if not edges and value != 1.0:
            raise InarchError(
                "IA409",
                f"the adapter `{self.name}` has no scale",
                why=f"adapters of kind {self.kind} act fully or not at all",
                remedy="leave the scale at 1.0",
            )
        rescale(edges, value)

    @property
    def trainable(self) -> bool:
        """Whether its parameters take gradients; setting it moves its training mode too."""
        return any(p.requires_grad for m in self.modules.values() for p in m.parameters())

    @trainable.setter
    def trainable(self, value: bool) -> None:
        if self.merged and value:
            raise InarchError(
                "IA409",
                f"the merged adapter `{self.name}` can't be trained",
                why="its parameters are not in the model that runs",
                remedy="train the model it was merged from",
            )
        for module in self.modules.values():
            if module._modules or type(module).train is not nn.Module.train:
                module.requires_grad_(value).train(value)
                continue
            module.__dict__["training"] = value  # past nn.Module, which takes five times as long
            for parameter in module._parameters.values():
                if parameter is not None:
                    parameter.requires_grad_(value)

    def parameters(self) -> dict[str, nn.Parameter]:
        """Its parameters by the address of their module and their own name."""
        return {
            f"{address}.{name}": parameter
            for address, module in self.modules.items()
            for name, parameter in module.named_parameters()
        }


class Members(tuple[Member, ...]):
    """A model's adapters in the order they were given, found by position or by name."""

    @overload
    def __getitem__(self, key: str) -> Member: ...
    @overload
    def __getitem__(self, key: int) -> Member: ...
    @overload
    def __getitem__(self, key: slice) -> tuple[Member, ...]: ...
    def __getitem__(self, key: str | int | slice) -> Member | tuple[Member, ...]:  # type: ignore[override]
        if not isinstance(key, str):
            return tuple.__getitem__(self, key)
        for member in self:
            if member.name == key:
                return member
        near = difflib.get_close_matches(key, self.names, 1, 0.6)
        raise InarchError(
            "IA403",
            f"this model has no adapter `{key}`",
            where="Model.adapters",
            why=f"its adapters are: {', '.join(self.names) or 'none'}",
            remedy=f'model.adapters["{near[0]}"]' if near else "model.adapters.names",
        )

    def __contains__(self, key: object) -> bool:
        return key in self.names if isinstance(key, str) else tuple.__contains__(self, key)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(member.name for member in self)
