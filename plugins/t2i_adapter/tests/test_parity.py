"""T2I-Adapters equal to diffusers', of each kind, alone and beside others."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from small_t2i import ADAPTERS, t2i

import inarch
from inarch.tree.hoist import hoist
from inarch_stable_diffusion.beside_diffusers import Pair

Make = Callable[..., Pair]


def close(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5 * float(theirs.abs().max()))


def features(net: object, image: torch.Tensor, scale: float = 1.0) -> list[torch.Tensor]:
    return [f.expand(2, -1, -1, -1) * scale for f in net(image)]


@pytest.mark.parametrize("kind", ADAPTERS)
@pytest.mark.parametrize("scale", [1.0, 0.6])
def test_a_forward_is_diffusers(make_pair: Make, tmp_path: Path, kind: str, scale: float) -> None:
    pair, net = make_pair(ADAPTERS[kind][0]), t2i(kind, tmp_path)
    image = pair.image()[:, : net.config.in_channels]
    spec = inarch.adapter("t2i-adapter", weights=tmp_path, name="sketch", scale=scale)
    expected = pair.theirs(within=features(net, image, scale))
    assert not torch.allclose(expected, pair.theirs(), atol=1e-2)
    close(pair.ours(pair.model.adapt(spec), sketch_image=image), expected)


def test_the_kind_is_read_from_shapes_where_no_settings_are(
    make_pair: Make, tmp_path: Path
) -> None:
    for kind, (family, _) in ADAPTERS.items():
        pair, net = make_pair(family), t2i(kind, tmp_path / kind)
        file = tmp_path / f"{kind}.safetensors"
        shutil.copy(tmp_path / kind / "diffusion_pytorch_model.safetensors", file)
        image = pair.image()[:, : net.config.in_channels]
        model = pair.model.adapt(inarch.adapter("t2i-adapter", weights=file, name="sketch"))
        close(pair.ours(model, sketch_image=image), pair.theirs(within=features(net, image)))


def test_two_and_a_controlnet_are_diffusers_and_each_order_gives_the_same_bits(
    make_pair: Make, tmp_path: Path
) -> None:
    from diffusers import ControlNetModel

    from inarch_stable_diffusion.beside_diffusers import randomised

    pair = make_pair("xl")
    nets = [t2i("xl", tmp_path / n, seed) for seed, n in enumerate("ab")]
    control = randomised(ControlNetModel.from_unet(pair.unet), 7)
    control.save_pretrained(tmp_path / "canny")
    images = {n: pair.image(seed) for seed, n in enumerate(("a_image", "b_image", "canny_image"))}
    summed = [
        0.5 * x + 0.8 * y
        for x, y in zip(
            features(nets[0], images["a_image"]), features(nets[1], images["b_image"]), strict=True
        )
    ]
    expected = pair.theirs(pair.control(control, images["canny_image"]), within=summed)
    specs = [
        inarch.adapter("t2i-adapter", weights=tmp_path / "a", name="a", scale=0.5),
        inarch.adapter("t2i-adapter", weights=tmp_path / "b", name="b", scale=0.8),
        inarch.adapter("controlnet", weights=tmp_path / "canny", name="canny"),
    ]
    results = []
    for order in itertools.permutations(specs):
        model = pair.model.adapt(*order)
        results.append((pair.ours(model, **images), model.digest))
    close(results[0][0], expected)
    assert all(torch.equal(r, results[0][0]) and d == results[0][1] for r, d in results)


def test_its_gradients_are_diffusers(make_pair: Make, tmp_path: Path) -> None:
    pair, net = make_pair("deep"), t2i("full", tmp_path).requires_grad_(True)
    image = pair.image()
    model = pair.model.adapt(inarch.adapter("t2i-adapter", weights=tmp_path, name="sketch"))
    model.adapters["sketch"].trainable = True
    pair.theirs(within=features(net, image)).square().mean().backward()
    pair.ours(model, sketch_image=image).square().mean().backward()
    mine = model.adapter_parameters("sketch")
    for name, parameter in net.named_parameters():
        own = mine[f"unet.features.{name.removeprefix('adapter.')}"]
        scale = float(parameter.grad.abs().max())
        torch.testing.assert_close(own.grad, parameter.grad, rtol=1e-4, atol=1e-5 * scale)


def test_a_saved_one_is_one_for_diffusers(make_pair: Make, tmp_path: Path) -> None:
    from diffusers import T2IAdapter

    for kind, family in {"full": "deep", "full_xl": "xl", "light": "deep"}.items():
        pair, folder = make_pair(family), tmp_path / kind
        model = pair.model.adapt(inarch.adapter("t2i-adapter", name="sketch", kind=kind))
        model.adapters["sketch"].trainable = False
        model.save_adapter("sketch", folder)
        net, image = T2IAdapter.from_pretrained(folder), pair.image()
        ours = pair.ours(model, sketch_image=image)
        with torch.no_grad():
            close(ours, pair.theirs(within=features(net, image)))
        again = pair.model.adapt(inarch.adapter("t2i-adapter", weights=folder, name="sketch"))
        assert torch.equal(pair.ours(again, sketch_image=image), ours)


def test_in_a_loop_the_picture_is_read_once(make_pair: Make, tmp_path: Path) -> None:
    pair, _ = make_pair("xl"), t2i("xl", tmp_path)
    model = pair.model.adapt(
        inarch.adapter("t2i-adapter", weights=tmp_path, name="sketch", scale=0.5)
    )
    image = pair.image()
    inner, constants = hoist(model.trees["unet"], {"sketch_image": image})
    assert set(constants) == {f"sketch_{i}" for i in range(4)}
    assert "features__sketch" not in inner.source
    expected = pair.ours(model, sketch_image=image)
    assert torch.equal(inner(pair.latents, **pair.inputs, **constants), expected)


def test_dropping_one_restores_every_bit(make_pair: Make, tmp_path: Path) -> None:
    pair, _ = make_pair("deep"), t2i("light", tmp_path)
    before = pair.ours(pair.model)
    model = pair.model.adapt(inarch.adapter("t2i-adapter", weights=tmp_path, name="sketch"))
    assert not torch.equal(pair.ours(model, sketch_image=pair.image()), before)
    assert torch.equal(pair.ours(model.without("sketch")), before)
    assert torch.equal(pair.ours(pair.model), before)
