"""Whole pipelines with ControlNets: diffusers' latents after ten steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from small_controlnets import controlnet
from small_pipelines import pipeline, saved
from torch import Tensor

import inarch
from inarch.errors import InarchError

PROMPT, WORSE = "a lighthouse in the storm", "ugly sea"
SIZE = {"height": 16, "width": 24}


class Scene:
    """A pipeline in both libraries, and ControlNets for it."""

    def __init__(self, folder: Path, xl: bool) -> None:
        self.folder = folder
        self.theirs = pipeline(saved(folder, xl=xl))
        self.model = inarch.load(folder)
        self.xl = xl

    def net(self, name: str, seed: int, **settings: Any) -> Any:
        unet, widths = self.theirs.unet, (4, 6)  # this autoencoder halves once
        path = self.folder / name
        return controlnet(unet, path, seed, conditioning_embedding_out_channels=widths, **settings)

    def image(self, seed: int, batch: int = 1) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return torch.rand(batch, 3, 16, 24, generator=generator)

    def diffusers(self, nets: Any, image: Any, **settings: Any) -> Tensor:
        import diffusers

        kind = (
            diffusers.StableDiffusionXLControlNetPipeline
            if self.xl
            else diffusers.StableDiffusionControlNetPipeline
        )
        parts = dict(self.theirs.components)
        if self.xl:
            parts = {n: p for n, p in parts.items() if n not in ("image_encoder",)}
        made = kind(**parts, controlnet=nets)
        made.set_progress_bar_config(disable=True)
        made.scheduler = diffusers.DDIMScheduler.from_config(self.theirs.scheduler.config)
        return made(
            PROMPT,
            image=image,
            negative_prompt=WORSE,
            num_inference_steps=10,
            generator=torch.Generator().manual_seed(3),
            output_type="latent",
            **SIZE,
            **settings,
        ).images

    def ours(self, *specs: Any, **inputs: Any) -> Tensor:
        usual = {"guidance": 6.0, "steps": 10, "seed": 3, "output": "latents", "progress": False}
        model = self.model.adapt(*specs)
        return model.text_to_image(PROMPT, negative_prompt=WORSE, **SIZE, **{**usual, **inputs})


@pytest.fixture(scope="module", params=[False, True], ids=["sd1", "xl"])
def scene(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Scene:
    pytest.importorskip("diffusers")
    pytest.importorskip("transformers")
    return Scene(tmp_path_factory.mktemp("pipeline"), request.param)


def close(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4 * float(theirs.abs().max()))


def test_two_with_scales_and_shares_of_the_steps(scene: Scene) -> None:
    nets = [scene.net("a", 1), scene.net("b", 2)]
    images = [scene.image(1), scene.image(2)]
    expected = scene.diffusers(
        nets,
        images,
        guidance_scale=6.0,
        controlnet_conditioning_scale=[0.9, 0.5],
        control_guidance_start=[0.0, 0.25],
        control_guidance_end=[0.6, 1.0],
    )
    specs = [
        inarch.adapter("controlnet", weights=scene.folder / "a", name="a", scale=0.9, end=0.6),
        inarch.adapter("controlnet", weights=scene.folder / "b", name="b", scale=0.5, start=0.25),
    ]
    given = {"a_image": images[0], "b_image": images[1]}
    results = [scene.ours(*s, **given) for s in (specs, specs[::-1])]
    close(results[0], expected)
    assert torch.equal(*results)
    assert not torch.allclose(results[0], scene.ours(), atol=1e-2)


def test_guess_mode_with_guidance_and_without(scene: Scene) -> None:
    net, image = scene.net("a", 1), scene.image(1)
    spec = inarch.adapter(
        "controlnet", weights=scene.folder / "a", name="a", scale=0.8, guess_mode=True
    )
    for guidance in (4.0, 1.0):
        expected = scene.diffusers(
            net,
            image,
            guidance_scale=guidance,
            controlnet_conditioning_scale=0.8,
            guess_mode=True,
        )
        close(scene.ours(spec, a_image=image, guidance=guidance), expected)


def test_a_picture_of_another_size_is_resized_as_diffusers_does(
    scene: Scene, tmp_path: Path
) -> None:
    images = pytest.importorskip("PIL.Image")
    pixels = (scene.image(4)[0].permute(1, 2, 0) * 255).to(torch.uint8)
    picture = images.frombytes("RGB", (24, 16), bytes(pixels.flatten().tolist())).resize((50, 37))
    picture.save(tmp_path / "it.png")
    net = scene.net("a", 1)
    expected = scene.diffusers(net, picture, guidance_scale=6.0)
    spec = inarch.adapter("controlnet", weights=scene.folder / "a", name="a")
    close(scene.ours(spec, a_image=picture), expected)
    close(scene.ours(spec, a_image=tmp_path / "it.png"), expected)


def test_a_missing_picture_says_who_needs_it(scene: Scene) -> None:
    scene.net("a", 1)
    with pytest.raises(InarchError) as raised:
        scene.ours(inarch.adapter("controlnet", weights=scene.folder / "a", name="canny"))
    assert raised.value.what == (
        "controlnet `canny` needs `canny_image`: [batch, 3, height, width] in 0..1"
    )


def test_it_is_saved_with_the_bases_configuration(scene: Scene, tmp_path: Path) -> None:
    from diffusers import ControlNetModel

    model = scene.model.adapt(inarch.adapter("controlnet", name="a", widths=(4, 6)))
    model.save_adapter("a", tmp_path)
    net = ControlNetModel.from_pretrained(tmp_path)
    theirs = dict(scene.theirs.unet.state_dict())
    own = {n: t for n, t in net.state_dict().items() if not n.startswith("controlnet_")}
    assert all(torch.equal(t, theirs[n]) for n, t in own.items())
