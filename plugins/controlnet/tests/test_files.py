"""The layouts of files: diffusers', the original one, Control-LoRA; each read, and saved again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_controlnets import controlnet

import inarch
from inarch.errors import InarchError
from inarch_controlnet.layout import HINT, original_hint_names, original_names
from inarch_stable_diffusion.beside_diffusers import Pair

Make = Callable[..., Pair]


def original(state: dict[str, torch.Tensor], prefix: str = "control_model.") -> dict[str, Any]:
    hints = {n.removeprefix(HINT): t for n, t in state.items() if n.startswith(HINT)}
    rest = {n: t for n, t in state.items() if not n.startswith(HINT)}
    table, hint_table = original_names(rest), original_hint_names(hints)
    renamed = {prefix + table[n]: t for n, t in rest.items()}
    return renamed | {prefix + hint_table[n]: t for n, t in hints.items()}


@pytest.mark.parametrize("kind", ["deep", "xl"])
def test_original_names_are_what_diffusers_converts(make_pair: Make, kind: str) -> None:
    from diffusers.loaders.single_file_utils import convert_controlnet_checkpoint

    net = controlnet(make_pair(kind).unet, conditioning_embedding_out_channels=(16, 32, 96, 256))
    converted = convert_controlnet_checkpoint(original(net.state_dict()), dict(net.config))
    # diffusers leaves out XL's added conditions, which its files of this layout don't have
    state = {n: t for n, t in net.state_dict().items() if not n.startswith("add_embedding")}
    assert converted.keys() == state.keys()
    assert all(torch.equal(t, converted[n]) for n, t in state.items())


def test_both_layouts_give_the_same_bits(each_pair: Pair, tmp_path: Path) -> None:
    net, image = controlnet(each_pair.unet, tmp_path / "folder"), each_pair.image()
    rest = {"model.diffusion_model.out.2.bias": torch.zeros(4)}
    save_file(original(net.state_dict()) | rest, tmp_path / "control.safetensors")
    results = [
        each_pair.ours(
            each_pair.model.adapt(inarch.adapter("controlnet", weights=path, name="canny")),
            canny_image=image,
        )
        for path in (tmp_path / "folder", tmp_path / "control.safetensors")
    ]
    assert torch.equal(*results)


def control_lora(pair: Pair, path: Path) -> Any:
    """A Control-LoRA's file, and diffusers' ControlNet of the weights it stands for."""
    net = controlnet(pair.unet)
    net.load_state_dict(pair.unet.state_dict(), strict=False)
    generator = torch.Generator().manual_seed(8)
    tensors: dict[str, torch.Tensor] = {"lora_controlnet": torch.zeros(0)}
    modules = dict(net.named_modules())
    for name, parameter in net.named_parameters():
        owner = modules[name.rpartition(".")[0]]
        factored = isinstance(owner, (torch.nn.Linear, torch.nn.Conv2d)) and parameter.dim() > 1
        if not name.startswith("controlnet_") and factored:
            out, inputs, *kernel = parameter.shape
            up = torch.randn(out, 2, *(1 for _ in kernel), generator=generator) * 0.2
            down = torch.randn(2, inputs, *kernel, generator=generator) * 0.2
            parameter.add_((up.flatten(1) @ down.flatten(1)).reshape(parameter.shape))
            tensors |= {f"{name[:-7]}.up": up, f"{name[:-7]}.down": down}
        elif "norm" not in name or ".resnets." in name:  # some are left to the base
            if not name.startswith("controlnet_"):
                parameter.add_(0.1)
            tensors[name] = parameter
    hints = {n: t for n, t in tensors.items() if n.startswith(HINT)}
    state = net.state_dict()
    names = original_names([n for n in state if not n.startswith(HINT)])
    renamed = original(hints, "")
    for name, tensor in tensors.items():
        if name == "lora_controlnet":
            renamed[name] = tensor
        elif not name.startswith(HINT):
            stem, _, leaf = name.rpartition(".")
            renamed[f"{names[f'{stem}.weight'].rpartition('.')[0]}.{leaf}"] = tensor
    save_file(renamed, path)
    return net


@pytest.mark.parametrize("kind", ["deep", "xl"])
def test_a_control_lora_is_the_bases_weights_plus_its_products(
    make_pair: Make, tmp_path: Path, kind: str
) -> None:
    pair = make_pair(kind)
    net, image = control_lora(pair, tmp_path / "lora.safetensors"), pair.image()
    spec = inarch.adapter("controlnet", weights=tmp_path / "lora.safetensors", name="canny")
    model = pair.model.adapt(spec)
    ours, theirs = pair.ours(model, canny_image=image), pair.theirs(pair.control(net, image))
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5 * float(theirs.abs().max()))
    model.save_adapter("canny", tmp_path / "again")
    again = load_file(tmp_path / "again" / "control-lora.safetensors")
    first = load_file(tmp_path / "lora.safetensors")
    assert all(torch.equal(t, again[n]) for n, t in first.items())
    reloaded = pair.model.adapt(
        inarch.adapter("controlnet", weights=tmp_path / "again", name="canny")
    )
    assert torch.equal(pair.ours(reloaded, canny_image=image), ours)


def test_a_saved_controlnet_is_one_for_diffusers(each_pair: Pair, tmp_path: Path) -> None:
    from diffusers import ControlNetModel

    model = each_pair.model.adapt(inarch.adapter("controlnet", name="canny", widths=(4, 6, 9, 5)))
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in model.adapter_parameters("canny").values():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    model.adapters["canny"].trainable = False
    model.save_adapter("canny", tmp_path)
    net, image = ControlNetModel.from_pretrained(tmp_path), each_pair.image()
    ours = each_pair.ours(model, canny_image=image)
    theirs = each_pair.theirs(each_pair.control(net, image))
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5 * float(theirs.abs().max()))
    again = each_pair.model.adapt(inarch.adapter("controlnet", weights=tmp_path, name="canny"))
    assert torch.equal(each_pair.ours(again, canny_image=image), ours)


def test_without_a_configuration_it_is_not_saved(make_pair: Make, tmp_path: Path) -> None:
    pair = make_pair("sd1")
    pair.model.sites.settings = {}
    with pytest.raises(InarchError) as raised:
        pair.model.adapt("controlnet").save_adapter("controlnet", tmp_path)
    assert raised.value.code == "IA453"
    assert list(tmp_path.iterdir()) == []


def test_a_file_for_another_model_is_refused_by_name(make_pair: Make, tmp_path: Path) -> None:
    controlnet(make_pair("xl").unet, tmp_path)
    with pytest.raises(InarchError) as raised:
        make_pair("sd1").model.adapt(inarch.adapter("controlnet", weights=tmp_path))
    assert raised.value.code == "IA411"


def test_a_missing_and_an_unknown_key_are_refused(make_pair: Make, tmp_path: Path) -> None:
    pair = make_pair("sd1")
    controlnet(pair.unet, tmp_path)
    path = tmp_path / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    bias = tensors.pop("mid_block.resnets.0.conv1.bias")
    save_file({**tensors, "mid_block.resnets.0.conv1.biass": bias}, path)
    with pytest.raises(InarchError) as raised:
        pair.model.adapt(inarch.adapter("controlnet", weights=tmp_path))
    assert raised.value.code == "IA411"
    assert "conv1.biass finds no site" in raised.value.why
    assert "mid_block.resnets.0.conv1.bias" in raised.value.why


def test_a_file_of_something_else_is_refused(make_pair: Make, tmp_path: Path) -> None:
    save_file({"some.weight": torch.zeros(2)}, tmp_path / "it.safetensors")
    with pytest.raises(InarchError) as raised:
        make_pair("sd1").model.adapt(
            inarch.adapter("controlnet", weights=tmp_path / "it.safetensors")
        )
    assert raised.value.code == "IA452"


def test_an_unknown_order_of_colours_is_refused(make_pair: Make, tmp_path: Path) -> None:
    pair = make_pair("sd1")
    controlnet(pair.unet, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["controlnet_conditioning_channel_order"] = "gbr"
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(InarchError) as raised:
        pair.model.adapt(inarch.adapter("controlnet", weights=tmp_path))
    assert raised.value.code == "IA454"
