"""A tiny model, and adapters that make whatever edits their options say."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import msgspec
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import inarch
import inarch.adapters.graft
from inarch.adapters import Adapter, Edge, Model, SiteView
from inarch.plugins import Index
from inarch.plugins.manifest import AdapterEntry, ModelEntry
from inarch.tree import Chain, Edit, Here, Residual, Seq, Use

WIDTH = 6


class Term(Edge):
    """A dense layer of its own that keeps the width; drawn so that it always has an effect."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(WIDTH, WIDTH))

    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight, generator=torch.Generator().manual_seed(3))

    def forward(self, x: Tensor) -> Tensor:
        return self.strength * torch.tanh(x @ self.weight)

    def delta(self) -> Tensor:
        return self.weight.detach()


class Made(Adapter):
    """Makes the edits its options name: "add layers.0.fc", "tap head as seen", "uses seen"."""

    class Options(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
        do: tuple[str, ...] = ("add layers.0.fc",)
        reads: tuple[str, ...] = ()
        fills: dict[str, str] = {}

    def edits(self, sites: SiteView, weights: Any) -> Iterable[Edit]:
        for line in self.options.do:
            words = line.split()
            kind, where, rest = words[0], words[1], words[2:]
            if kind == "provide":
                yield Edit.provide(where, Seq(("made", Term())), self.name)
            elif kind == "tap":
                export = "export" in rest
                yield Edit.tap(where, rest[1], self.name, export=export)
            elif kind == "wrap":
                yield Edit.wrap(where, Residual(Here()), self.name, reads=self.options.reads)
            elif kind == "use":
                step = Seq(Use(rest[0]), ("made", Term()))
                yield Edit.add(where, step, self.name, inputs=tuple(rest))
            else:
                make: Any = getattr(Edit, kind)
                yield make(
                    where,
                    Term(),
                    self.name,
                    reads=self.options.reads,
                    fills=dict(self.options.fills),
                )


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Index]:
    """Install adapters of kinds with declarations: `installed(ia3={"after": ["lora"]})`."""
    listed = Index(
        models={
            "small": ModelEntry(
                id="small", model_types=["small"], distribution="inarch-small", version="1.2"
            )
        }
    )
    monkeypatch.setattr(inarch.adapters.graft, "index", lambda: listed)
    monkeypatch.setattr(inarch.adapters.graft, "load_object", lambda _group, _name: Made)

    def install(**kinds: dict[str, Any]) -> Index:
        for name, declared in kinds.items():
            listed.adapters[name] = AdapterEntry(id=name, **declared)
        return listed

    install(plain={}, other={})
    return install


def tree(layers: int = 2) -> Chain:
    def block() -> Chain:
        inner = Chain(Residual(fc=nn.Linear(WIDTH, WIDTH), act=F.silu))
        return Chain(inner=inner, out=nn.Linear(WIDTH, WIDTH))

    return Chain(
        layers=Chain(*(block() for _ in range(layers))),
        group=Seq(left=nn.Linear(WIDTH, WIDTH), act=torch.tanh),
        head=nn.Linear(WIDTH, WIDTH),
    )


@pytest.fixture
def base(installed: Callable[..., Index]) -> Model:
    torch.manual_seed(0)
    return Model({"": tree().requires_grad_(False).eval()}, family="small")


@pytest.fixture
def x() -> Tensor:
    return torch.randn(4, WIDTH, generator=torch.Generator().manual_seed(1))


def made(name: str, *do: str, use: str = "plain", **options: Any) -> inarch.AdapterSpec:
    return inarch.adapter(use, name=name, do=do, **options)
