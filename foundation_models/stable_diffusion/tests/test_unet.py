"""The UNet equals diffusers' over all that published checkpoints differ in, and shows it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from small_unets import XL, random_settings, theirs_run, unet_inputs

import inarch_stable_diffusion
from inarch.errors import InarchError
from inarch.tree import Edit, Use
from inarch_stable_diffusion.beside_diffusers import SMALL
from inarch_stable_diffusion.unet_config import parse_unet


@pytest.mark.parametrize("seed", range(14))
def test_noise_and_gradients_equal_diffusers_on_random_configurations(
    unets: Any, seed: int
) -> None:
    theirs, ours = unets(seed, **random_settings(seed))
    size = ((8, 8), (8, 12), (9, 7), (5, 16))[seed % 4]
    latents, inputs = unet_inputs(theirs.config, 1 + seed % 3, *size)
    one, other = latents.clone().requires_grad_(), latents.clone().requires_grad_()
    expected, actual = theirs_run(theirs, one, inputs), ours(other, **inputs)
    assert expected.abs().max() > 1e-3
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)
    expected.square().mean().backward()
    actual.square().mean().backward()
    torch.testing.assert_close(other.grad, one.grad, rtol=1e-4, atol=1e-5)
    grads = {name: p.grad for name, p in ours.named_parameters()}
    for name, parameter in theirs.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(grads[name], parameter.grad, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_equals_diffusers_to_its_rounding(unets: Any, dtype: torch.dtype) -> None:
    for settings in ({}, XL):
        theirs, ours = (model.to(dtype) for model in unets(1, **settings))
        latents, inputs = unet_inputs(theirs.config, 2, 8, 8, dtype)
        with torch.no_grad():
            expected, actual = theirs_run(theirs, latents, inputs), ours(latents, **inputs)
        assert actual.dtype == expected.dtype == dtype
        scale = expected.float().abs().max()
        error = (actual.float() - expected.float()).abs().max()
        assert error <= 4 * torch.finfo(dtype).eps * scale


def test_one_timestep_serves_a_whole_batch(unets: Any) -> None:
    _, ours = unets()
    latents, inputs = unet_inputs({**SMALL, "in_channels": 4, "addition_embed_type": None}, 3, 8, 8)
    inputs["timestep"] = torch.tensor([7, 7, 7])
    each = ours(latents, **inputs)
    for one in (torch.tensor(7), torch.tensor([7]), torch.tensor(7.0)):
        torch.testing.assert_close(ours(latents, **{**inputs, "timestep": one}), each)


def test_the_tree_is_one_file_of_at_most_two_hundred_lines() -> None:
    path = Path(inarch_stable_diffusion.__file__).with_name("unet.py")
    assert len(path.read_text().splitlines()) <= 200


def test_a_value_added_to_a_skip_leaves_what_flows_on_as_it_was(unets: Any) -> None:
    theirs, ours = unets(2)
    latents, inputs = unet_inputs(theirs.config, 1, 8, 8)
    residuals = [torch.randn(1, 8, 8, 8), torch.randn(1, 8, 8, 8)]
    residuals += [torch.randn(1, 8, 4, 4), torch.randn(1, 16, 4, 4)]
    middle = torch.randn(1, 16, 4, 4)
    sites = ["skip_0", *(f"down_blocks.{i}.skip_{k}" for i, k in ((0, 1), (0, 2), (1, 3)))]
    names = [f"canny_{i}" for i in range(4)]
    edits = [
        Edit.add(site, Use(name), "canny", inputs=(name,))
        for site, name in zip([*sites, "mid_block"], [*names, "canny_mid"], strict=True)
    ]
    edited = ours.edit(edits)
    given = dict(zip(names, residuals, strict=True), canny_mid=middle)
    with torch.no_grad():
        actual = edited(latents, **inputs, **given)
        expected = theirs(
            latents,
            inputs["timestep"],
            inputs["text"],
            down_block_additional_residuals=tuple(residuals),
            mid_block_additional_residual=middle,
        ).sample
        base = ours(latents, **inputs)
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(actual, base, atol=1e-3)
    assert {*names, "canny_mid"} <= set(edited.inputs)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_block_s_normalisations_and_sums_see_tokens_in_one_order(
    unets: Any, layout: torch.memory_format
) -> None:
    theirs, ours = unets(3)
    latents, inputs = unet_inputs(theirs.config, 2, 8, 8)
    seen = list[bool]()
    for name, module in ours.to(memory_format=layout).named_modules():
        if name.endswith(("norm1", "norm2", "norm3", "to_out.0")) and "blocks." in name:
            if isinstance(module, torch.nn.GroupNorm):
                continue
            module.register_forward_hook(
                lambda _, given, made: seen.extend(x.is_contiguous() for x in (*given, made))
            )
    ours(latents, **inputs)
    assert seen
    assert all(seen)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"class_embed_type": "timestep"}, "class_embed_type"),
        ({"resnet_time_scale_shift": "scale_shift"}, "resnet_time_scale_shift"),
        ({"time_cond_proj_dim": 8}, "time_cond_proj_dim"),
        ({"down_block_types": ("CrossAttnDownBlock2D", "AttnDownBlock2D")}, "AttnDownBlock2D"),
        ({"addition_embed_type": "image"}, "addition_embed_type"),
        ({"addition_embed_type": "text_time"}, "addition_time_embed_dim"),
        ({"attention_type": "gated"}, "attention_type"),
        ({"act_fn": "snake"}, "snake"),
        ({"attention_head_dim": (2, 3)}, "3 heads"),
        ({"layers_per_block": (1, 2, 3)}, "layers_per_block"),
        ({"block_out_channels": "many"}, "block_out_channels"),
        ({"in_channels": "four"}, "in_channels"),
    ],
)
def test_a_setting_that_makes_another_model_is_refused(
    settings: dict[str, Any], named: str
) -> None:
    with pytest.raises(InarchError) as error:
        parse_unet({**SMALL, **settings})
    assert error.value.code == "IA210"
    assert named in str(error.value)


GOLDEN = """\
def forward(self, latents, *, timestep, text_embeds, time_ids, text):
    waves = timestep_embedding(latents, timestep=timestep)
    time_embedding = self.time_embedding(waves)
    conditions = added_conditions(latents, text_embeds=text_embeds, time_ids=time_ids)
    add_embedding = self.add_embedding(conditions)
    latents_2 = time_embedding + add_embedding
    temb = silu(latents_2)
    skip_0 = self.conv_in(latents)
    conv_in, skip_1, skip_2 = self.down_blocks[0](skip_0, temb=temb, text=text)
    conv_in, skip_3 = self.down_blocks[1](conv_in, temb=temb)
    mid_block = self.mid_block(conv_in, temb=temb, text=text)
    mid_block = self.up_blocks[0](mid_block, skip_3=skip_3, temb=temb, skip_2=skip_2, skip_1=skip_1)
    mid_block = self.up_blocks[1](mid_block, skip_1=skip_1, temb=temb, text=text, skip_0=skip_0)
    conv_norm_out = self.conv_norm_out(mid_block)
    conv_norm_out = silu(conv_norm_out)
    return self.conv_out(conv_norm_out)
"""
DOWN = """\
def forward(self, x, *, temb, text):
    x = self.resnets[0](x, temb=temb)
    skip_1 = self.attentions[0](x, text=text)
    skip_2 = self.downsamplers[0].conv(skip_1)
    return skip_2, skip_1, skip_2
"""


def test_the_source_reads_from_the_noise_to_the_noise_in_it(unets: Any) -> None:
    _, ours = unets(**XL)
    assert ours.source == GOLDEN
    assert ours.down_blocks[0].source == DOWN
