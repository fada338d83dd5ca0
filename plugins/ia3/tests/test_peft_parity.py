"""PEFT's folders give PEFT's outputs and gradients here, and ours give ours in PEFT."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import inarch
from inarch.nn.attention import positions_of

peft = pytest.importorskip("peft")

CONFIGS = {
    "paper": {
        "target_modules": ["k_proj", "v_proj", "down_proj"],
        "feedforward_modules": ["down_proj"],
    },
    "no_feedforward": {"target_modules": ["q_proj", "up_proj"], "feedforward_modules": []},
    "all_feedforward": {"target_modules": ["down_proj"], "feedforward_modules": ["down_proj"]},
    "expressions": {
        "target_modules": r".*layers\.1\..*(k_proj|gate_proj)",
        "feedforward_modules": r".*gate_proj",
    },
    "excluded": {
        "target_modules": ["k_proj", "down_proj"],
        "feedforward_modules": ["down_proj"],
        "exclude_modules": ["model.layers.0.self_attn.k_proj"],
    },
}


def randomise(model: torch.nn.Module) -> None:
    """Give every trainable parameter a value, so that nothing is one by initialisation."""
    generator = torch.Generator().manual_seed(7)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.copy_(1 + torch.randn(parameter.shape, generator=generator) * 0.4)


def address(name: str) -> str:
    return name.replace(".default", "").removeprefix("base_model.model.")


@pytest.mark.parametrize("config", CONFIGS.values(), ids=list(CONFIGS))
def test_a_folder_of_peft_gives_its_outputs_and_gradients(
    llamas: tuple[Any, Any], ids: Tensor, tmp_path: Path, config: dict[str, Any]
) -> None:
    base, ours = llamas
    theirs = peft.get_peft_model(base, peft.IA3Config(**config))
    randomise(theirs)
    theirs.save_pretrained(tmp_path / "theirs")
    adapted = ours.adapt(inarch.adapter("ia3", weights=tmp_path / "theirs"))
    expected, actual = theirs.eval()(ids).logits, adapted(ids)
    largest = float(expected.detach().abs().max())
    torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-6 * largest)

    adapted.adapters["ia3"].trainable = True
    expected.square().mean().backward()
    adapted(ids).square().mean().backward()
    wanted = {address(n): p.grad for n, p in theirs.named_parameters() if p.requires_grad}
    found = {n: p.grad for n, p in adapted.adapter_parameters("ia3").items()}
    assert set(found) == set(wanted)
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-5, atol=1e-6)


def test_a_batch_filled_up_on_the_left_gives_peft_s_outputs(
    llamas: tuple[Any, Any], ids: Tensor, tmp_path: Path
) -> None:
    base, ours = llamas
    theirs = peft.get_peft_model(base, peft.IA3Config(**CONFIGS["paper"])).eval()
    randomise(theirs)
    theirs.save_pretrained(tmp_path / "theirs")
    adapted = ours.adapt(inarch.adapter("ia3", weights=tmp_path / "theirs"))
    mask = torch.ones_like(ids)
    mask[1, :4] = 0
    mask[2, :1] = 0
    expected = theirs(ids, attention_mask=mask, position_ids=positions_of(mask)).logits.detach()
    actual = adapted(ids, mask)
    largest = float(expected.abs().max())
    kept = mask.bool()
    torch.testing.assert_close(actual[kept], expected[kept], rtol=1e-6, atol=2e-6 * largest)


def test_generation_of_unequal_prompts_is_peft_s(
    llamas: tuple[Any, Any], ids: Tensor, tmp_path: Path
) -> None:
    base, ours = llamas
    theirs = peft.get_peft_model(base, peft.IA3Config(**CONFIGS["paper"])).eval()
    randomise(theirs)
    theirs.save_pretrained(tmp_path / "theirs")
    adapted = ours.adapt(inarch.adapter("ia3", weights=tmp_path / "theirs"))
    prompts = [ids[0].tolist(), ids[1, :4].tolist(), ids[2, :7].tolist()]
    padded = torch.tensor([[0] * (9 - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (9 - len(p)) + [1] * len(p) for p in prompts])
    expected = theirs.generate(
        input_ids=padded, attention_mask=mask, max_new_tokens=8, do_sample=False, pad_token_id=0
    )[:, 9:]
    steps = list(adapted.generate_ids(prompts, max_new_tokens=8, stop=frozenset()))
    assert torch.tensor(steps).T.tolist() == expected.tolist()


@pytest.mark.parametrize("config", CONFIGS.values(), ids=list(CONFIGS))
def test_a_folder_of_ours_is_peft_s_to_the_bit(
    llamas: tuple[Any, Any], ids: Tensor, tmp_path: Path, config: dict[str, Any]
) -> None:
    base, ours = llamas
    theirs = peft.get_peft_model(base, peft.IA3Config(**config)).eval()
    randomise(theirs)
    theirs.save_pretrained(tmp_path / "theirs")
    expected = theirs(ids).logits.detach()
    adapted = ours.adapt(inarch.adapter("ia3", weights=tmp_path / "theirs", name="mine"))
    adapted.save_adapter("mine", tmp_path / "ours")
    first = load_file(tmp_path / "theirs" / "adapter_model.safetensors")
    second = load_file(tmp_path / "ours" / "adapter_model.safetensors")
    assert set(first) == set(second)
    assert all(torch.equal(first[key], second[key]) for key in first)
    again = peft.PeftModel.from_pretrained(theirs.unload(), tmp_path / "ours").eval()
    assert torch.equal(again(ids).logits, expected)
    reloaded = ours.adapt(inarch.adapter("ia3", weights=tmp_path / "ours"))
    assert torch.equal(reloaded(ids), adapted(ids))


@pytest.mark.parametrize("feedforward", [False, True], ids=["output", "input"])
def test_each_kind_of_layer_equals_peft(
    layered: tuple[Any, ...], tmp_path: Path, feedforward: bool
) -> None:
    name, net, ours, x = layered
    modules = ["layer"] if feedforward else []
    config = peft.IA3Config(
        target_modules=["layer"],
        feedforward_modules=modules,
        fan_in_fan_out=name == "transposed",
    )
    theirs = peft.get_peft_model(net, config).eval()
    randomise(theirs)
    theirs.save_pretrained(tmp_path / "theirs")
    adapted = ours.adapt(inarch.adapter("ia3", weights=tmp_path / "theirs"))
    expected = theirs(x)
    torch.testing.assert_close(adapted.tree(x), expected, rtol=1e-6, atol=1e-6)
    adapted.adapters["ia3"].trainable = True
    expected.square().mean().backward()
    adapted.tree(x).square().mean().backward()
    [gradient] = [p.grad for p in theirs.parameters() if p.requires_grad]
    [own] = adapted.adapter_parameters("ia3").values()
    torch.testing.assert_close(own.grad, gradient, rtol=1e-5, atol=1e-6)

    adapted.save_adapter("ia3", tmp_path / "ours")
    told = json.loads((tmp_path / "ours" / "adapter_config.json").read_text())
    assert told["feedforward_modules"] == modules
    again = peft.PeftModel.from_pretrained(theirs.unload(), tmp_path / "ours").eval()
    torch.testing.assert_close(again(x), expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(adapted.merge().tree(x), expected, rtol=1e-5, atol=1e-5)
    merged = again.merge_and_unload()
    weight = adapted.merge().tree.get_parameter("layer.weight")
    assert torch.equal(weight, merged.layer.weight)
