"""ControlNets equal to diffusers', alone and together, and nothing of them left when dropped."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from small_controlnets import controlnet

import inarch
from inarch_stable_diffusion.beside_diffusers import Pair

Make = Callable[..., Pair]


def close(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5 * float(theirs.abs().max()))


@pytest.mark.parametrize(
    ("kind", "scale"), [("sd1", 1.0), ("sd2", 1.0), ("xl", 0.6), ("deep", 0.6)]
)
def test_a_forward_is_diffusers(make_pair: Make, tmp_path: Path, kind: str, scale: float) -> None:
    pair = make_pair(kind)
    net, image = controlnet(pair.unet, tmp_path), pair.image()
    spec = inarch.adapter("controlnet", weights=tmp_path, name="canny", scale=scale)
    model = pair.model.adapt(spec)
    expected = pair.theirs(pair.control(net, image, scale))
    assert not torch.allclose(expected, pair.theirs(), atol=1e-2)
    close(pair.ours(model, canny_image=image), expected)


SMALLER = {
    "small": {
        "down_block_types": ["DownBlock2D"] * 3,
        "mid_block_type": "UNetMidBlock2D",
        "transformer_layers_per_block": [1, 1, 1],
    },
    "mid": {"transformer_layers_per_block": [1, 1, 1]},
    "middle alone": {"down_block_types": ["DownBlock2D"] * 3},
    "deeper": {"transformer_layers_per_block": [1, 2, 3], "attention_head_dim": [1, 4, 4]},
}


# Only a config.json tells how many heads there are, so a file alone has the model's.
ALONE = [which for which, settings in SMALLER.items() if "attention_head_dim" not in settings]


@pytest.mark.parametrize(
    ("which", "named"), [*((w, True) for w in SMALLER), *((w, False) for w in ALONE)]
)
def test_other_transformers_than_the_model_s_are_diffusers(
    make_pair: Make, tmp_path: Path, which: str, named: bool
) -> None:
    """As published for XL: small has no transformer at all, mid has one block where XL has many."""
    from diffusers import ControlNetModel

    pair, folder = make_pair("xl"), tmp_path / "net"
    net, image = controlnet(pair.unet, folder, **SMALLER[which]), pair.image()
    place = folder
    if not named:
        place = (folder / "diffusion_pytorch_model.safetensors").rename(tmp_path / "it.safetensors")
    model = pair.model.adapt(inarch.adapter("controlnet", weights=place, name="canny", scale=0.7))
    close(pair.ours(model, canny_image=image), pair.theirs(pair.control(net, image, 0.7)))
    saved = model.save_adapter("canny", tmp_path / "again")
    again = ControlNetModel.from_pretrained(saved)
    assert torch.equal(pair.control(again, image)[1], pair.control(net, image)[1])
    guess = inarch.adapter("controlnet", weights=place, name="canny", guess_mode=True)
    expected = pair.theirs(pair.control(net, image, guess_mode=True))
    close(pair.ours(pair.model.adapt(guess), canny_image=image, prompted=(2, 2)), expected)
    assert model.without("canny").trees["unet"].source == pair.model.trees["unet"].source


def test_guess_mode_is_diffusers_on_the_prompts_half(each_pair: Pair, tmp_path: Path) -> None:
    net, image = controlnet(each_pair.unet, tmp_path), each_pair.image()
    spec = inarch.adapter("controlnet", weights=tmp_path, name="canny", scale=0.7, guess_mode=True)
    down, middle = each_pair.control(net, image, 0.7, guess_mode=True)
    rows = torch.tensor([0.0, 1.0]).reshape(2, 1, 1, 1)
    expected = each_pair.theirs(([d * rows for d in down], middle * rows))
    model = each_pair.model.adapt(spec)
    close(each_pair.ours(model, canny_image=image, prompted=(1, 2)), expected)
    every = each_pair.theirs((down, middle))
    close(each_pair.ours(model, canny_image=image, prompted=(2, 2)), every)
    close(each_pair.ours(model, canny_image=image, prompted=(0, 2)), each_pair.theirs())


def test_guess_mode_runs_the_copy_on_the_prompts_half_alone(
    each_pair: Pair, tmp_path: Path
) -> None:
    controlnet(each_pair.unet, tmp_path)
    seen: dict[str, set[int]] = {}
    for mode in (False, True):
        spec = inarch.adapter("controlnet", weights=tmp_path, name="canny", guess_mode=mode)
        model = each_pair.model.adapt(spec)
        [tower] = [m for at, m in model.adapters["canny"].modules.items() if at.endswith("control")]
        rows = seen.setdefault(str(mode), set())
        for name, module in tower.named_modules():
            if isinstance(module, torch.nn.Linear | torch.nn.Conv2d) and "embedding" not in name:
                module.register_forward_pre_hook(lambda _m, x, rows=rows: rows.add(len(x[0])))
        asked = {"prompted": (1, 2)} if mode else {}
        each_pair.ours(model, canny_image=each_pair.image(), **asked)
    assert seen == {"False": {2}, "True": {1}}


@pytest.mark.parametrize(
    "settings",
    [{"global_pool_conditions": True}, {"controlnet_conditioning_channel_order": "bgr"}],
    ids=["pooled", "bgr"],
)
def test_settings_beside_the_file_are_heeded(
    make_pair: Make, tmp_path: Path, settings: dict[str, object]
) -> None:
    pair = make_pair("sd1")
    net, image = controlnet(pair.unet, tmp_path, **settings), pair.image()
    model = pair.model.adapt(inarch.adapter("controlnet", weights=tmp_path, name="canny"))
    rows = {"prompted": (2, 2)} if "global_pool_conditions" in settings else {}
    expected = pair.theirs(pair.control(net, image))
    close(pair.ours(model, canny_image=image, **rows), expected)


def test_an_inpainting_model_shows_a_controlnet_the_latents_alone(
    make_pair: Make, tmp_path: Path
) -> None:
    pair = make_pair("inpainting")
    net, image = controlnet(pair.unet, tmp_path, in_channels=4), pair.image()
    model = pair.model.adapt(inarch.adapter("controlnet", weights=tmp_path, name="canny"))
    close(pair.ours(model, canny_image=image), pair.theirs(pair.control(net, image)))


def test_two_are_diffusers_sum_and_each_order_gives_the_same_bits(
    make_pair: Make, tmp_path: Path
) -> None:
    pair = make_pair("sd1")
    names, scales = ("canny", "depth", "pose"), (1.0, 0.5, 0.8)
    images = {f"{n}_image": pair.image(seed) for seed, n in enumerate(names)}
    nets = [controlnet(pair.unet, tmp_path / n, seed) for seed, n in enumerate(names)]
    specs = [
        inarch.adapter("controlnet", weights=tmp_path / n, name=n, scale=s)
        for n, s in zip(names, scales, strict=True)
    ]
    parts = zip(nets, images.values(), scales, strict=True)
    expected = pair.theirs(*(pair.control(*part) for part in parts))
    results = []
    for order in itertools.permutations(specs):
        model = pair.model.adapt(*order)
        results.append((pair.ours(model, **images), model.trees["unet"].source, model.digest))
    close(results[0][0], expected)
    assert all(torch.equal(r[0], results[0][0]) and r[1:] == results[0][1:] for r in results)


def lora(pair: Pair, path: Path) -> None:
    """A LoRA of every query, added to diffusers' weights too."""
    generator = torch.Generator().manual_seed(9)
    tensors = {}
    for name, module in pair.unet.named_modules():
        if name.endswith("to_q"):
            down = torch.randn(2, module.in_features, generator=generator) * 0.3
            up = torch.randn(module.out_features, 2, generator=generator) * 0.3
            tensors |= {f"unet.{name}.lora_A.weight": down, f"unet.{name}.lora_B.weight": up}
            module.weight.add_(up @ down)
    save_file(tensors, path)


def test_a_lora_lands_on_the_unet_and_never_on_a_controlnet(
    make_pair: Make, tmp_path: Path
) -> None:
    pair = make_pair("xl")
    net, image = controlnet(pair.unet, tmp_path / "net"), pair.image()
    residuals = pair.control(net, image)
    lora(pair, tmp_path / "style.safetensors")
    specs = [
        inarch.adapter("controlnet", weights=tmp_path / "net", name="canny"),
        inarch.adapter("lora", weights=tmp_path / "style.safetensors", name="style"),
    ]
    results = [pair.ours(pair.model.adapt(*s), canny_image=image) for s in (specs, specs[::-1])]
    close(results[0], pair.theirs(residuals))
    assert torch.equal(*results)


def test_dropping_one_restores_every_bit_and_adapting_again_equals_the_first_time(
    make_pair: Make, tmp_path: Path
) -> None:
    pair = make_pair("sd1")
    controlnet(pair.unet, tmp_path)
    image, spec = pair.image(), inarch.adapter("controlnet", weights=tmp_path, name="canny")
    before, state = (
        pair.ours(pair.model),
        {n: t.clone() for n, t in pair.model.state_dict().items()},
    )
    model = pair.model.adapt(spec)
    first = pair.ours(model, canny_image=image)
    dropped = model.without("canny")
    assert torch.equal(pair.ours(dropped), before)
    assert torch.equal(pair.ours(pair.model), before)
    assert all(torch.equal(t, state[n]) for n, t in dropped.state_dict().items())
    assert torch.equal(pair.ours(dropped.adapt(spec), canny_image=image), first)
