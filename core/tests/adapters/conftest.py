"""A tiny model of two layers and a plugin of three kinds of edit, so that core needs no package."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

import inarch.adapters.graft
from inarch.adapters import Adapter, Edge, Model, SiteView
from inarch.plugins import Index
from inarch.plugins.manifest import AdapterEntry
from inarch.tree import Chain, Edit, Residual, Seq

sys.path.insert(0, str(Path(__file__).parent))

from swapping import saved

WIDTH = 6


class LowRank(Edge):
    """A plain low-rank term, by the equation."""

    def __init__(self, width: int, rank: int) -> None:
        super().__init__()
        self.down = nn.Parameter(torch.empty(rank, width))
        self.up = nn.Parameter(torch.empty(width, rank))

    def reset_parameters(self) -> None:
        nn.init.normal_(self.down)
        nn.init.zeros_(self.up)

    def forward(self, x: Tensor) -> Tensor:
        return self.strength * (x @ self.down.T @ self.up.T)

    def delta(self) -> Tensor:
        return self.up.float() @ self.down.float()


class Gain(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.empty(width))

    def reset_parameters(self) -> None:
        nn.init.ones_(self.gain)

    def forward(self, x: Tensor) -> Tensor:
        return self.gain


class Factor(Edge):
    """A factor of the site's output, which merging multiplies into its weight and bias."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.empty(width))

    def reset_parameters(self) -> None:
        nn.init.ones_(self.factor)

    def forward(self, x: Tensor) -> Tensor:
        return 1 + self.strength * (self.factor - 1)

    def merge(self, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
        factor = self.forward(self.factor)
        return {
            "weight": parameters["weight"] * factor[:, None],
            "bias": parameters["bias"] * factor,
        }


class LowRankAdapter(Adapter):
    by_header = True

    class Options(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
        rank: int = 2
        targets: tuple[str, ...] = ("mlp.*",)

    def edits(self, sites: SiteView, weights: Any) -> Iterable[Edit]:
        for site in sites.find(self.options.targets):
            rank = weights.shape(f"{site.address}.down")[0] if weights else self.options.rank
            fills = {p: f"{site.address}.{p}" for p in ("down", "up")}
            yield Edit.add(site.address, LowRank(WIDTH, rank), self.name, fills=fills)

    def write(self, folder: Path, edges: Mapping[str, nn.Module], about: Mapping[str, str]) -> None:
        tensors = {
            f"{a}.{n}": p.detach() for a, m in edges.items() for n, p in m.named_parameters()
        }
        metadata = {"inarch.base_fingerprint": about["fingerprint"]}
        save_file(tensors, folder / "adapter_model.safetensors", metadata)


class GainAdapter(Adapter):
    class Options(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
        pass

    def edits(self, sites: SiteView, weights: Any) -> Iterable[Edit]:
        for site in sites.find(["mlp.*"]):
            yield Edit.scale(site.address, Gain(WIDTH), self.name)


class FactorAdapter(Adapter):
    class Options(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
        pass

    def edits(self, sites: SiteView, weights: Any) -> Iterable[Edit]:
        for site in sites.find(["mlp.*"]):
            yield Edit.scale(site.address, Factor(WIDTH), self.name)


PLUGINS = {"lowrank": LowRankAdapter, "gain": GainAdapter, "factor": FactorAdapter}


@pytest.fixture(autouse=True)
def plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    """The installed packages, as the index would list them."""
    entries = {name: AdapterEntry(id=name) for name in PLUGINS}
    listed = Index(adapters=entries)
    monkeypatch.setattr(inarch.adapters.graft, "index", lambda: listed)
    monkeypatch.setattr(inarch.adapters.graft, "load_object", lambda _group, name: PLUGINS[name])


def small_tree(layers: int = 2) -> Chain:
    def block() -> Chain:
        return Chain(Residual(fc=nn.Linear(WIDTH, WIDTH), act=F.silu))

    return Chain(layers=Chain(*(block() for _ in range(layers))), head=nn.Linear(WIDTH, 3))


@pytest.fixture
def base() -> Model:
    torch.manual_seed(0)
    tree = small_tree().requires_grad_(False).eval()
    return Model({"": tree}, roles={"mlp.up": "layers.*.fc", "block": "layers.*"}, family="small")


@pytest.fixture
def x() -> Tensor:
    return torch.randn(4, WIDTH, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def twin_trees() -> Model:
    torch.manual_seed(0)
    trees = {"left": Chain(inner=Seq(fc=nn.Linear(WIDTH, WIDTH))), "right": small_tree()}
    for tree in trees.values():
        tree.requires_grad_(False).eval()
    return Model(trees, roles={"mlp.up": "right.layers.*.fc", "left": "left.fc"})


@pytest.fixture
def files(base: Model, tmp_path: Path) -> list[Path]:
    """Three differently trained adapters of rank 2."""
    return [saved(base, tmp_path / f"{seed}", seed) for seed in range(3)]
