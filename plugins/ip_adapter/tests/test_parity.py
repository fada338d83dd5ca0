"""IP-Adapters equal to diffusers', of each kind, alone and together."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_ip_adapters import KINDS, Pair, embedding, ip_adapter

import inarch
from inarch.tree.hoist import hoist

Make = Callable[..., Pair]


def close(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5 * float(theirs.abs().max()))


@pytest.mark.parametrize("kind", [k for k in KINDS if k != "faceid_plus"])
@pytest.mark.parametrize("family", ["sd1", "xl", "deep"])
def test_a_forward_is_diffusers(make_pair: Make, tmp_path: Path, kind: str, family: str) -> None:
    pair = make_pair(family)
    file, seen = ip_adapter(pair.unet, kind), embedding(kind, images=2)
    save_file(file, tmp_path / "it.safetensors")
    spec = inarch.adapter("ip-adapter", weights=tmp_path / "it.safetensors", name="it", scale=0.7)
    before = pair.ours(pair.model)
    pair.load(file)
    pair.scale(0.7)
    expected = pair.theirs(seen)
    assert not torch.allclose(expected, before, atol=1e-2)
    close(pair.ours(pair.model.adapt(spec), it_embedding=seen), expected)


@pytest.mark.parametrize("shortcut", [False, True])
def test_faceid_plus_is_diffusers(make_pair: Make, tmp_path: Path, shortcut: bool) -> None:
    pair = make_pair("sd1")
    file, seen = ip_adapter(pair.unet, "faceid_plus"), embedding("faceid_plus")
    patches = torch.randn(2, 1, 7, 8, generator=torch.Generator().manual_seed(1))
    save_file(file, tmp_path / "it.safetensors")
    spec = inarch.adapter(
        "ip-adapter", weights=tmp_path / "it.safetensors", name="it", shortcut=shortcut
    )
    pair.load(file)
    layer = pair.unet.encoder_hid_proj.image_projection_layers[0]
    layer.clip_embeds, layer.shortcut = patches, shortcut
    expected = pair.theirs(seen)
    close(pair.ours(pair.model.adapt(spec), it_embedding=seen, it_patches=patches), expected)


def test_several_are_sums_and_each_order_gives_the_same_bits(
    make_pair: Make, tmp_path: Path
) -> None:
    pair = make_pair("xl")
    names, scales = {"a": "plain", "b": "plus", "c": "faceid"}, (0.8, 0.5, 1.0)
    files = [ip_adapter(pair.unet, kind, seed) for seed, kind in enumerate(names.values())]
    seen = {f"{n}_embedding": embedding(k, i) for i, (n, k) in enumerate(names.items())}
    specs = []
    for name, file, scale in zip(names, files, scales, strict=True):
        save_file(file, tmp_path / f"{name}.safetensors")
        path = tmp_path / f"{name}.safetensors"
        specs.append(inarch.adapter("ip-adapter", weights=path, name=name, scale=scale))
    pair.load(*files)
    pair.scale(*scales)
    results = []
    for order in itertools.permutations(specs):
        model = pair.model.adapt(*order)
        results.append((pair.ours(model, **seen), model.digest))
    close(results[0][0], pair.theirs(*seen.values()))
    assert all(torch.equal(r, results[0][0]) and d == results[0][1] for r, d in results)


def test_blocks_have_scales_of_their_own(make_pair: Make, tmp_path: Path) -> None:
    pair = make_pair("xl")
    file, seen = ip_adapter(pair.unet, "plain"), embedding("plain")
    save_file(file, tmp_path / "it.safetensors")
    blocks = {"unet.up_blocks.0": 0.5}
    spec = inarch.adapter(
        "ip-adapter", weights=tmp_path / "it.safetensors", name="it", blocks=blocks
    )
    pair.load(file)
    pair.scale(0.5, within="up_blocks.0.")
    model = pair.model.adapt(spec)
    close(pair.ours(model, it_embedding=seen), pair.theirs(seen))
    touched = {e.address for e in model.adapters["it"].edits if e.kind == "add"}
    assert all(address.startswith("unet.up_blocks.0.") for address in touched)


def test_each_picture_has_an_area_of_its_own(make_pair: Make, tmp_path: Path) -> None:
    pair = make_pair("sd1")
    file, seen = ip_adapter(pair.unet, "plain"), embedding("plain", images=2)
    save_file(file, tmp_path / "it.safetensors")
    areas = (torch.rand(1, 2, 64, 128, generator=torch.Generator().manual_seed(2)) > 0.5).float()
    spec = inarch.adapter(
        "ip-adapter", weights=tmp_path / "it.safetensors", name="it", masked=True, scale=0.6
    )
    pair.load(file)
    pair.scale(0.6)
    expected = pair.theirs(seen, masks=[areas])
    ours = pair.ours(pair.model.adapt(spec), it_embedding=seen, it_mask=areas)
    close(ours, expected)


def test_the_lora_of_a_faceid_file_is_added_at_every_attention(
    make_pair: Make, tmp_path: Path
) -> None:
    pair = make_pair("sd1")
    file, seen = ip_adapter(pair.unet, "faceid"), embedding("faceid")
    plain = dict(file)
    generator = torch.Generator().manual_seed(4)
    layers = [n.removesuffix(".processor") for n in pair.unet.attn_processors]
    for number, name in enumerate(layers):
        attention = pair.unet.get_submodule(name)
        parts = {"to_q": attention.to_q, "to_k": attention.to_k, "to_v": attention.to_v}
        for part, layer in {**parts, "to_out": attention.to_out[0]}.items():
            out, inputs = layer.weight.shape
            down = torch.randn(2, inputs, generator=generator) * 0.2
            up = torch.randn(out, 2, generator=generator) * 0.2
            file |= {
                f"ip_adapter.{number}.{part}_lora.down.weight": down,
                f"ip_adapter.{number}.{part}_lora.up.weight": up,
            }
            layer.weight.add_(up @ down)
    save_file(file, tmp_path / "it.safetensors")
    pair.load(plain)
    pair.scale(0.7)
    spec = inarch.adapter("ip-adapter", weights=tmp_path / "it.safetensors", name="it", scale=0.7)
    model = pair.model.adapt(spec)
    close(pair.ours(model, it_embedding=seen), pair.theirs(seen))
    model.save_adapter("it", tmp_path / "again")
    again = load_file(tmp_path / "again" / "ip_adapter.safetensors")
    assert again.keys() == file.keys()
    assert all(torch.equal(t, file[n]) for n, t in again.items())


def test_in_a_loop_the_tokens_are_made_once(make_pair: Make, tmp_path: Path) -> None:
    pair = make_pair("sd1")
    save_file(ip_adapter(pair.unet, "plus"), tmp_path / "it.safetensors")
    spec = inarch.adapter("ip-adapter", weights=tmp_path / "it.safetensors", name="it")
    model, seen = pair.model.adapt(spec), embedding("plus")
    inner, constants = hoist(model.trees["unet"], {"it_embedding": seen})
    assert list(constants) == ["it_tokens"]
    expected = pair.ours(model, it_embedding=seen)
    assert torch.equal(inner(pair.latents, **pair.inputs, **constants), expected)


def test_dropping_one_restores_every_bit(make_pair: Make, tmp_path: Path) -> None:
    pair = make_pair("sd1")
    save_file(ip_adapter(pair.unet, "plain"), tmp_path / "it.safetensors")
    before = pair.ours(pair.model)
    spec = inarch.adapter("ip-adapter", weights=tmp_path / "it.safetensors", name="it")
    model = pair.model.adapt(spec)
    assert not torch.equal(pair.ours(model, it_embedding=embedding("plain")), before)
    assert torch.equal(pair.ours(model.without("it")), before)
    assert torch.equal(pair.ours(pair.model), before)
