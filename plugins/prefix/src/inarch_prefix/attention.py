"""What of a model's attention a prefix must fit: its layers, and how wide and split keys are."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import nn

from inarch.adapters import SiteView, TargetSite
from inarch.errors import InarchError
from inarch.nn import TransposedLinear, split_heads
from inarch.tree import Chain
from inarch.tree.signature import Call
from inarch.tree.steps import walk


@dataclass(frozen=True, slots=True)
class Attention:
    """The layers of attention a prefix stands in.

    Attributes:
        sites: where queries meet keys, in the order of the model.
        width: of a layer's keys, all heads.
        heads: of keys.
    """

    sites: tuple[TargetSite, ...]
    width: int
    heads: int

    @property
    def settings(self) -> dict[str, int]:
        """The same in PEFT's words."""
        return {
            "num_layers": len(self.sites),
            "token_dim": self.width,
            "num_attention_heads": self.heads,
        }


def attention_of(sites: SiteView) -> Attention:
    """The attention of a model.

    Raises:
        InarchError: IA440 where layers differ, or their keys' heads can't be told.
    """
    attend = tuple(sites.find(["attention.attend"]))
    keys = {_around(site): site for site in sites.find(["attention.key"], modules=True)}
    sizes: dict[tuple[int, int], str] = {}
    for site in attend:
        key, dims = keys.get(_around(site)), _head_dims(sites, site)
        if key is None or len(dims) != 1 or site.tree != attend[0].tree:
            raise _unfit(site.address, "its keys are not made, or not split into heads, beside it")
        [head_dim] = dims
        width = _outputs(key.module, key.address)
        sizes.setdefault((width, width // head_dim), site.address)
    if len(sizes) != 1:
        *_, other = sizes.values()
        raise _unfit(other, "its keys are of another size than the first layer's")
    [(width, heads)] = sizes
    return Attention(attend, width, heads)


def _around(site: TargetSite) -> str:
    return site.address.rpartition(".")[0]


def _head_dims(sites: SiteView, site: TargetSite) -> set[int]:
    """The head sizes into which the Chain that holds a site splits what it makes."""
    tree = sites.trees[site.tree]
    inside = _around(site).removeprefix(site.tree).strip(".")
    chain = tree.get_submodule(inside)
    if not isinstance(chain, Chain):
        return set()
    calls: list[Any] = [s.function for s in walk(chain.program) if isinstance(s, Call)]
    return {
        call.keywords["head_dim"]
        for call in calls
        if isinstance(call, partial) and call.func is split_heads and "head_dim" in call.keywords
    }


def _outputs(layer: nn.Module | None, address: str) -> int:
    if isinstance(layer, nn.Linear):
        return layer.out_features
    if isinstance(layer, TransposedLinear):
        return layer.weight.shape[1]
    raise _unfit(address, f"its keys are made by a {type(layer).__name__}")


def _unfit(address: str, why: str) -> InarchError:
    return InarchError(
        "IA440",
        "this model's attention can't have a prefix",
        where=address,
        why=why,
        remedy="use another adapter, such as lora",
    )
