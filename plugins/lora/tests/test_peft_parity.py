"""PEFT's folders give PEFT's outputs and gradients here, and ours give ours in PEFT."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import inarch

peft = pytest.importorskip("peft")

CONFIGS = {
    "plain": {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]},
    "every linear": {"r": 3, "lora_alpha": 6, "target_modules": "all-linear"},
    "rank-stabilised": {"r": 4, "lora_alpha": 8, "use_rslora": True, "target_modules": ["up_proj"]},
    "patterns": {
        "r": 4,
        "lora_alpha": 8,
        "target_modules": ["q_proj", "k_proj", "down_proj"],
        "rank_pattern": {"k_proj": 2, "layers.1.self_attn.q_proj": 5},
        "alpha_pattern": {"down_proj": 3, "^model.layers.2.self_attn.k_proj": 12},
    },
    "regular expression": {
        "r": 2,
        "lora_alpha": 5,
        "target_modules": r".*\.layers\.[02]\.mlp\.(gate|down)_proj",
    },
    "some layers": {
        "r": 2,
        "lora_alpha": 2,
        "target_modules": ["q_proj", "o_proj"],
        "layers_to_transform": [0, 2],
    },
    "some layers and the head": {
        "r": 2,
        "lora_alpha": 1 / 3,
        "target_modules": ["q_proj", "lm_head"],
        "layers_to_transform": 1,
    },
    "excluded": {
        "r": 2,
        "lora_alpha": 2,
        "target_modules": ["q_proj", "o_proj"],
        "exclude_modules": ["model.layers.1.self_attn.q_proj"],
    },
    "head and embedding": {
        "r": 2,
        "lora_alpha": 4,
        "target_modules": ["embed_tokens", "lm_head", "q_proj"],
    },
    "biases of the targets": {
        "r": 2,
        "lora_alpha": 4,
        "bias": "lora_only",
        "target_modules": ["q_proj"],
    },
    "every bias": {"r": 2, "lora_alpha": 4, "bias": "all", "target_modules": ["q_proj", "up_proj"]},
    "a bias of B": {"r": 2, "lora_alpha": 4, "lora_bias": True, "target_modules": ["q_proj"]},
}


def randomise(model: torch.nn.Module) -> None:
    """Give every trainable parameter a value, so that nothing is zero by initialisation."""
    generator = torch.Generator().manual_seed(7)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)


def gradient_key(name: str) -> str:
    return name.replace(".default", "").removeprefix("base_model.model.")


@pytest.mark.parametrize("config", CONFIGS.values(), ids=[c.replace(" ", "_") for c in CONFIGS])
def test_a_folder_of_peft_gives_its_outputs_and_gradients(
    llamas: tuple[Any, Any], ids: Tensor, tmp_path: Path, config: dict[str, Any]
) -> None:
    base, ours = llamas
    theirs = peft.get_peft_model(base, peft.LoraConfig(**config))
    randomise(theirs)
    theirs.save_pretrained(tmp_path / "theirs", save_embedding_layers=False)
    adapted = ours.adapt(inarch.adapter("lora", weights=tmp_path / "theirs"))
    expected, actual = theirs.eval()(ids).logits, adapted(ids)
    largest = float(expected.detach().abs().max())
    torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-6 * largest)

    adapted.adapters["lora"].trainable = True
    expected.square().mean().backward()
    adapted(ids).square().mean().backward()
    wanted = {gradient_key(n): p.grad for n, p in theirs.named_parameters() if p.requires_grad}
    found: dict[str, Tensor] = {}
    for name, parameter in adapted.adapter_parameters("lora").items():
        site, _, own = name.rpartition(".")
        suffix = {
            "lora_A": "lora_A.weight",
            "lora_B": "lora_B.weight",
            "lora_B_bias": "lora_B.bias",
        }
        inner = f"{site}.{suffix.get(own, own)}"
        if own == "bias" and f"{site}.base_layer.bias" in wanted:
            inner = f"{site}.base_layer.bias"
        found[inner] = parameter.grad
    assert set(found) == set(wanted)
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=[c.replace(" ", "_") for c in CONFIGS])
def test_a_folder_of_ours_is_peft_s_to_the_bit(
    llamas: tuple[Any, Any], ids: Tensor, tmp_path: Path, config: dict[str, Any]
) -> None:
    base, ours = llamas
    theirs = peft.get_peft_model(base, peft.LoraConfig(**config))
    randomise(theirs)
    theirs.save_pretrained(tmp_path / "theirs", save_embedding_layers=False)
    expected = theirs.eval()(ids).logits.detach()
    adapted = ours.adapt(inarch.adapter("lora", weights=tmp_path / "theirs"))
    adapted.save_adapter("lora", tmp_path / "ours")

    first = load_file(tmp_path / "theirs" / "adapter_model.safetensors")
    second = load_file(tmp_path / "ours" / "adapter_model.safetensors")
    assert set(first) == set(second)
    for key in first:
        torch.testing.assert_close(second[key], first[key], rtol=0, atol=1e-7)
    again = peft.PeftModel.from_pretrained(theirs.unload(), tmp_path / "ours").eval()
    torch.testing.assert_close(again(ids).logits, expected, rtol=1e-6, atol=1e-5)
    reloaded = ours.adapt(inarch.adapter("lora", weights=tmp_path / "ours"))
    torch.testing.assert_close(reloaded(ids), adapted(ids), rtol=1e-6, atol=1e-6)
    scalings = [[vars(e).get("scaling") for e in m.adapters[0].edges] for m in (adapted, reloaded)]
    assert scalings[0] == scalings[1]


def test_a_fresh_adapter_of_ours_loads_into_peft(
    llamas: tuple[Any, Any], ids: Tensor, tmp_path: Path
) -> None:
    base, ours = llamas
    options = {"rank": 3, "alpha": 6, "rank_pattern": {"q_proj": 2}, "use_rslora": True}
    adapted = ours.adapt(inarch.adapter("lora", name="mine", **options))
    for parameter in adapted.adapter_parameters("mine").values():
        parameter.data.normal_(std=0.2)
    adapted.save_adapter("mine", tmp_path)
    theirs = peft.PeftModel.from_pretrained(base, tmp_path).eval()
    expected = adapted(ids).detach()
    torch.testing.assert_close(theirs(ids).logits, expected, rtol=1e-6, atol=1e-5)


def test_each_kind_of_layer_equals_peft(layered: tuple[Any, ...], tmp_path: Path) -> None:
    name, net, ours, x = layered
    config = peft.LoraConfig(
        r=4, lora_alpha=6, target_modules=["layer"], fan_in_fan_out=name == "transposed"
    )
    theirs = peft.get_peft_model(net, config)
    randomise(theirs)
    theirs.save_pretrained(tmp_path, save_embedding_layers=False)
    adapted = ours.adapt(inarch.adapter("lora", weights=tmp_path))
    expected = theirs.eval()(x)
    torch.testing.assert_close(adapted.tree(x), expected, rtol=1e-6, atol=1e-6)
    adapted.adapters["lora"].trainable = True
    expected.square().mean().backward()
    adapted.tree(x).square().mean().backward()
    gradients = [p.grad for p in theirs.parameters() if p.requires_grad]
    for mine, other in zip(adapted.adapter_parameters("lora").values(), gradients, strict=True):
        torch.testing.assert_close(mine.grad, other, rtol=1e-5, atol=1e-6)


def test_each_kind_of_layer_is_saved_as_peft_saves_it(
    layered: tuple[Any, ...], tmp_path: Path
) -> None:
    _, net, ours, x = layered
    adapted = ours.adapt(inarch.adapter("lora", targets=["layer"], rank=4))
    for parameter in adapted.adapter_parameters("lora").values():
        parameter.data.normal_(std=0.3)
    adapted.save_adapter("lora", tmp_path)
    theirs = peft.PeftModel.from_pretrained(net, tmp_path).eval()
    torch.testing.assert_close(theirs(x), adapted.tree(x), rtol=1e-6, atol=1e-6)


def test_merging_equals_running_unmerged(layered: tuple[Any, ...]) -> None:
    name, _, ours, x = layered
    adapted = ours.adapt(inarch.adapter("lora", targets=["layer"], rank=4, scale=0.7))
    for parameter in adapted.adapter_parameters("lora").values():
        parameter.data.normal_(std=0.3)
    if name == "grouped":
        with pytest.raises(inarch.InarchError) as caught:
            adapted.merge()
        assert caught.value.code == "IA409"
        return
    torch.testing.assert_close(adapted.merge().tree(x), adapted.tree(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("targets", [["embed_tokens", "q_proj"], ["lm_head", "down_proj"]])
def test_the_copy_of_the_base_that_peft_saves_with_embeddings_is_held_against_this_base(
    llamas: tuple[Any, Any], ids: torch.Tensor, tmp_path: Path, targets: list[str]
) -> None:
    theirs, base = llamas
    theirs = peft.get_peft_model(theirs, peft.LoraConfig(r=2, target_modules=targets))
    randomise(theirs)
    theirs.eval().save_pretrained(tmp_path / "saved")
    file = tmp_path / "saved" / "adapter_model.safetensors"
    tensors = load_file(file)
    copies = [key for key in tensors if key.endswith(".weight") and "lora_" not in key]
    assert copies
    adapted = base.adapt(inarch.adapter("lora", weights=tmp_path / "saved"))
    torch.testing.assert_close(adapted(ids), theirs(ids).logits, rtol=1e-6, atol=1e-5)
    half = inarch.load(base.checkpoint.path, dtype="bfloat16")
    assert half.adapt(inarch.adapter("lora", weights=tmp_path / "saved")).adapters.names
    save_file(tensors | {copies[0]: tensors[copies[0]] + 1}, file)
    with pytest.raises(inarch.InarchError) as caught:
        base.adapt(inarch.adapter("lora", weights=tmp_path / "saved"))
    assert caught.value.code == "IA410"
    assert copies[0] in caught.value.where
