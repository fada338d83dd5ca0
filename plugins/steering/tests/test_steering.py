"""Steering against its equation, capture against transformers, and both together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import inarch
from inarch import InarchError
from inarch.testing import tiny_models
from inarch.testing.subject import outputs, randomise
from inarch_llama.model import Llama
from inarch_steering import contrast

CONFIG = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Llama, Any]:
    torch.manual_seed(3)
    peer = transformers.LlamaForCausalLM(transformers.LlamaConfig(**CONFIG)).eval()
    folder = tmp_path_factory.mktemp("llama")
    peer.save_pretrained(folder)
    return inarch.load(folder), peer


@pytest.fixture
def ids() -> torch.Tensor:
    return torch.randint(0, 61, (3, 9), generator=torch.Generator().manual_seed(1))


def vectors(path: Path, *addresses: str) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    made = {a: torch.randn(32, generator=generator) for a in addresses}
    save_file(made, path)
    return made


def test_capture_equals_the_hidden_states_of_transformers(
    pair: tuple[Llama, Any], ids: torch.Tensor
) -> None:
    model, peer = pair
    mask = torch.ones_like(ids)
    mask[0, :4] = 0
    logits, seen = model(ids, mask, capture=["embedding.tokens", "block", "norm.final"])
    expected = peer(ids, attention_mask=mask, output_hidden_states=True)
    assert list(seen) == [
        "model.embed_tokens",
        *(f"model.layers.{i}" for i in range(3)),
        "model.norm",
    ]
    ours = [*list(seen.values())[:-2], seen["model.norm"]]  # transformers gives its last one normed
    kept = mask.bool()
    for one, other in zip(ours, expected.hidden_states, strict=True):
        torch.testing.assert_close(one[kept], other[kept], atol=1e-5, rtol=1e-5)
    assert torch.equal(logits, model(ids, mask))


def test_capture_reaches_inside_of_blocks_and_into_adapters(
    pair: tuple[Llama, Any], ids: torch.Tensor
) -> None:
    model = pair[0].adapt(inarch.adapter("lora", name="mine", targets=["mlp.up"]))
    _, seen = model(ids, capture=["model.layers.1.self_attn.attend", "*.*.*.mlp.up_proj"])
    assert seen["model.layers.1.self_attn.attend"].shape == (3, 4, 9, 8)
    assert seen["model.layers.2.mlp.up_proj"].shape == (3, 9, 40)
    with pytest.raises(InarchError, match="matches nothing") as caught:
        model(ids, capture=["block", "no.such.place"])
    assert caught.value.code == "IA402"


def test_capturing_leaves_the_model_as_it_was(pair: tuple[Llama, Any], ids: torch.Tensor) -> None:
    model, _ = pair
    before = model.tree.source
    model(ids, capture=["block"])
    assert model.tree.source == before
    assert isinstance(model(ids), torch.Tensor)


@pytest.mark.parametrize("scale", [1.0, -2.5, 0.0])
def test_steering_adds_its_vector_to_what_a_block_gives(
    pair: tuple[Llama, Any], ids: torch.Tensor, tmp_path: Path, scale: float
) -> None:
    base, peer = pair
    made = vectors(tmp_path / "v.safetensors", "model.layers.1")
    model = base.adapt(inarch.adapter("steering", weights=tmp_path / "v.safetensors", scale=scale))

    def steer(_module: Any, _given: Any, out: Any) -> Any:
        hidden = out[0] if isinstance(out, tuple) else out
        hidden = hidden + scale * made["model.layers.1"]
        return (hidden, *out[1:]) if isinstance(out, tuple) else hidden

    handle = peer.model.layers[1].register_forward_hook(steer)
    expected = peer(ids).logits
    handle.remove()
    torch.testing.assert_close(model(ids), expected, atol=1e-5, rtol=1e-5)
    if scale == 0.0:
        assert torch.equal(model(ids), base(ids))


def test_an_untrained_vector_changes_no_bit_and_learns(
    pair: tuple[Llama, Any], ids: torch.Tensor
) -> None:
    base, _ = pair
    model = base.adapt(inarch.adapter("steering", name="s"))
    assert len(model.adapter_parameters("s")) == 3
    assert torch.equal(model(ids), base(ids))
    model.adapters["s"].trainable = True
    model(ids).square().mean().backward()
    assert all(p.grad.abs().sum() > 0 for p in model.adapter_parameters("s").values())


def test_two_steerings_and_a_lora_give_one_digest_and_the_same_bits(
    pair: tuple[Llama, Any], ids: torch.Tensor, tmp_path: Path
) -> None:
    base, _ = pair
    vectors(tmp_path / "a.safetensors", "model.layers.0", "model.layers.1")
    vectors(tmp_path / "b.safetensors", "model.layers.1")
    specs = [
        inarch.adapter("steering", weights=tmp_path / "a.safetensors", name="a"),
        inarch.adapter("steering", weights=tmp_path / "b.safetensors", name="b", scale=0.5),
        inarch.adapter("lora", name="mine"),
    ]
    models = [base.adapt(*specs), base.adapt(*reversed(specs))]
    for model in models:
        generator = torch.Generator().manual_seed(7)
        for parameter in model.adapter_parameters("mine").values():
            parameter.data = torch.randn(parameter.shape, generator=generator) / 8
    assert models[0].digest == models[1].digest
    assert torch.equal(models[0](ids), models[1](ids))


@pytest.mark.xdist_group("smollm2")
def test_a_contrast_is_the_mean_difference_at_the_last_position(tmp_path: Path) -> None:
    model = inarch.load("smollm2", dtype="float32")
    path = tmp_path / "cheer.safetensors"
    good, bad = ["I love it", "What a day!"], ["I hate it"]
    made = contrast(model, good, bad, capture=["model.layers.9"], out=path)

    def last(text: str) -> torch.Tensor:
        _, seen = model(torch.tensor([model.encode(text)]), capture=["model.layers.9"])
        return seen["model.layers.9"][0, -1]

    expected = (last(good[0]) + last(good[1])) / 2 - last(bad[0])
    torch.testing.assert_close(made["model.layers.9"], expected)
    steered = model.adapt(inarch.adapter("steering", weights=path, scale=6.0))
    assert steered.generate("The weather is", max_new_tokens=8) != model.generate(
        "The weather is", max_new_tokens=8
    )


def test_saving_and_loading_keeps_every_bit(
    pair: tuple[Llama, Any], ids: torch.Tensor, tmp_path: Path
) -> None:
    base, _ = pair
    made = vectors(tmp_path / "v.safetensors", "model.layers.0", "model.norm")
    model = base.adapt(inarch.adapter("steering", weights=tmp_path / "v.safetensors"))
    folder = model.save_adapter("steering", tmp_path / "saved")
    assert {k: v.tolist() for k, v in load_file(folder / "steering.safetensors").items()} == {
        k: v.tolist() for k, v in made.items()
    }
    again = base.adapt(inarch.adapter("steering", weights=folder / "steering.safetensors"))
    assert torch.equal(again(ids), model(ids))


@pytest.mark.parametrize(
    ("key", "tensor", "code"),
    [
        ("model.layers.9", torch.ones(32), "IA481"),
        ("model.layers.1", torch.ones(32, 1), "IA481"),
        ("model.layers.1", torch.ones(31), "IA481"),
        ("model.layers.1.self_attn.k_proj", torch.ones(32), "IA481"),
    ],
)
def test_a_vector_that_has_no_place_is_named(
    pair: tuple[Llama, Any], tmp_path: Path, key: str, tensor: torch.Tensor, code: str
) -> None:
    save_file({"model.layers.0": torch.ones(32), key: tensor}, tmp_path / "v.safetensors")
    with pytest.raises(InarchError) as caught:
        pair[0].adapt(inarch.adapter("steering", weights=tmp_path / "v.safetensors"))
    assert caught.value.code == code
    assert key in caught.value.where


@pytest.mark.parametrize("tiny", list(tiny_models()), ids=str)
def test_a_fresh_vector_is_as_wide_as_what_its_layer_gives(tiny: Any) -> None:
    """A key's layer is narrower than the stream, and a UNet's layers are of several widths."""
    base = tiny.build()
    targets = [f"attention.{part}" for part in ("query", "key", "value", "output")]
    model = base.adapt(inarch.adapter("steering", targets=targets))
    plain, steered = outputs(base), outputs(model)
    assert all(torch.equal(a, b) for a, b in zip(plain, steered, strict=True))
    randomise(model.adapters["steering"], "steering")
    moved = zip(plain, outputs(model), strict=True)
    assert any(not torch.equal(a, b) for a, b in moved)


@pytest.mark.parametrize(
    ("target", "width", "why"),
    [
        ("model.layers.1.self_attn.k_proj", 32, "has 16 features"),
        ("model.layers.1.self_attn.attend", None, "no layer stands there"),
    ],
)
def test_a_width_that_does_not_fit_or_is_not_known_is_refused_at_its_site(
    pair: tuple[Llama, Any], target: str, width: int | None, why: str
) -> None:
    with pytest.raises(InarchError, match=why) as caught:
        pair[0].adapt(inarch.adapter("steering", targets=[target], width=width))
    assert (caught.value.code, caught.value.where) == ("IA481", target)


def test_a_vector_has_no_place_in_an_image() -> None:
    [base, *_] = [tiny.build() for tiny in tiny_models(families=["stable-diffusion"])]
    with pytest.raises(InarchError, match="is an image") as caught:
        base.adapt(inarch.adapter("steering", targets=["unet.conv_in"], width=8))
    assert caught.value.where == "unet.conv_in"
