"""Where a reference acts: the attentions that look at it, and the layers that take its statistics.

Source: diffusers' community pipeline `stable_diffusion_reference`, after Zhang's reference-only
control in sd-webui-controlnet, discussions 1236 and 1280.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from inarch.adapters import SiteView, TargetSite


def attentions(sites: SiteView, weight: float) -> list[tuple[TargetSite, TargetSite, TargetSite]]:
    """The key, the value and the attention of each layer that looks at the reference.

    Of all n they are the `ceil(weight * n)` widest, which are those deep in the UNet. Among layers
    of one width those on the way down go before those on the way up, and the middle last.
    """
    roles = ("self_attention.key", "self_attention.value", "self_attention.attend")
    found = list(zip(*(sites.find([role]) for role in roles), strict=True))
    middle = tuple(f"{site.address}." for site in sites.find(["block.mid"]))

    def rank(i: int) -> tuple[int, bool]:
        key = found[i][0]
        return -width(key), key.address.startswith(middle)

    ranked = sorted(range(len(found)), key=rank)
    chosen = {i for place, i in enumerate(ranked) if weight > place / len(found)}
    return [layer for i, layer in enumerate(found) if i in chosen]


def layers(sites: SiteView, weight: float) -> list[TargetSite]:
    """The last site of each layer that takes the reference's statistics.

    The middle always does; at a weight of 2 every block, below that those nearest to the middle.
    A layer is a resnet with the transformer after it, where there is one. In the middle it is all
    of them together.
    """
    ways = {name: sites.find([f"block.{name}"]) for name in ("down", "up")}
    chosen: list[TargetSite] = []
    for i, block in enumerate(ways["down"]):
        if weight >= 2 * (1 - i / len(ways["down"])):
            chosen += _ends(sites, block)
    [middle] = sites.find(["block.mid"])
    chosen.append(_inside(sites, "resnet", middle)[-1])
    for i, block in enumerate(ways["up"]):
        if weight >= 2 * i / len(ways["up"]):
            chosen += _ends(sites, block)
    return chosen


def _ends(sites: SiteView, block: TargetSite) -> Sequence[TargetSite]:
    found = _inside(sites, "resnet", block)
    after = {_number(site): site for site in _inside(sites, "transformer", block)}
    return [after.get(_number(site), site) for site in found]


def _inside(sites: SiteView, role: str, block: TargetSite) -> list[TargetSite]:
    return [s for s in sites.find([role]) if s.address.startswith(f"{block.address}.")]


def channels(sites: SiteView, layer: TargetSite) -> int:
    """How many channels leave a layer: those of its own last convolution or normalisation."""
    inside = [s.module for a, s in sites.all.items() if a.startswith(f"{layer.address}.")]
    convolutions = [m.out_channels for m in inside if isinstance(m, nn.Conv2d)]
    norms = [m.num_channels for m in inside if isinstance(m, nn.GroupNorm)]
    return convolutions[-1] if convolutions else norms[-1]


def _number(site: TargetSite) -> str:
    return site.address.rpartition(".")[2]


def width(site: TargetSite) -> int:
    """How many numbers a linear layer gives for a token."""
    module = site.module
    if not isinstance(module, nn.Linear):
        raise TypeError(f"{site.address} is no linear layer")
    return module.out_features
