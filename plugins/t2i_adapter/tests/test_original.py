"""TencentARC's own files: its networks, written again here, give what ours and diffusers' give."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_t2i import t2i
from torch import Tensor, nn
from torch.nn import functional as F

import inarch
from inarch.errors import InarchError
from inarch_stable_diffusion.beside_diffusers import Pair, randomised

Make = Callable[..., Pair]
KINDS = {"full": ([8, 8, 16, 16], 2), "light": ([8, 8, 16, 16], 3)}


class Layer(nn.Module):
    """A residual layer: with an entry where channels change, its second kernel of 1 or 3."""

    def __init__(self, before: int, width: int, kernel: int) -> None:
        super().__init__()
        if before != width:
            self.in_conv = nn.Conv2d(before, width, 1)
        self.block1 = nn.Conv2d(width, width, 3, padding=1)
        self.block2 = nn.Conv2d(width, width, kernel, padding=kernel // 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.in_conv(x) if hasattr(self, "in_conv") else x
        return x + self.block2(self.block1(x).relu())


class Full(nn.Module):
    def __init__(self, widths: list[int], layers: int) -> None:
        super().__init__()
        self.layers = layers
        before = [widths[0], *(w for w in widths[:-1])]
        self.body = nn.ModuleList(
            Layer(before[i] if j == 0 else width, width, 1)
            for i, width in enumerate(widths)
            for j in range(layers)
        )
        self.conv_in = nn.Conv2d(3 * 64, widths[0], 3, padding=1)

    def forward(self, x: Tensor) -> list[Tensor]:
        x, features = self.conv_in(F.pixel_unshuffle(x, 8)), []
        for i, layer in enumerate(self.body):
            x = F.avg_pool2d(x, 2) if i and i % self.layers == 0 else x
            x = layer(x)
            features.append(x)
        return features[self.layers - 1 :: self.layers]


class Extractor(nn.Module):
    def __init__(self, before: int, width: int, layers: int) -> None:
        super().__init__()
        inner = width // 4
        self.in_conv = nn.Conv2d(before, inner, 1)
        self.body = nn.Sequential(*(Layer(inner, inner, 3) for _ in range(layers)))
        self.out_conv = nn.Conv2d(inner, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out_conv(self.body(self.in_conv(x)))


class Light(nn.Module):
    def __init__(self, widths: list[int], layers: int) -> None:
        super().__init__()
        before = [3 * 64, *widths[:-1]]
        self.body = nn.ModuleList(
            Extractor(b, w, layers) for b, w in zip(before, widths, strict=True)
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        x, features = F.pixel_unshuffle(x, 8), []
        for i, part in enumerate(self.body):
            x = part(F.avg_pool2d(x, 2) if i else x)
            features.append(x)
        return features


def original(kind: str, folder: Path) -> Any:
    """The network of a kind, of random weights, saved as its safetensors file."""
    widths, layers = KINDS[kind]
    net = randomised({"full": Full, "light": Light}[kind](widths, layers), 3)
    save_file(net.state_dict(), folder / "it.safetensors")
    return net


@pytest.mark.parametrize("kind", KINDS)
def test_its_features_are_the_first_networks_and_diffusers(
    make_pair: Make, tmp_path: Path, kind: str
) -> None:
    from diffusers import T2IAdapter

    pair, net = make_pair("deep"), original(kind, tmp_path)
    image = pair.image()
    features = net(image)
    spec = inarch.adapter("t2i-adapter", weights=tmp_path / "it.safetensors", name="sketch")
    model = pair.model.adapt(spec)
    ours = pair.ours(model, sketch_image=image)
    expected = pair.theirs(within=[feature.clone() for feature in features])
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))
    model.save_adapter("sketch", tmp_path / "again")
    theirs = T2IAdapter.from_pretrained(tmp_path / "again")(image)
    for one, other in zip(theirs, features, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
    again = pair.model.adapt(
        inarch.adapter("t2i-adapter", weights=tmp_path / "again", name="sketch")
    )
    assert torch.equal(pair.ours(again, sketch_image=image), ours)


def test_every_name_is_that_of_diffusers_converter(make_pair: Make, tmp_path: Path) -> None:
    from diffusers import T2IAdapter

    converted = {
        "full": {  # scripts/convert_original_t2i_adapter.py: two layers each, all through
            "body.0.block1.weight": "adapter.body.0.resnets.0.block1.weight",
            "body.1.block2.bias": "adapter.body.0.resnets.1.block2.bias",
            "body.4.in_conv.weight": "adapter.body.2.in_conv.weight",
            "body.7.block2.weight": "adapter.body.3.resnets.1.block2.weight",
            "conv_in.bias": "adapter.conv_in.bias",
        },
        "light": {
            "body.0.in_conv.bias": "adapter.body.0.in_conv.bias",
            "body.1.body.2.block1.weight": "adapter.body.1.resnets.2.block1.weight",
            "body.3.out_conv.weight": "adapter.body.3.out_conv.weight",
        },
    }
    for kind, names in converted.items():
        first = original(kind, tmp_path).state_dict()
        spec = inarch.adapter("t2i-adapter", weights=tmp_path / "it.safetensors", name="s")
        make_pair("deep").model.adapt(spec).save_adapter("s", tmp_path / kind)
        saved = load_file(tmp_path / kind / "diffusion_pytorch_model.safetensors")
        assert saved.keys() == T2IAdapter.from_pretrained(tmp_path / kind).state_dict().keys()
        assert len(saved) == len(first)
        assert all(torch.equal(saved[new], first[old]) for old, new in names.items())


@pytest.mark.parametrize("lost", ["conv_in.weight", "body.3.block2.weight", "body.7.block1.bias"])
def test_a_file_that_lacks_a_tensor_is_refused(make_pair: Make, tmp_path: Path, lost: str) -> None:
    original("full", tmp_path)
    tensors = load_file(tmp_path / "it.safetensors")
    del tensors[lost]
    save_file(tensors, tmp_path / "it.safetensors")
    with pytest.raises(InarchError) as raised:
        make_pair("deep").model.adapt(
            inarch.adapter("t2i-adapter", weights=tmp_path / "it.safetensors")
        )
    assert raised.value.code in ("IA411", "IA455")
    assert lost in raised.value.why


def test_a_pickle_is_refused_with_the_line_that_converts_it(
    make_pair: Make, tmp_path: Path
) -> None:
    torch.save(original("full", tmp_path).state_dict(), tmp_path / "it.pth")
    with pytest.raises(InarchError) as raised:
        make_pair("deep").model.adapt(inarch.adapter("t2i-adapter", weights=tmp_path / "it.pth"))
    assert raised.value.code == "IA203"
    assert "safetensors.torch.save_file" in raised.value.remedy


def test_diffusers_own_files_are_read_as_before(make_pair: Make, tmp_path: Path) -> None:
    net, pair = t2i("full", tmp_path), make_pair("deep")
    image = pair.image()
    model = pair.model.adapt(inarch.adapter("t2i-adapter", weights=tmp_path, name="sketch"))
    expected = pair.theirs(within=net(image))
    torch.testing.assert_close(
        pair.ours(model, sketch_image=image),
        expected,
        rtol=1e-5,
        atol=1e-5 * float(expected.abs().max()),
    )
