"""Whole pipelines with IP-Adapters, alone and in a scene: diffusers' latents after ten steps."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from small_ip_adapters import Pair, embedding, ip_adapter
from small_pipelines import pipeline, saved
from torch import Tensor

import inarch
from inarch.resolve import resolve
from inarch.stack import stack_text
from inarch_stable_diffusion.beside_diffusers import randomised

PROMPT, WORSE = "a lighthouse in the storm", "ugly sea"
SIZE = {"height": 16, "width": 24}


def close(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4 * float(theirs.abs().max()))


def diffusers_latents(made: Any, **settings: Any) -> Tensor:
    import diffusers

    made.set_progress_bar_config(disable=True)
    made.scheduler = diffusers.DDIMScheduler.from_config(made.scheduler.config)
    generator = torch.Generator().manual_seed(3)
    usual = {"num_inference_steps": 10, "guidance_scale": 6.0, "output_type": "latent", **SIZE}
    given = {"negative_prompt": WORSE, "generator": generator, **usual, **settings}
    return made(PROMPT, **given).images


def our_latents(model: Any, **inputs: Any) -> Tensor:
    usual = {"guidance": 6.0, "steps": 10, "seed": 3, "output": "latents", "progress": False}
    return model.text_to_image(PROMPT, negative_prompt=WORSE, **SIZE, **usual, **inputs)


def with_none(seen: Tensor) -> Tensor:
    """As diffusers takes embeddings: those of no prompt, zeros, before."""
    return torch.cat([torch.zeros_like(seen), seen])


def test_two_in_a_pipeline(tmp_path: Path) -> None:
    pytest.importorskip("diffusers")
    theirs = pipeline(saved(tmp_path / "model"))
    model = inarch.load(tmp_path / "model")
    files = [ip_adapter(theirs.unet, kind, i) for i, kind in enumerate(("plain", "faceid"))]
    seen = [embedding(kind, i, batch=1) for i, kind in enumerate(("plain", "faceid"))]
    for name, file in zip("ab", files, strict=True):
        save_file(file, tmp_path / f"{name}.safetensors")
    pair = Pair(theirs.unet, model, seen[0], {})
    pair.load(*files)
    pair.scale(0.7, 0.4)
    expected = diffusers_latents(theirs, ip_adapter_image_embeds=[with_none(s) for s in seen])
    specs = [
        inarch.adapter("ip-adapter", weights=tmp_path / f"{n}.safetensors", name=n, scale=s)
        for n, s in (("a", 0.7), ("b", 0.4))
    ]
    close(our_latents(model.adapt(*specs), a_embedding=seen[0], b_embedding=seen[1]), expected)


def test_a_scene_of_four_is_diffusers_and_every_order_gives_one_image(tmp_path: Path) -> None:
    diffusers = pytest.importorskip("diffusers")
    theirs = pipeline(saved(tmp_path / "model"))
    model = inarch.load(tmp_path / "model")
    nets = []
    for i, name in enumerate(("canny", "depth")):
        net = diffusers.ControlNetModel.from_unet(
            theirs.unet, conditioning_embedding_out_channels=(4, 6)
        )
        nets.append(randomised(net, i))
        net.save_pretrained(tmp_path / name)
    image = torch.rand(2, 3, 16, 24, generator=torch.Generator().manual_seed(1))
    file, seen = ip_adapter(theirs.unet, "plain"), embedding("plain", batch=1)
    style = tmp_path / "style.safetensors"
    save_file(file, style)
    theirs.unet.requires_grad_(False)
    lora, generator = {}, torch.Generator().manual_seed(2)
    for name, module in theirs.unet.named_modules():
        if name.endswith("to_v"):
            down = torch.randn(2, module.in_features, generator=generator) * 0.3
            up = torch.randn(module.out_features, 2, generator=generator) * 0.3
            lora |= {f"unet.{name}.lora_A.weight": down, f"unet.{name}.lora_B.weight": up}
            module.weight.add_(0.5 * up @ down)
    save_file(lora, tmp_path / "lora.safetensors")
    pair = Pair(theirs.unet, model, seen, {})
    pair.load(file)
    pair.scale(0.6)
    scene = diffusers.StableDiffusionControlNetPipeline(**theirs.components, controlnet=nets)
    expected = diffusers_latents(
        scene,
        image=[image[:1], image[1:]],
        controlnet_conditioning_scale=[0.8, 0.5],
        ip_adapter_image_embeds=[with_none(seen)],
    )
    specs = [
        inarch.adapter("controlnet", weights=tmp_path / "canny", name="canny", scale=0.8),
        inarch.adapter("controlnet", weights=tmp_path / "depth", name="depth", scale=0.5),
        inarch.adapter(
            "ip-adapter", weights=tmp_path / "style.safetensors", name="style", scale=0.6
        ),
        inarch.adapter("lora", weights=tmp_path / "lora.safetensors", name="drawn", scale=0.5),
    ]
    inputs = {"canny_image": image[:1], "depth_image": image[1:], "style_embedding": seen}
    first = model.adapt(*specs)
    result = our_latents(first, **inputs)
    close(result, expected)
    for order in itertools.islice(itertools.permutations(specs), 5, None, 6):
        other = model.adapt(*order)
        assert other.digest == first.digest
        assert other.trees["unet"].source == first.trees["unet"].source
        assert torch.equal(our_latents(other, **inputs), result)
    dropped = first.without("canny", "depth", "style", "drawn")
    assert torch.equal(our_latents(dropped), our_latents(model))


@pytest.mark.parametrize("shortcut", [False, True])
def test_faceid_plus_reads_the_face_as_a_picture_as_diffusers_users_do(
    tmp_path: Path, shortcut: bool
) -> None:
    pytest.importorskip("diffusers")
    transformers = pytest.importorskip("transformers")
    images = pytest.importorskip("PIL.Image")
    theirs = pipeline(saved(tmp_path / "model"))
    sizes = {"hidden_size": 8, "intermediate_size": 16, "projection_dim": 10, "image_size": 16}
    config = transformers.CLIPVisionConfig(
        **sizes, num_hidden_layers=3, num_attention_heads=2, patch_size=8
    )
    tower = transformers.CLIPVisionModelWithProjection(config)
    randomised(tower, 3).save_pretrained(tmp_path / "image_encoder")
    save_file(ip_adapter(theirs.unet, "faceid_plus", 4), tmp_path / "face.safetensors")
    pixels = torch.randint(0, 256, (20, 20, 3), dtype=torch.uint8)
    picture = images.fromarray(pixels.numpy())
    seen = embedding("faceid_plus", batch=1)
    theirs.load_ip_adapter(
        str(tmp_path), "", "face.safetensors", image_encoder_folder="image_encoder"
    )
    theirs.set_ip_adapter_scale(0.7)
    [patches] = theirs.prepare_ip_adapter_image_embeds([picture], None, "cpu", 1, True)
    layer = theirs.unet.encoder_hid_proj.image_projection_layers[0]
    layer.clip_embeds, layer.shortcut = patches, shortcut
    expected = diffusers_latents(theirs, ip_adapter_image_embeds=[with_none(seen)])
    spec = inarch.adapter(
        "ip-adapter",
        weights=tmp_path / "face.safetensors",
        name="face",
        scale=0.7,
        shortcut=shortcut,
        image_encoder=str(tmp_path / "image_encoder"),
    )
    model = inarch.load(tmp_path / "model").adapt(spec)
    close(our_latents(model, face_embedding=seen, face_image=picture), expected)
    two = model.text_to_image(
        [PROMPT, PROMPT],
        guidance=1.0,
        steps=2,
        seed=[1, 2],
        output="latents",
        face_embedding=seen,
        face_image=picture,
        **SIZE,
    )
    assert not torch.equal(two[0], two[1])


def test_the_encoder_counts_from_the_stack_file_and_for_what_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("diffusers")
    transformers = pytest.importorskip("transformers")
    images = pytest.importorskip("PIL.Image")
    theirs = pipeline(saved(tmp_path / "model"))
    sizes = {"hidden_size": 8, "intermediate_size": 16, "projection_dim": 10, "image_size": 16}
    config = transformers.CLIPVisionConfig(
        **sizes, num_hidden_layers=2, num_attention_heads=2, patch_size=8
    )
    for name, seed in (("models/encoder", 1), ("other/encoder", 2), ("same/tower", 1)):
        tower = randomised(transformers.CLIPVisionModelWithProjection(config), seed)
        tower.save_pretrained(tmp_path / name)
    save_file(ip_adapter(theirs.unet, "plain"), tmp_path / "style.safetensors")

    def stack(encoder: str) -> Any:
        (tmp_path / "stack.toml").write_text(
            'model = "model"\n[[adapter]]\nuse = "ip-adapter"\nname = "style"\n'
            f'weights = "style.safetensors"\noptions = {{ image_encoder = "{encoder}" }}\n'
        )
        return inarch.load_stack(tmp_path / "stack.toml")

    base = inarch.load(tmp_path / "model")
    picture = images.new("RGB", (20, 20), (200, 30, 90))
    models = [base.adapt(stack(f"{name}")) for name in ("models/encoder", "same/tower")]
    assert models[0].digest == models[1].digest
    assert base.adapt(stack("other/encoder")).digest != models[0].digest
    expected = our_latents(models[0], style_image=picture)
    monkeypatch.chdir(tmp_path / "models")
    assert base.adapt(stack("models/encoder")).digest == models[0].digest
    again = tmp_path / "models" / "again.toml"
    again.write_text(stack_text(stack("models/encoder")))
    assert torch.equal(
        our_latents(base.adapt(inarch.load_stack(again)), style_image=picture), expected
    )
    plan = resolve(base, stack("models/encoder"))
    assert plan.digest == models[0].digest
    assert plan.members[0].options == {"image_encoder": str(tmp_path / "models" / "encoder")}
    assert torch.equal(our_latents(plan.apply(base), style_image=picture), expected)
