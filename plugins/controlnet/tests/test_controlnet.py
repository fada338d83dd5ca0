"""What a ControlNet promises beside parity: how it begins, trains, asks for its picture, rests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from small_controlnets import controlnet

import inarch
from inarch.adapters import Model, Request
from inarch.errors import InarchError
from inarch.tree import Chain
from inarch.tree.hoist import hoist
from inarch_stable_diffusion.beside_diffusers import Pair

Make = Callable[..., Pair]


def request_of(pair: Pair, **changed: Any) -> Request:
    height, width = (8 * n for n in pair.latents.shape[2:])
    usual = {"batch": 1, "guided": False, "device": torch.device("cpu"), "dtype": torch.float32}
    return Request(height, width, **{**usual, **changed})


def test_an_untrained_one_changes_no_bit(each_pair: Pair) -> None:
    model = each_pair.model.adapt(inarch.adapter("controlnet", name="canny"))
    image = each_pair.image()
    assert torch.equal(each_pair.ours(model, canny_image=image), each_pair.ours(each_pair.model))


def test_an_untrained_one_begins_with_the_models_weights(make_pair: Make) -> None:
    pair = make_pair("xl")
    mine = pair.model.adapt("controlnet").adapter_parameters("controlnet")
    base = dict(pair.model.trees["unet"].named_parameters())
    copied = [n for n in base if f"unet.control.{n}" in mine]
    assert all(torch.equal(mine[f"unet.control.{n}"], base[n]) for n in copied)
    assert all(mine[f"unet.control.{n}"] is not base[n] for n in copied)
    assert any(".mid_block." in n for n in mine)
    assert not any("up_blocks" in n for n in mine)


def test_it_trains_and_the_model_beside_it_does_not(make_pair: Make) -> None:
    pair = make_pair("sd1")
    model = pair.model.adapt(inarch.adapter("controlnet", name="canny"))
    parameters = model.adapter_parameters("canny")
    image, target = pair.image(), torch.randn_like(pair.latents)
    optimizer = torch.optim.SGD(list(parameters.values()), lr=0.05)
    losses = []
    for _ in range(3):
        optimizer.zero_grad()
        loss = (pair.ours(model, canny_image=image) - target).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    assert losses[2] < losses[1] < losses[0]
    assert all(p.grad is not None for n, p in parameters.items())
    assert all(p.grad is None for p in pair.model.parameters())


def test_its_gradients_are_diffusers(make_pair: Make, tmp_path: Path) -> None:
    pair = make_pair("sd1")
    net, image = controlnet(pair.unet, tmp_path).requires_grad_(True), pair.image()
    model = pair.model.adapt(inarch.adapter("controlnet", weights=tmp_path, name="canny"))
    model.adapters["canny"].trainable = True
    pair.theirs(pair.control(net, image)).square().mean().backward()
    pair.ours(model, canny_image=image).square().mean().backward()
    mine = model.adapter_parameters("canny")
    for name, parameter in net.named_parameters():
        own = f"unet.control.{name}"
        if name.startswith("controlnet_cond_embedding."):
            own = f"unet.hint.{name.partition('.')[2]}"
        scale = float(parameter.grad.abs().max())
        torch.testing.assert_close(mine[own].grad, parameter.grad, rtol=1e-4, atol=1e-5 * scale)


def test_its_input_is_listed_and_its_absence_is_clear(make_pair: Make) -> None:
    model = make_pair("sd1").model.adapt(inarch.adapter("controlnet", name="canny"))
    assert "canny_image" in model.inputs
    with pytest.raises(InarchError) as raised:
        model.read_inputs({}, request_of(make_pair("sd1")))
    assert raised.value.what == (
        "controlnet `canny` needs `canny_image`: [batch, 3, height, width] in 0..1"
    )


def test_one_picture_serves_all_rows_and_several_are_repeated_for_guidance(make_pair: Make) -> None:
    pair = make_pair("sd1")
    model = pair.model.adapt(inarch.adapter("controlnet", name="canny"))
    one, two = pair.image(), torch.cat([pair.image(1), pair.image(2)])
    read = model.read_inputs({"canny_image": one}, request_of(pair, batch=2, guided=True))
    assert torch.equal(read["canny_image"], one)
    read = model.read_inputs({"canny_image": two}, request_of(pair, batch=2, guided=True))
    assert torch.equal(read["canny_image"], torch.cat([two, two]))
    with pytest.raises(InarchError) as raised:
        model.read_inputs({"canny_image": two}, request_of(pair, batch=3))
    assert raised.value.code == "IA505"


def test_guess_mode_asks_which_rows_are_the_prompts(make_pair: Make) -> None:
    pair = make_pair("sd1")
    specs = [inarch.adapter("controlnet", name=n, guess_mode=True) for n in ("canny", "depth")]
    model = pair.model.adapt(*specs)
    assert {"canny_image", "depth_image", "prompted"} <= set(model.inputs)
    read = model.read_inputs(
        {"canny_image": pair.image(), "depth_image": pair.image(4)}, request_of(pair, batch=2)
    )
    assert read.keys() == {"canny_image", "depth_image"}
    assert "prompted" not in pair.model.adapt(inarch.adapter("controlnet", name="canny")).inputs


def test_it_rests_in_the_steps_diffusers_leaves_it_out(make_pair: Make) -> None:
    start, end, count = 0.3, 0.7, 10
    spec = inarch.adapter("controlnet", name="canny", start=start, end=end)
    model = make_pair("sd1").model.adapt(spec)
    keep = [1.0 - float(i / count < start or (i + 1) / count > end) for i in range(count)]
    steps = [(i / count, (i + 1) / count) for i in range(count)]
    assert [model.resting(*step) for step in steps] == [() if k else ("canny",) for k in keep]
    assert 0 < sum(keep) < count


def test_in_a_loop_the_picture_is_embedded_once(make_pair: Make, tmp_path: Path) -> None:
    pair = make_pair("sd1")
    controlnet(pair.unet, tmp_path)
    model = pair.model.adapt(inarch.adapter("controlnet", weights=tmp_path, name="canny"))
    unet, image = model.trees["unet"], pair.image()
    inner, constants = hoist(unet, {"canny_image": image})
    assert list(constants) == ["canny_hint"]
    expected = pair.ours(model, canny_image=image)
    assert torch.equal(inner(pair.latents, **pair.inputs, **constants), expected)


def test_the_scale_is_set_for_every_skip_at_once(make_pair: Make, tmp_path: Path) -> None:
    pair = make_pair("sd1")
    controlnet(pair.unet, tmp_path)
    image = pair.image()
    model = pair.model.adapt(inarch.adapter("controlnet", weights=tmp_path, name="canny"))
    half = pair.model.adapt(inarch.adapter("controlnet", weights=tmp_path, name="canny", scale=0.5))
    model.adapters["canny"].scale = 0.5
    assert torch.equal(pair.ours(model, canny_image=image), pair.ours(half, canny_image=image))
    model.adapters["canny"].scale = 0.0
    assert torch.equal(pair.ours(model, canny_image=image), pair.ours(pair.model))


@pytest.mark.parametrize(
    "options", [{"start": 0.6, "end": 0.4}, {"end": 1.5}, {"widths": ()}, {"channels": 2}]
)
def test_options_out_of_range_are_refused(make_pair: Make, options: dict[str, Any]) -> None:
    with pytest.raises(InarchError) as raised:
        make_pair("sd1").model.adapt(inarch.adapter("controlnet", **options))
    assert raised.value.code == "IA401"


def test_a_model_without_an_encoder_is_refused() -> None:
    tree = Chain(fc=torch.nn.Linear(4, 4))
    with pytest.raises(InarchError) as raised:
        Model({"": tree}, roles={"mlp.up": "fc"}).adapt("controlnet")
    assert raised.value.code == "IA451"
