"""Whole runs beside a reference, against the published logic on diffusers' UNet."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from published import published
from safetensors.torch import save_file
from small_ip_adapters import Pair, embedding, ip_adapter
from small_pipelines import pipeline, saved
from torch import Tensor

import inarch
from inarch_stable_diffusion.beside_diffusers import randomised

PROMPT = "a lighthouse in the storm"
SIZE = {"height": 32, "width": 48}
STEPS = 4
DEEPER = {
    "block_out_channels": (8, 16, 16),
    "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    "layers_per_block": 2,
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("pipelines")
    velocity = {"prediction_type": "v_prediction"}
    return {
        "small": saved(root / "small", seed=2, scale=0.2),
        "deeper": saved(root / "deeper", seed=7, scheduler=velocity, scale=0.2, **DEEPER),
    }


def random(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


PICTURE = random(11, 1, 3, 32, 48).sigmoid()


def theirs(folder: Path, prompts: list[str], noise: Tensor, **settings: Any) -> Tensor:
    """What is published, by the pipeline's scheduler or another one of diffusers."""
    made = pipeline(folder)
    kind = getattr(diffusers, settings.pop("scheduler", "DDIMScheduler"))
    made.scheduler = kind.from_config(made.scheduler.config)
    usual = {"steps": STEPS, "seed": 5, "guidance": 6.0, "style_fidelity": 0.5, "adain": False}
    reference = settings.pop("reference", PICTURE * 2 - 1)
    return published(made, prompts, reference, noise, **{**usual, **settings})


def ours(model: Any, prompts: Any, noise: Tensor | None, **settings: Any) -> Tensor:
    usual = {"steps": STEPS, "seed": 5, "guidance": 6.0, "output": "latents", **SIZE}
    return model.text_to_image(
        prompts, latents=noise, **{**usual, "scheduler": "DDIMScheduler", **settings}
    )


def assert_equal(got: Tensor, expected: Tensor) -> None:
    spread = float(expected.abs().max())
    torch.testing.assert_close(got / spread, expected / spread, atol=1e-4, rtol=0)


def assert_apart(got: Tensor, other: Tensor) -> None:
    assert float((got - other).abs().max() / other.abs().max()) > 1e-3


@pytest.mark.parametrize("fidelity", [0.0, 0.5, 1.0])
@pytest.mark.parametrize(("attn", "adain"), [(True, False), (False, True), (True, True)])
@pytest.mark.parametrize("guidance", [1.0, 6.0])
def test_a_run_beside_a_reference_equals_the_published_one(
    folders: dict[str, Path], fidelity: float, attn: bool, adain: bool, guidance: float
) -> None:
    noise, prompts = random(3, 2, 4, 16, 24), [PROMPT, "a red boat"]
    settings = {"guidance": guidance, "style_fidelity": fidelity, "attn": attn, "adain": adain}
    expected = theirs(folders["deeper"], prompts, noise, **settings)
    base = inarch.load(folders["deeper"])
    options = {"reference_attn": attn, "reference_adain": adain, "style_fidelity": fidelity}
    model = base.adapt(inarch.adapter("reference", **options))
    got = ours(model, prompts, noise, guidance=guidance, reference_image=PICTURE)
    assert_equal(got, expected)
    assert_apart(got, ours(base, prompts, noise, guidance=guidance))


@pytest.mark.parametrize(("attention", "gn"), [(0.3, 0.0), (0.5, 0.7), (0.9, 1.5), (1.0, 2.0)])
def test_weights_choose_the_same_layers(
    folders: dict[str, Path], attention: float, gn: float
) -> None:
    noise = random(4, 1, 4, 16, 24)
    weights = {"attention_weight": attention, "gn_weight": gn}
    expected = theirs(folders["deeper"], [PROMPT], noise, adain=True, **weights)
    base = inarch.load(folders["deeper"])
    model = base.adapt(inarch.adapter("reference", reference_adain=True, **weights))
    assert_equal(ours(model, PROMPT, noise, reference_image=PICTURE), expected)
    every = base.adapt(inarch.adapter("reference", reference_adain=True))
    assert_apart(ours(every, PROMPT, noise, reference_image=PICTURE), expected)


@pytest.mark.parametrize(
    "scheduler", ["EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler", "PNDMScheduler"]
)
def test_any_scheduler_noises_the_reference_as_published(
    folders: dict[str, Path], scheduler: str
) -> None:
    noise = random(6, 1, 4, 16, 24)
    expected = theirs(folders["small"], [PROMPT], noise, scheduler=scheduler)
    model = inarch.load(folders["small"]).adapt("reference")
    got = ours(model, PROMPT, noise, scheduler=scheduler, reference_image=PICTURE)
    assert_equal(got, expected)


def test_latents_stand_for_the_picture(folders: dict[str, Path]) -> None:
    noise, clean = random(6, 2, 4, 16, 24), random(7, 1, 4, 16, 24)
    prompts = [PROMPT, "a red boat"]
    expected = theirs(folders["small"], prompts, noise, reference=clean, encoded=True)
    model = inarch.load(folders["small"]).adapt(inarch.adapter("reference", encoded=True))
    assert_equal(ours(model, prompts, noise, reference_latents=clean), expected)


def test_a_picture_of_another_size_is_resized_as_published(folders: dict[str, Path]) -> None:
    from diffusers.utils import PIL_INTERPOLATION
    from PIL import Image

    pixels = random(12, 40, 30, 3).sigmoid().mul(255).byte().numpy()
    picture, noise = Image.fromarray(pixels), random(6, 1, 4, 16, 24)
    resized = picture.resize((48, 32), resample=PIL_INTERPOLATION["lanczos"])
    reference = torch.tensor(list(resized.tobytes())).reshape(1, 32, 48, 3).permute(0, 3, 1, 2)
    expected = theirs(folders["small"], [PROMPT], noise, reference=reference / 255 * 2 - 1)
    model = inarch.load(folders["small"]).adapt("reference")
    assert_equal(ours(model, PROMPT, noise, reference_image=picture), expected)


def test_a_seed_draws_the_noise_to_begin_with_first(folders: dict[str, Path]) -> None:
    base = inarch.load(folders["small"])
    model = base.adapt(inarch.adapter("reference", scale=0.0))
    assert torch.equal(ours(model, PROMPT, None, reference_image=PICTURE), ours(base, PROMPT, None))


def test_lora_controlnet_and_ip_adapter_beside_it_equal_diffusers_in_every_order(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    """The first pass has the LoRA; a ControlNet and an IP-Adapter act in the second alone."""
    made = pipeline(folders["small"])
    model = inarch.load(folders["small"])
    net = diffusers.ControlNetModel.from_unet(made.unet, conditioning_embedding_out_channels=(4, 6))
    randomised(net, 1).save_pretrained(tmp_path / "canny")
    net.requires_grad_(False)
    control = random(8, 1, 3, 32, 48).sigmoid()
    file, seen = ip_adapter(made.unet, "plain"), embedding("plain", batch=1)
    save_file(file, tmp_path / "style.safetensors")
    save_file(with_lora(made.unet), tmp_path / "lora.safetensors")
    pair = Pair(made.unet, model, seen, {})
    pair.load(file)

    def told(rows: Tensor, t: Tensor, text: Tensor, writing: bool) -> dict[str, Any]:
        pair.scale(0.0 if writing else 0.6)
        more: dict[str, Any] = {"added_cond_kwargs": {"image_embeds": [seen.repeat(2, 1, 1)]}}
        if not writing:
            down, mid = net(rows, t, text, control.repeat(2, 1, 1, 1), 0.8, return_dict=False)
            more |= {"down_block_additional_residuals": down, "mid_block_additional_residual": mid}
        return more

    noise = random(9, 1, 4, 16, 24)
    usual = {"steps": STEPS, "seed": 5, "guidance": 6.0, "style_fidelity": 0.5}
    expected = published(made, [PROMPT], PICTURE * 2 - 1, noise, told=told, **usual)
    specs = [
        inarch.adapter("reference", reference_adain=True),
        inarch.adapter("controlnet", weights=tmp_path / "canny", name="canny", scale=0.8),
        inarch.adapter("ip-adapter", weights=tmp_path / "style.safetensors", name="i", scale=0.6),
        inarch.adapter("lora", weights=tmp_path / "lora.safetensors", name="drawn", scale=0.5),
    ]
    inputs = {"reference_image": PICTURE, "canny_image": control}
    inputs["i_embedding"] = torch.cat([seen, seen])  # for no prompt too
    first = model.adapt(*specs)
    got = ours(first, PROMPT, noise, **inputs)
    assert_equal(got, expected)
    for order in itertools.islice(itertools.permutations(specs), 3, None, 5):
        other = model.adapt(*order)
        assert other.digest == first.digest
        assert other.trees["unet"].source == first.trees["unet"].source
        assert torch.equal(ours(other, PROMPT, noise, **inputs), got)


def with_lora(unet: Any) -> dict[str, Tensor]:
    """A LoRA's file, which the UNet's own weights hold at half of its strength afterwards."""
    found: dict[str, Tensor] = {}
    unet.requires_grad_(False)
    for i, (name, module) in enumerate(unet.named_modules()):
        if name.endswith(("to_k", "to_v")):
            down = random(100 + i, 2, module.in_features) * 0.3
            up = random(200 + i, module.out_features, 2) * 0.3
            found |= {f"unet.{name}.lora_A.weight": down, f"unet.{name}.lora_B.weight": up}
            module.weight.add_(0.5 * up @ down)
    return found
