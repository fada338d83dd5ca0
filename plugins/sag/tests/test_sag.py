"""Self-attention guidance against diffusers' pipeline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers.pipelines.deprecated.stable_diffusion_sag import StableDiffusionSAGPipeline
from small_pipelines import pipeline, saved

import inarch
from inarch import InarchError

PROMPT = "a lighthouse in the storm"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("pipelines")
    velocity = {"prediction_type": "v_prediction"}
    return {
        "epsilon": saved(root / "epsilon", seed=2),
        "velocity": saved(root / "velocity", scheduler=velocity, seed=5, scale=0.2),
    }


def theirs(folder: Path) -> Any:
    parts = pipeline(folder).components
    kept = {n: parts[n] for n in ("vae", "text_encoder", "tokenizer", "unet", "scheduler")}
    made = StableDiffusionSAGPipeline(**kept, safety_checker=None, feature_extractor=None)
    made.set_progress_bar_config(disable=True)
    made.scheduler = diffusers.DDIMScheduler.from_config(parts["scheduler"].config)
    return made


@pytest.mark.parametrize("kind", ["epsilon", "velocity"])
@pytest.mark.parametrize("guidance", [1.0, 6.0])
def test_self_attention_guidance_equals_diffusers(
    folders: dict[str, Path], kind: str, guidance: float
) -> None:
    generator = torch.Generator().manual_seed(3)
    noise = torch.randn(1, 4, 16, 24, generator=generator)
    expected = theirs(folders[kind])(
        PROMPT,
        height=32,
        width=48,
        num_inference_steps=4,
        guidance_scale=guidance,
        sag_scale=0.6,
        latents=noise,
        output_type="latent",
    ).images
    base = inarch.load(folders[kind])
    model = base.adapt(inarch.adapter("sag", strength=0.6))
    settings = {"steps": 4, "guidance": guidance, "latents": noise, "output": "latents"}
    settings |= {"height": 32, "width": 48, "scheduler": "ddim"}
    got = model.text_to_image(PROMPT, **settings)
    plain = base.text_to_image(PROMPT, **settings)
    spread = float(expected.abs().max())
    torch.testing.assert_close(got / spread, expected / spread, atol=1e-4, rtol=0)
    assert float((got - plain).abs().max()) / spread > 1e-3


def test_a_scheduler_without_such_levels_is_refused_by_name(folders: dict[str, Path]) -> None:
    model = inarch.load(folders["epsilon"]).adapt("sag")
    with pytest.raises(InarchError) as caught:
        model.text_to_image(
            PROMPT,
            steps=2,
            height=32,
            width=32,
            scheduler="euler",
            output="latents",
        )
    assert caught.value.code == "IA492"
    assert "EulerDiscreteScheduler" in caught.value.what


def test_guidance_adds_up_beside_a_lora_in_either_order(folders: dict[str, Path]) -> None:
    base = inarch.load(folders["epsilon"])
    sag, lora = inarch.adapter("sag"), inarch.adapter("lora", name="style")
    pictures = []
    for specs in ((sag, lora), (lora, sag)):
        model = base.adapt(*specs)
        generator = torch.Generator().manual_seed(6)
        for parameter in model.adapter_parameters("style").values():
            parameter.data = torch.randn(parameter.shape, generator=generator) / 8
        pictures.append(
            model.text_to_image(
                PROMPT, steps=2, height=16, width=16, seed=1, scheduler="ddim", output="latents"
            )
        )
    assert torch.equal(*pictures)
