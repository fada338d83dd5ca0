"""FreeU against diffusers' own, alone and beside a LoRA."""

from __future__ import annotations

from typing import Any

import diffusers
import pytest
import torch
from torch import nn

import inarch
from inarch import InarchError
from inarch.plugins import index
from inarch.tree import Chain
from inarch_stable_diffusion.model import StableDiffusion

THREE_LEVELS = {
    "block_out_channels": (8, 16, 16),
    "layers_per_block": 1,
    "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    "cross_attention_dim": 12,
    "attention_head_dim": 2,
    "norm_num_groups": 4,
}


@pytest.fixture(scope="module")
def pair() -> tuple[Any, StableDiffusion]:
    torch.manual_seed(4)
    theirs = diffusers.UNet2DConditionModel(**THREE_LEVELS).eval().requires_grad_(False)
    config = StableDiffusion.parse_config(
        {"model_type": "stable-diffusion", "unet": dict(theirs.config)}
    )
    tree = StableDiffusion.build(config)["unet"]
    tree.load_state_dict(theirs.state_dict())
    tree.requires_grad_(False).eval()
    roles = index().models["stable-diffusion"].roles
    return theirs, StableDiffusion({"unet": tree}, config, roles=roles, family="stable-diffusion")


def inputs(height: int, width: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    latents = torch.randn(2, 4, height, width, generator=generator)
    return latents, torch.tensor([9, 700]), torch.randn(2, 5, 12, generator=generator)


@pytest.mark.parametrize("size", [(16, 16), (12, 20)])
@pytest.mark.parametrize("factors", [(1.5, 1.6, 0.9, 0.2), (1.1, 1.2, 0.6, 0.4)])
def test_freeu_equals_diffusers(
    pair: tuple[Any, StableDiffusion], size: tuple[int, int], factors: tuple[float, ...]
) -> None:
    theirs, base = pair
    b1, b2, s1, s2 = factors
    model = base.adapt(inarch.adapter("freeu", b1=b1, b2=b2, s1=s1, s2=s2))
    latents, time, text = inputs(*size)
    theirs.enable_freeu(s1=s1, s2=s2, b1=b1, b2=b2)
    expected = theirs(latents, time, text).sample
    theirs.disable_freeu()
    got = model.trees["unet"](latents, timestep=time, text=text)
    plain = base.trees["unet"](latents, timestep=time, text=text)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(got, plain, atol=1e-3)


def test_freeu_stands_beside_a_lora_in_either_order(pair: tuple[Any, StableDiffusion]) -> None:
    base = pair[1]
    freeu, lora = inarch.adapter("freeu"), inarch.adapter("lora", name="style")
    latents, time, text = inputs(8, 8)
    models = [base.adapt(freeu, lora), base.adapt(lora, freeu)]
    for model in models:
        generator = torch.Generator().manual_seed(6)
        for parameter in model.adapter_parameters("style").values():
            parameter.data = torch.randn(parameter.shape, generator=generator) / 4
    outputs = [m.trees["unet"](latents, timestep=time, text=text) for m in models]
    assert models[0].digest == models[1].digest
    assert torch.equal(*outputs)


def test_freeu_needs_no_gradient_of_its_own_and_lets_gradients_through(
    pair: tuple[Any, StableDiffusion],
) -> None:
    theirs, base = pair
    latents, time, text = inputs(8, 8)
    ours, other = (latents.clone().requires_grad_() for _ in range(2))
    model = base.adapt(inarch.adapter("freeu"))
    model.trees["unet"](ours, timestep=time, text=text).square().sum().backward()
    theirs.enable_freeu(s1=0.9, s2=0.2, b1=1.5, b2=1.6)
    theirs(other, time, text).sample.square().sum().backward()
    theirs.disable_freeu()
    torch.testing.assert_close(ours.grad, other.grad, atol=1e-4, rtol=1e-4)
    assert not list(model.adapter_parameters("freeu"))


def test_a_factor_that_is_not_positive_is_refused(pair: tuple[Any, StableDiffusion]) -> None:
    with pytest.raises(InarchError, match="options") as caught:
        pair[1].adapt(inarch.adapter("freeu", s1=0.0))
    assert caught.value.code == "IA401"
    assert "positive" in caught.value.why


def test_freeu_names_what_it_needs_of_a_model_without_a_unet() -> None:
    model = inarch.Model({"": Chain(layer=nn.Linear(2, 2))})
    with pytest.raises(InarchError) as caught:
        model.adapt("freeu")
    assert "block.up" in str(caught.value)
