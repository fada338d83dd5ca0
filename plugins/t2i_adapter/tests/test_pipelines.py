"""A whole pipeline with a T2I-Adapter: diffusers' latents after ten steps."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from small_pipelines import pipeline, saved

import inarch
from inarch_stable_diffusion.beside_diffusers import randomised

SIZE = {"height": 16, "width": 24}


@pytest.mark.parametrize(("xl", "share"), [(False, 1.0), (True, 1.0), (True, 0.5)])
def test_latents_are_diffusers(tmp_path: Path, xl: bool, share: float) -> None:
    diffusers = pytest.importorskip("diffusers")
    theirs = pipeline(saved(tmp_path / "model", xl=xl))
    model = inarch.load(tmp_path / "model")
    sizes = {"channels": [8, 16], "num_res_blocks": 1, "downscale_factor": 2}
    net = randomised(diffusers.T2IAdapter(adapter_type="full_adapter", **sizes), 4)
    net.save_pretrained(tmp_path / "sketch")
    name = "StableDiffusionXLAdapterPipeline" if xl else "StableDiffusionAdapterPipeline"
    parts = {n: p for n, p in theirs.components.items() if n != "image_encoder"}
    made = getattr(diffusers, name)(**parts, adapter=net)
    made.set_progress_bar_config(disable=True)
    made.scheduler = diffusers.DDIMScheduler.from_config(made.scheduler.config)
    image = torch.rand(1, 3, 16, 24, generator=torch.Generator().manual_seed(1))
    given = {"num_inference_steps": 10, "guidance_scale": 6.0, "output_type": "latent", **SIZE}
    factor = {"adapter_conditioning_factor": share} if xl else {}  # the first has none
    expected = made(
        "a lighthouse",
        image=image,
        negative_prompt="ugly",
        adapter_conditioning_scale=0.7,
        generator=torch.Generator().manual_seed(3),
        **given,
        **factor,
    ).images
    spec = inarch.adapter(
        "t2i-adapter", weights=tmp_path / "sketch", name="sketch", scale=0.7, end=share
    )
    ours = model.adapt(spec).text_to_image(
        "a lighthouse",
        negative_prompt="ugly",
        guidance=6.0,
        steps=10,
        seed=3,
        output="latents",
        progress=False,
        sketch_image=image,
        **SIZE,
    )
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
