"""The autoencoder equals diffusers', whole, by halves and in tiles."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch

from inarch.errors import InarchError
from inarch_stable_diffusion.autoencoder import Autoencoder
from inarch_stable_diffusion.beside_diffusers import randomised
from inarch_stable_diffusion.vae import vae
from inarch_stable_diffusion.vae_config import parse_vae

SMALL_VAE = {
    "block_out_channels": (8, 16),
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "norm_num_groups": 4,
    "sample_size": 16,
}


def pair(seed: int = 0, **settings: Any) -> tuple[Any, Any, Autoencoder]:
    diffusers = pytest.importorskip("diffusers")
    theirs = randomised(diffusers.AutoencoderKL(**{**SMALL_VAE, **settings}), seed)
    config = parse_vae(dict(theirs.config))
    ours = vae(config).eval()
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours, Autoencoder(ours, config)


def random_settings(seed: int) -> dict[str, Any]:
    draw = random.Random(seed)
    levels = draw.randint(1, 3)
    return {
        "block_out_channels": tuple(draw.choice((4, 8, 16)) for _ in range(levels)),
        "down_block_types": ("DownEncoderBlock2D",) * levels,
        "up_block_types": ("UpDecoderBlock2D",) * levels,
        "layers_per_block": draw.randint(1, 2),
        "latent_channels": draw.choice((4, 16)),
        "norm_num_groups": draw.choice((1, 2, 4)),
        "act_fn": draw.choice(("silu", "gelu")),
        "use_quant_conv": draw.random() < 0.6,
        "use_post_quant_conv": draw.random() < 0.6,
        "mid_block_add_attention": draw.random() < 0.8,
    }


@pytest.mark.parametrize("seed", range(10))
def test_both_halves_and_their_gradients_equal_diffusers(seed: int) -> None:
    theirs, ours, halves = pair(seed, **random_settings(seed))
    images = torch.randn(2, 3, *((16, 16), (8, 24))[seed % 2])
    one, other = images.clone().requires_grad_(), images.clone().requires_grad_()
    expected, actual = theirs.encode(one).latent_dist, halves.encode(other)
    torch.testing.assert_close(actual.mean, expected.mean, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(actual.std, expected.std, rtol=1e-5, atol=1e-5)
    decoded, ours_decoded = theirs.decode(expected.mean).sample, halves.decode(actual.mean)
    torch.testing.assert_close(ours_decoded, decoded, rtol=1e-5, atol=1e-5)
    assert torch.equal(ours(other), ours_decoded)
    decoded.square().mean().backward()
    ours_decoded.square().mean().backward()
    torch.testing.assert_close(other.grad, one.grad, rtol=1e-4, atol=1e-5)


def test_a_draw_of_one_seed_equals_diffusers() -> None:
    theirs, _, halves = pair()
    images = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        expected = theirs.encode(images).latent_dist.sample(torch.Generator().manual_seed(3))
        actual = halves.encode(images).sample(torch.Generator().manual_seed(3))
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("height", "width"), [(40, 24), (16, 60), (56, 56)])
def test_tiles_equal_those_of_diffusers(height: int, width: int) -> None:
    theirs, _, halves = pair()
    theirs.enable_tiling()
    images = torch.randn(1, 3, height, width)
    with torch.no_grad():
        expected = theirs.encode(images).latent_dist.mean
        actual = halves.encode(images, tile=16).mean
        decoded = theirs.decode(expected).sample
        ours = halves.decode(expected, tile=16)
        whole = halves.decode(expected)
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours, decoded, rtol=1e-5, atol=1e-5)
    assert ours.shape == whole.shape
    assert not torch.allclose(ours, whole, atol=1e-4)


def test_an_image_no_larger_than_a_tile_is_run_whole() -> None:
    _, _, halves = pair()
    latents = torch.randn(1, 4, 8, 8)
    with torch.no_grad():
        assert torch.equal(halves.decode(latents, tile=16), halves.decode(latents))


@pytest.mark.parametrize(
    ("settings", "factor"),
    [
        ({"scaling_factor": 0.13025}, 0.13025),
        ({"scaling_factor": 0.5, "shift_factor": 0.25}, None),
        ({"latents_mean": (0.1, 0.2, 0.3, 0.4), "latents_std": (1.0, 2.0, 3.0, 4.0)}, None),
    ],
)
def test_latents_go_to_the_unet_and_back(settings: dict[str, Any], factor: float | None) -> None:
    _, _, halves = pair(**settings)
    latents = torch.randn(1, 4, 8, 8)
    scaled = halves.to_unet(latents)
    torch.testing.assert_close(halves.from_unet(scaled), latents)
    assert not torch.allclose(scaled, latents)
    if factor is not None:
        torch.testing.assert_close(scaled, latents * factor)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"down_block_types": ("AttnDownEncoderBlock2D", "DownEncoderBlock2D")}, "AttnDown"),
        ({"act_fn": "snake"}, "snake"),
        ({"norm_num_groups": 3}, "3 groups"),
        ({"latent_channels": "four"}, "latent_channels"),
        ({"block_out_channels": (8,)}, "down_block_types"),
    ],
)
def test_another_autoencoder_is_refused(settings: dict[str, Any], named: str) -> None:
    with pytest.raises(InarchError) as error:
        parse_vae({**SMALL_VAE, **settings})
    assert error.value.code == "IA210"
    assert named in str(error.value)
