"""MultiDiffusion against diffusers' panoramas, and windows against their definition."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers.pipelines.deprecated.stable_diffusion_panorama import (
    StableDiffusionPanoramaPipeline,
)
from small_pipelines import pipeline, saved

import inarch
from inarch import InarchError
from inarch_multidiffusion.windows import Windows, joined, parted

PROMPT = "a lighthouse in the storm"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("pipeline"), seed=2)


def theirs(folder: Path) -> Any:
    parts = pipeline(folder).components
    kept = {n: parts[n] for n in ("vae", "text_encoder", "tokenizer", "unet")}
    scheduler = diffusers.DDIMScheduler.from_config(parts["scheduler"].config)
    made = StableDiffusionPanoramaPipeline(
        **kept, scheduler=scheduler, safety_checker=None, feature_extractor=None
    )
    made.set_progress_bar_config(disable=True)
    return made


@pytest.mark.parametrize("circular", [False, True])
@pytest.mark.parametrize("guidance", [1.0, 5.0])
def test_multidiffusion_equals_diffusers(folder: Path, circular: bool, guidance: float) -> None:
    """diffusers' views are of 64 latents, 8 further each; its factor of the VAE is taken as 8."""
    noise = torch.randn(1, 4, 64, 80, generator=torch.Generator().manual_seed(3))
    pipe = theirs(folder)
    factor = pipe.vae_scale_factor
    views = [(0, 64, left, left + 64) for left in (range(0, 80, 8) if circular else (0, 8, 16))]
    pipe.get_views = lambda *_args, **_options: views
    expected = pipe(
        PROMPT,
        height=64 * factor,
        width=80 * factor,
        num_inference_steps=2,
        guidance_scale=guidance,
        latents=noise,
        circular_padding=circular,
        output_type="latent",
    ).images
    base = inarch.load(folder)
    model = base.adapt(inarch.adapter("multidiffusion", window=64, stride=8, circular=circular))
    settings = {"steps": 2, "guidance": guidance, "latents": noise, "output": "latents"}
    settings |= {"height": 64 * factor, "width": 80 * factor, "scheduler": "ddim"}
    got = model.text_to_image(PROMPT, **settings)
    spread = float(expected.abs().max())
    torch.testing.assert_close(got / spread, expected / spread, atol=1e-4, rtol=0)
    assert not torch.allclose(got, base.text_to_image(PROMPT, **settings), atol=1e-3)


def test_an_ip_adapter_beside_it_equals_diffusers(folder: Path, tmp_path: Path) -> None:
    base = inarch.load(folder)
    fresh = base.adapt(inarch.adapter("ip-adapter", name="style", embedding=10))
    generator = torch.Generator().manual_seed(5)
    for parameter in fresh.adapter_parameters("style").values():
        parameter.data = torch.randn(parameter.shape, generator=generator) / 4
    fresh.save_adapter("style", tmp_path)
    seen = torch.randn(1, 1, 10, generator=generator)
    noise = torch.randn(1, 4, 64, 80, generator=torch.Generator().manual_seed(3))
    pipe = theirs(folder)
    factor = pipe.vae_scale_factor
    pipe.get_views = lambda *_args, **_options: [(0, 64, at, at + 64) for at in (0, 8, 16)]
    pipe.load_ip_adapter(str(tmp_path), "", "ip_adapter.safetensors", image_encoder_folder=None)
    pipe.set_ip_adapter_scale(0.7)
    size = {"height": 64 * factor, "width": 80 * factor}
    expected = pipe(
        PROMPT,
        num_inference_steps=2,
        guidance_scale=5.0,
        latents=noise,
        ip_adapter_image_embeds=[torch.cat([torch.zeros_like(seen), seen])],
        output_type="latent",
        **size,
    ).images
    specs = [
        inarch.adapter("multidiffusion", window=64, stride=8),
        inarch.adapter("ip-adapter", name="style", weights=tmp_path, scale=0.7),
    ]
    settings = {"steps": 2, "guidance": 5.0, "latents": noise, "output": "latents", **size}
    one, two = (
        base.adapt(*order).text_to_image(PROMPT, scheduler="ddim", style_embedding=seen, **settings)
        for order in (specs, specs[::-1])
    )
    assert torch.equal(one, two)
    spread = float(expected.abs().max())
    torch.testing.assert_close(one / spread, expected / spread, atol=1e-4, rtol=0)


def test_masks_of_the_whole_picture_are_refused_beside_it(folder: Path) -> None:
    masked = inarch.adapter("ip-adapter", name="style", embedding=10, masked=True)
    with pytest.raises(InarchError) as caught:
        inarch.load(folder).adapt("multidiffusion", masked)
    assert caught.value.code == "IA413"
    assert "places of the whole picture" in caught.value.what


@pytest.mark.parametrize(("height", "width"), [(8, 8), (8, 21), (5, 30), (19, 17)])
@pytest.mark.parametrize("circular", [False, True])
def test_windows_cover_everything_and_join_to_what_they_were(
    height: int, width: int, circular: bool
) -> None:
    windows = Windows(8, 3, circular)
    x = torch.randn(2, 3, height, width)
    views = parted(x, windows=windows)
    assert len(views) == 2 * windows.count(height, width)
    assert views.shape[2:] == (min(8, height), min(8, width))
    torch.testing.assert_close(joined(views, height, width, windows=windows), x)


def test_a_picture_no_larger_than_a_window_is_the_models_own(folder: Path) -> None:
    base = inarch.load(folder)
    model = base.adapt(inarch.adapter("multidiffusion", window=16, stride=4))
    settings = {"steps": 2, "height": 16, "width": 32, "seed": 1, "output": "latents"}
    got = model.text_to_image([PROMPT, "a red boat"], **settings)
    expected = base.text_to_image([PROMPT, "a red boat"], **settings)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


def test_prompts_of_a_batch_keep_to_their_own_windows(folder: Path) -> None:
    model = inarch.load(folder).adapt(inarch.adapter("multidiffusion", window=8, stride=4))
    noise = torch.randn(2, 4, 8, 14, generator=torch.Generator().manual_seed(4))
    settings: dict[str, Any] = {"steps": 2, "height": 16, "width": 28, "output": "latents"}
    both = model.text_to_image([PROMPT, "a red boat"], latents=noise, **settings)
    alone = model.text_to_image("a red boat", latents=noise[1:], **settings)
    torch.testing.assert_close(both[1:], alone, atol=1e-4, rtol=1e-4)


def test_a_stride_that_leaves_gaps_is_refused(folder: Path) -> None:
    with pytest.raises(InarchError) as caught:
        inarch.load(folder).adapt(inarch.adapter("multidiffusion", window=8, stride=9))
    assert "stride is from 1 to window" in caught.value.why
