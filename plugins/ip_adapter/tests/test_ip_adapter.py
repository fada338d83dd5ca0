"""What an IP-Adapter asks for, reads from pictures, and refuses."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from small_ip_adapters import Pair, embedding, ip_adapter

import inarch
from inarch.adapters import Request
from inarch.errors import InarchError
from inarch_stable_diffusion.beside_diffusers import randomised

Make = Callable[..., Pair]


def request_of(batch: int = 1, guided: bool = False) -> Request:
    return Request(64, 128, batch, guided, torch.device("cpu"), torch.float32)


def adapted(pair: Pair, folder: Path, kind: str = "plain", **options: Any) -> Any:
    save_file(ip_adapter(pair.unet, kind), folder / "it.safetensors")
    spec = inarch.adapter("ip-adapter", weights=folder / "it.safetensors", name="it", **options)
    return pair.model.adapt(spec)


def test_its_input_is_listed_and_its_absence_is_clear(make_pair: Make, tmp_path: Path) -> None:
    model = adapted(make_pair("sd1"), tmp_path, "plus")
    assert "it_embedding" in model.inputs
    with pytest.raises(InarchError) as raised:
        model.read_inputs({}, request_of())
    assert raised.value.what == (
        "ip-adapter `it` needs `it_embedding`: [batch, pictures, patches, 10]"
    )


def test_rows_of_no_prompt_see_zeros_unless_they_are_given(make_pair: Make, tmp_path: Path) -> None:
    model, seen = adapted(make_pair("sd1"), tmp_path), embedding("plain", batch=1)
    read = model.read_inputs({"it_embedding": seen}, request_of(2, True))["it_embedding"]
    assert torch.equal(read, torch.cat([torch.zeros(2, 1, 10), seen, seen]))
    four = embedding("plain", batch=4)
    read = model.read_inputs({"it_embedding": four}, request_of(2, True))["it_embedding"]
    assert torch.equal(read, four)


@pytest.mark.parametrize("wrong", [torch.zeros(1, 10), torch.zeros(1, 1, 9), "picture.png"])
def test_what_is_no_embedding_is_refused(make_pair: Make, tmp_path: Path, wrong: Any) -> None:
    model = adapted(make_pair("sd1"), tmp_path)
    with pytest.raises(InarchError) as raised:
        model.read_inputs({"it_embedding": wrong}, request_of())
    assert raised.value.code == "IA505"


def test_a_file_for_another_family_is_refused(make_pair: Make, tmp_path: Path) -> None:
    save_file(ip_adapter(make_pair("xl").unet, "plain"), tmp_path / "it.safetensors")
    spec = inarch.adapter("ip-adapter", weights=tmp_path / "it.safetensors")
    with pytest.raises(InarchError) as raised:
        make_pair("sd1").model.adapt(spec)
    assert raised.value.code == "IA462"


def test_a_file_of_something_else_is_refused(make_pair: Make, tmp_path: Path) -> None:
    save_file({"some.weight": torch.zeros(2)}, tmp_path / "it.safetensors")
    spec = inarch.adapter("ip-adapter", weights=tmp_path / "it.safetensors")
    with pytest.raises(InarchError) as raised:
        make_pair("sd1").model.adapt(spec)
    assert raised.value.code == "IA461"


def test_a_part_of_the_blocks_is_not_saved(make_pair: Make, tmp_path: Path) -> None:
    model = adapted(make_pair("xl"), tmp_path, blocks={"unet.mid_block": 1.0})
    with pytest.raises(InarchError) as raised:
        model.save_adapter("it", tmp_path / "again")
    assert raised.value.code == "IA463"


@pytest.fixture
def tower(tmp_path: Path) -> tuple[Any, Path]:
    """transformers' vision tower of random weights, and its folder."""
    transformers = pytest.importorskip("transformers")
    config = transformers.CLIPVisionConfig(
        hidden_size=10,
        intermediate_size=20,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=16,
        patch_size=4,
        projection_dim=10,
    )
    theirs = randomised(transformers.CLIPVisionModelWithProjection(config), 6)
    theirs.save_pretrained(tmp_path / "image_encoder")
    size = {"height": 16, "width": 16}
    processor = transformers.CLIPImageProcessor(size={"shortest_edge": 16}, crop_size=size)
    processor.save_pretrained(tmp_path / "image_encoder")
    return theirs, tmp_path / "image_encoder"


@pytest.mark.parametrize("kind", ["plain", "plus"])
def test_pictures_are_encoded_as_diffusers_does(
    make_pair: Make, tmp_path: Path, tower: tuple[Any, Path], kind: str
) -> None:
    images = pytest.importorskip("PIL.Image")
    theirs, folder = tower
    model = adapted(make_pair("sd1"), tmp_path, kind, image_encoder=str(folder))
    picture = images.frombytes("RGB", (20, 16), bytes(range(256)) * 3 + bytes(192))
    [[parameter, *_]] = [model.read_inputs({"it_image": picture}, request_of(2, True)).items()]
    name, read = parameter
    assert name == "it_embedding"
    pixels = inarch.load(folder).pixels(picture)
    with torch.no_grad():
        if kind == "plain":
            wanted = theirs(pixels).image_embeds
            none = torch.zeros_like(wanted)
        else:
            wanted, none = (
                theirs(p, output_hidden_states=True).hidden_states[-2]
                for p in (pixels, torch.zeros_like(pixels))
            )
    expected = torch.stack([none, none, wanted, wanted])
    torch.testing.assert_close(read, expected, rtol=1e-5, atol=1e-5)


def test_an_encoder_of_another_width_is_refused(
    make_pair: Make, tmp_path: Path, tower: tuple[Any, Path]
) -> None:
    images = pytest.importorskip("PIL.Image")
    pair = make_pair("sd1")
    file = ip_adapter(pair.unet, "plain")
    file["image_proj.proj.weight"] = torch.zeros(48, 7)
    save_file(file, tmp_path / "it.safetensors")
    spec = inarch.adapter(
        "ip-adapter", weights=tmp_path / "it.safetensors", name="it", image_encoder=str(tower[1])
    )
    model = pair.model.adapt(spec)
    with pytest.raises(InarchError) as raised:
        model.read_inputs({"it_image": images.new("RGB", (16, 16))}, request_of())
    assert raised.value.code == "IA464"


@pytest.mark.parametrize("options", [{"start": 0.6, "end": 0.4}, {"tokens": 0}, {"blocks": 3}])
def test_options_out_of_range_are_refused(make_pair: Make, options: dict[str, Any]) -> None:
    with pytest.raises(InarchError) as raised:
        make_pair("sd1").model.adapt(inarch.adapter("ip-adapter", **options))
    assert raised.value.code == "IA401"
