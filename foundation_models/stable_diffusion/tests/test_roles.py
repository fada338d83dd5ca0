"""The roles of the manifest are found in the trees, and name what they say."""

from __future__ import annotations

import pytest
import torch

from inarch.adapters import SiteView
from inarch.plugins import index
from inarch_stable_diffusion.model import StableDiffusion

TINY = StableDiffusion.tiny_configs()


def tiny(name: str) -> StableDiffusion:
    config = StableDiffusion.parse_config(dict(TINY[name]))
    torch.manual_seed(0)
    roles = index().models["stable-diffusion"].roles
    return StableDiffusion(StableDiffusion.build(config), config, roles=roles)


def test_every_role_has_sites() -> None:
    sites = tiny("xl").sites
    for role in index().models["stable-diffusion"].roles:
        assert sites.find([role]), role


def test_self_and_cross_attention_make_up_attention() -> None:
    sites: SiteView = tiny("sd1").sites
    parts = ("query", "key", "value", "attend", "output")
    both = sites.find([f"{kind}_attention.{part}" for kind in ("self", "cross") for part in parts])
    assert both == sites.find(["attention.*"])
    assert {s.address.rpartition(".")[2] for s in sites.find(["cross_attention.attend"])} == {
        "attend"
    }
    assert len(both) == 2 * 5 * len(sites.find(["transformer.block"]))


def test_skips_are_found_in_the_order_they_are_left() -> None:
    addresses = [site.address for site in tiny("sd1").sites.find(["skip"])]
    assert addresses == [
        "unet.skip_0",
        "unet.down_blocks.0.skip_1",
        "unet.down_blocks.0.skip_2",
        "unet.down_blocks.1.skip_3",
    ]


@pytest.mark.parametrize("name", TINY)
def test_the_examples_run(name: str) -> None:
    model = tiny(name)
    for example in model.examples():
        tree = model.trees[example.tree]
        assert set(example.inputs) == set(tree.inputs)
        [main] = tree.interface.takes
        named = {k: v for k, v in example.inputs.items() if k != main}
        given = tree(example.inputs[main], **named)
        for value in given if isinstance(given, tuple) else (given,):
            assert torch.isfinite(value).all()
