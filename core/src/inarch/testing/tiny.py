"""Tiny random models: of each configuration that an installed family declares for tests."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from inarch.plugins import index, load_object
from inarch.plugins.fit import misfit
from inarch.plugins.manifest import AdapterEntry, ModelEntry
from inarch.testing.plain import PLAIN, Plain

if TYPE_CHECKING:
    from inarch.adapters import Model


@dataclass(frozen=True)
class Tiny:
    """One configuration of one family, of which random models can be made.

    Attributes:
        family: the id of the foundation model; "plain" for the kit's own language model.
        label: what the configuration shows.
        config: as a checkpoint's `config.json` has it.
        first: whether it is the family's first, which tests that take long are content with.
    """

    family: str
    label: str
    config: Mapping[str, Any] = field(repr=False, hash=False)
    first: bool = True

    def __str__(self) -> str:
        words = f"{self.family} {self.label}".replace("'", "").replace(",", "")
        return "-".join(words.split())

    @property
    def roles(self) -> dict[str, str]:
        return Plain.own_roles if self.family == PLAIN else index().models[self.family].roles

    @property
    def size(self) -> int:
        """How many weights its models have."""
        return _size(self)

    def build(
        self,
        *,
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> Model:
        """A model as `inarch.load` gives one, frozen and in evaluation mode, of random weights."""
        family: type[Model] = (
            Plain if self.family == PLAIN else load_object("inarch.models", self.family)
        )
        config = family.parse_config(dict(self.config))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            trees = family.build(config)
        generator = torch.Generator().manual_seed(seed)
        for tree in trees.values():
            _randomise(tree, generator)
            tree.to(device=device, dtype=dtype).requires_grad_(False).eval()
            _place_buffers(tree, device)
        model = family(trees, config, roles=self.roles, family=self.family)
        model.sites.settings = dict(self.config)  # as if it came from a checkpoint
        return model


@functools.cache
def _size(tiny: Tiny) -> int:
    return sum(parameter.numel() for parameter in tiny.build().parameters())


def _randomise(tree: nn.Module, generator: torch.Generator) -> None:
    """Weights that keep the size of what they are given, and vectors near their beginning.

    A tree that is only initialised has zero biases and unit norms, which hide mistakes.
    """
    with torch.no_grad():
        for name, parameter in tree.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() > 1:
                parameter.copy_(noise / math.sqrt(parameter[0].numel()))
            else:  # a norm's weight, or a bias; what is no module's may hold any bits so far
                parameter.copy_(noise * 0.1 + float(name.rpartition(".")[2] == "weight"))


def _place_buffers(tree: nn.Module, device: torch.device | str) -> None:
    """Put what a module keeps where it was, such as rotary frequencies, as loading does."""
    for module in tree.modules():
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = buffer.to(device)


def tiny_models(
    fitting: AdapterEntry | None = None, families: Sequence[str] = ()
) -> Iterator[Tiny]:
    """Every configuration for tests of every installed family, by the families' ids.

    Args:
        fitting: only families that this adapter fits, by its manifest. Where it fits no installed
            one, the kit's own plain language model stands in.
        families: only these; `plain` is the kit's own.
    """
    wanted = fitting or AdapterEntry(id="")
    found = False
    for name, entry in sorted(index().models.items()):
        if misfit(wanted, entry) or (families and name not in families):
            continue
        family: type[Model] = load_object("inarch.models", name)
        for number, (label, config) in enumerate(family.tiny_configs().items()):
            found = True
            yield Tiny(name, label, config, number == 0)
    own = ModelEntry(id=PLAIN, model_types=[], roles=Plain.own_roles)
    if PLAIN in families or (not found and not families and not misfit(wanted, own)):
        for label, config in Plain.tiny_configs().items():
            yield Tiny(PLAIN, label, config)
