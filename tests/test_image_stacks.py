"""Scenes of three to six adapters of image models, against diffusers running the same files.

What diffusers runs is its own pipeline, with its own loaders. Every order of a scene is one digest,
one order and one picture, bit for bit.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import inarch
from inarch.resolve.arrange import arrange
from inarch.resolve.digest import of_members

sys.path.insert(0, str(Path(__file__).parent))
from image_stacks import SIZE, Files, close, ours, theirs

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@dataclass(frozen=True)
class Scene:
    """A stack with its inputs, and the latents of diffusers with the same."""

    base: Any
    specs: list[inarch.AdapterSpec]
    inputs: Mapping[str, Any]
    expected: Tensor
    task: str = "text_to_image"

    def latents(self, model: Any) -> Tensor:
        return ours(model, self.task, **self.inputs)


def six(folder: Path) -> Scene:
    """Two ControlNets, two LoRAs, an IP-Adapter with its image encoder, and a learned word."""
    files = Files(folder)
    nets = [files.controlnet("canny", 1), files.controlnet("depth", 2)]
    images, face = [files.image(1), files.image(2)], files.picture(5)
    ink, film = files.lora("ink", 3), files.lora("film", 4, ("to_k", "to_out.0", "ff.net.0.proj"))
    encoder, style = files.image_encoder(), files.ip_adapter("style", "plain", 6)
    toy = files.words("toy", "<toy>", 3, 7)
    pipe = files.pipeline("StableDiffusionControlNetPipeline", controlnet=nets)
    pipe.load_lora_weights(str(ink), adapter_name="ink")
    pipe.load_lora_weights(str(film), adapter_name="film")
    pipe.set_adapters(["ink", "film"], [0.8, 0.5])
    pipe.load_ip_adapter(str(folder), "", "style.safetensors", image_encoder_folder="image_encoder")
    pipe.set_ip_adapter_scale(0.6)
    pipe.load_textual_inversion(str(toy))
    expected = theirs(
        pipe,
        image=images,
        controlnet_conditioning_scale=[0.9, 0.5],
        control_guidance_end=[1.0, 0.5],
        ip_adapter_image=face,
        **SIZE,
    )
    specs = [
        inarch.adapter("controlnet", weights=folder / "canny", name="canny", scale=0.9),
        inarch.adapter("controlnet", weights=folder / "depth", name="depth", scale=0.5, end=0.5),
        inarch.adapter("lora", weights=ink, name="ink", scale=0.8),
        inarch.adapter("lora", weights=film, name="film", scale=0.5),
        inarch.adapter(
            "ip-adapter", weights=style, name="style", scale=0.6, image_encoder=str(encoder)
        ),
        inarch.adapter("textual-inversion", weights=toy, name="toy"),
    ]
    inputs = {"canny_image": images[0], "depth_image": images[1], "style_image": face}
    return Scene(files.model, specs, inputs, expected)


def three_of_xl(folder: Path) -> Scene:
    """T2I-Adapter, LoRA and IP-Adapter Plus on the second family."""
    files = Files(folder, xl=True)
    net, image, face = files.t2i("sketch", 1), files.image(1), files.picture(2)
    paper, encoder = files.lora("paper", 3), files.image_encoder()
    style = files.ip_adapter("style", "plus", 4)
    pipe = files.pipeline("StableDiffusionXLAdapterPipeline", adapter=net)
    pipe.load_lora_weights(str(paper), adapter_name="paper")
    pipe.set_adapters(["paper"], [0.7])
    pipe.load_ip_adapter(str(folder), "", "style.safetensors", image_encoder_folder="image_encoder")
    pipe.set_ip_adapter_scale(0.5)
    expected = theirs(
        pipe,
        image=image,
        adapter_conditioning_scale=0.8,
        adapter_conditioning_factor=0.75,
        ip_adapter_image=face,
        **SIZE,
    )
    specs = [
        inarch.adapter(
            "t2i-adapter", weights=folder / "sketch", name="sketch", scale=0.8, end=0.75
        ),
        inarch.adapter("lora", weights=paper, name="paper", scale=0.7),
        inarch.adapter(
            "ip-adapter", weights=style, name="style", scale=0.5, image_encoder=str(encoder)
        ),
    ]
    return Scene(files.model, specs, {"sketch_image": image, "style_image": face}, expected)


def four_on_an_image(folder: Path) -> Scene:
    """An image made anew: ControlNet, a FaceID with the LoRA in its file, another, and a word."""
    files = Files(folder)
    net, control, image = files.controlnet("canny", 1), files.image(1), files.image(2)
    ink, face = files.lora("ink", 3), files.ip_adapter("face", "faceid", 4, lora=True)
    toy = files.words("toy", "<toy>", 2, 5)
    seen = torch.randn(1, 1, 10, generator=torch.Generator().manual_seed(6))
    pipe = files.pipeline("StableDiffusionControlNetImg2ImgPipeline", controlnet=net)
    pipe.load_lora_weights(str(ink), adapter_name="ink")
    pipe.load_ip_adapter(str(folder), "", "face.safetensors", image_encoder_folder=None)
    pipe.set_adapters(["ink", "faceid_0"], [0.8, 1.0])
    pipe.set_ip_adapter_scale(0.6)
    pipe.load_textual_inversion(str(toy))
    expected = theirs(
        pipe,
        steps=5,
        image=image,
        control_image=control,
        strength=0.8,
        controlnet_conditioning_scale=0.9,
        ip_adapter_image_embeds=[torch.cat([torch.zeros_like(seen), seen])],
    )
    specs = [
        inarch.adapter("controlnet", weights=folder / "canny", name="canny", scale=0.9),
        inarch.adapter("ip-adapter", weights=face, name="face", scale=0.6),
        inarch.adapter("lora", weights=ink, name="ink", scale=0.8),
        inarch.adapter("textual-inversion", weights=toy, name="toy"),
    ]
    inputs = {"canny_image": control, "face_embedding": seen, "image": image, "steps": 5}
    return Scene(files.model, specs, {**inputs, "strength": 0.8}, expected, "image_to_image")


def three_in_a_mask(folder: Path) -> Scene:
    """Inpainting: a Control-LoRA, a LoRA of the UNet beside it, and an IP-Adapter."""
    files = Files(folder)
    net, control, image = files.control_lora("lines", 1), files.image(1), files.image(2)
    ink, style = files.lora("ink", 3), files.ip_adapter("style", "full", 4)
    seen = torch.randn(1, 1, 7, 10, generator=torch.Generator().manual_seed(6))
    mask = torch.zeros(1, 1, *SIZE.values())
    mask[..., 4:12, 6:20] = 1.0
    pipe = files.pipeline("StableDiffusionControlNetInpaintPipeline", controlnet=net)
    pipe.load_lora_weights(str(ink), adapter_name="ink")
    pipe.load_ip_adapter(str(folder), "", "style.safetensors", image_encoder_folder=None)
    pipe.set_adapters(["ink"], [0.8])
    pipe.set_ip_adapter_scale(0.4)
    expected = theirs(
        pipe,
        image=image,
        mask_image=mask,
        control_image=control,
        controlnet_conditioning_scale=0.7,
        ip_adapter_image_embeds=[torch.cat([torch.zeros_like(seen), seen])],
        **SIZE,
    )
    lines = folder / "lines.safetensors"
    specs = [
        inarch.adapter("controlnet", weights=lines, name="lines", scale=0.7),
        inarch.adapter("lora", weights=ink, name="ink", scale=0.8),
        inarch.adapter("ip-adapter", weights=style, name="style", scale=0.4),
    ]
    inputs = {"lines_image": control, "style_embedding": seen, "image": image, "mask": mask}
    return Scene(files.model, specs, inputs, expected, "inpaint")


SCENES = {
    "six": six,
    "three of xl": three_of_xl,
    "four on an image": four_on_an_image,
    "three in a mask": three_in_a_mask,
}


@pytest.fixture(scope="module", params=list(SCENES))
def scene(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Scene:
    return SCENES[request.param](tmp_path_factory.mktemp("stack"))


def test_a_scene_has_the_latents_of_diffusers(scene: Scene) -> None:
    plain = {n: v for n, v in scene.inputs.items() if n in ("image", "mask", "strength", "steps")}
    without = ours(scene.base, scene.task, **plain)
    close(scene.latents(scene.base.adapt(*scene.specs)), scene.expected)
    assert not torch.allclose(without, scene.expected, atol=1e-1)


def test_every_adapter_of_a_scene_counts(scene: Scene) -> None:
    whole = scene.base.adapt(*scene.specs)
    expected = scene.latents(whole)
    for spec in scene.specs:
        left = {n: v for n, v in scene.inputs.items() if not n.startswith(f"{spec.name}_")}
        without = ours(whole.without(spec.name), scene.task, **left)
        assert not torch.allclose(without, expected, atol=1e-3), spec.name


def test_every_permutation_is_one_order_and_one_digest(scene: Scene) -> None:
    first = scene.base.adapt(*scene.specs)
    for members in itertools.permutations(first.adapters):
        order = arrange(members, scene.base.pristine)
        assert order.names == first.order.names
        assert of_members(order.names, members) == first.digest


def test_permutations_are_one_picture_bit_for_bit(scene: Scene) -> None:
    first = scene.base.adapt(*scene.specs)
    expected = scene.latents(first)
    orders = list(itertools.permutations(scene.specs))
    for order in orders[1 :: max(1, len(orders) // 6)]:  # all of three, some of more
        model = scene.base.adapt(*order)
        assert model.digest == first.digest
        assert {n: t.form for n, t in model.trees.items()} == {
            n: t.form for n, t in first.trees.items()
        }
        assert torch.equal(scene.latents(model), expected)


def test_one_after_another_is_the_same_as_at_once(scene: Scene) -> None:
    model = scene.base
    for spec in reversed(scene.specs):
        model = model.adapt(spec)
    whole = scene.base.adapt(*scene.specs)
    assert model.digest == whole.digest
    assert torch.equal(scene.latents(model), scene.latents(whole))


def test_adapting_dropping_and_adapting_again_is_the_first_time_bit_for_bit(scene: Scene) -> None:
    before = {name: tensor.clone() for name, tensor in scene.base.state_dict().items()}
    first = scene.base.adapt(*scene.specs)
    expected = scene.latents(first)
    names = [spec.name for spec in scene.specs]
    dropped = first.without(*names)
    assert {n: t.form for n, t in dropped.trees.items()} == {
        n: t.form for n, t in scene.base.trees.items()
    }
    now = dropped.state_dict()
    assert now.keys() == before.keys()
    assert all(torch.equal(now[name], tensor) for name, tensor in before.items())
    assert torch.equal(scene.latents(dropped.adapt(*scene.specs)), expected)
    half = first.without(*names[::2])
    assert torch.equal(scene.latents(half.adapt(*scene.specs[::2])), expected)


def test_a_lora_lands_on_the_unet_and_never_on_a_controlnet_beside_it(scene: Scene) -> None:
    model = scene.base.adapt(*scene.specs)
    brought = [m for m in model.adapters if m.kind == "lora"]
    beside = [m for m in model.adapters if m.kind == "controlnet"]
    assert brought
    for member in brought:
        assert {edit.address for edit in member.edits} <= set(scene.base.sites.all)
    for member in beside:
        alone = scene.base.adapt(member.spec).adapters[member.name].parameters()
        together = member.parameters()
        assert together.keys() == alone.keys()
        assert all(torch.equal(together[name], tensor) for name, tensor in alone.items())
        [tower] = [m for at, m in member.modules.items() if at.endswith("control")]
        others = {one.name for one in model.adapters} - {member.name}
        assert not any(
            f"__{other}" in name for name, _ in tower.named_modules() for other in others
        )
