"""What doesn't fit is refused by name, whatever else of the file does."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import inarch
from inarch.adapters import Model
from inarch.errors import InarchError
from inarch.nn import attend, split_heads
from inarch.tree import Chain, Parallel, Seq, Use

USES = ("prefix", "prompt-tuning")


@pytest.fixture(params=USES)
def saved(request: pytest.FixtureRequest, llamas: tuple[Any, Any], tmp_path: Path) -> Any:
    """The id of an adapter and a folder with one."""
    adapted = llamas[1].adapt(inarch.adapter(request.param, name="mine", tokens=2))
    return request.param, adapted.save_adapter("mine", tmp_path / "saved")


def refusal(model: Any, use: str, folder: Path, **changes: Any) -> InarchError:
    file = folder / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(InarchError) as caught:
        model.adapt(inarch.adapter(use, weights=folder))
    assert all(torch.equal(model.state_dict()[k], v) for k, v in before.items())
    return caught.value


def change(folder: Path, **tensors: torch.Tensor) -> Path:
    file = folder / "adapter_model.safetensors"
    save_file({**load_file(file), **tensors}, file)
    return folder


@pytest.mark.parametrize("setting", ["peft_type", "num_virtual_tokens", "token_dim"])
def test_a_setting_that_the_file_or_the_model_denies_is_named(
    llamas: tuple[Any, Any], saved: Any, setting: str
) -> None:
    use, folder = saved
    value = "LORA" if setting == "peft_type" else 7
    error = refusal(llamas[1], use, folder, **{setting: value})
    assert (error.code, f"{setting} = " in error.where) == ("IA442", True)
    assert str(folder) in error.where


@pytest.mark.parametrize("setting", ["num_layers", "num_attention_heads"])
def test_a_prefix_of_other_layers_or_heads_is_named(
    llamas: tuple[Any, Any], tmp_path: Path, setting: str
) -> None:
    folder = llamas[1].adapt("prefix").save_adapter("prefix", tmp_path / "saved")
    error = refusal(llamas[1], "prefix", folder, **{setting: 7})
    assert (error.code, f"{setting} = 7" in error.where) == ("IA442", True)


def test_one_method_s_file_is_not_the_other_s(llamas: tuple[Any, Any], saved: Any) -> None:
    use, folder = saved
    [other] = [one for one in USES if one != use]
    error = refusal(llamas[1], other, folder)
    assert (error.code, "peft_type" in error.where) == ("IA442", True)


def test_a_tensor_that_is_none_of_theirs_is_named(llamas: tuple[Any, Any], saved: Any) -> None:
    use, folder = saved
    key = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
    error = refusal(llamas[1], use, change(folder, **{key: torch.ones(2, 16)}))
    assert (error.code, key in error.where) == ("IA441", True)


@pytest.mark.parametrize("settings", [True, False])
def test_a_wrong_shape_is_named_with_both(
    llamas: tuple[Any, Any], saved: Any, settings: bool
) -> None:
    use, folder = saved
    change(folder, prompt_embeddings=torch.ones(2, 5))
    error = refusal(llamas[1], use, folder)
    assert error.code == "IA411"
    assert "prompt_embeddings is [2, 5], the site needs [2, " in error.why


def test_a_tensor_of_other_dimensions_is_refused(llamas: tuple[Any, Any], saved: Any) -> None:
    use, folder = saved
    error = refusal(llamas[1], use, change(folder, prompt_embeddings=torch.ones(2)))
    assert (error.code, "prompt_embeddings" in error.where) == ("IA442", True)


@pytest.mark.parametrize(
    ("use", "options"),
    [
        ("prefix", {"tokens": 0}),
        ("prefix", {"hidden": 4}),
        ("prefix", {"projection": True, "hidden": 0}),
        ("prefix", {"start": "warm"}),
        ("prompt-tuning", {"tokens": -1}),
        ("prompt-tuning", {"start": "zero"}),
        ("prompt-tuning", {"rank": 2}),
    ],
)
def test_an_option_outside_of_its_range_is_refused(
    llamas: tuple[Any, Any], use: str, options: dict[str, Any]
) -> None:
    with pytest.raises(InarchError) as caught:
        llamas[1].adapt(inarch.adapter(use, **options))
    assert caught.value.code == "IA401"


def attention(width: int, heads: bool = True) -> Chain:
    split = partial(split_heads, head_dim=2) if heads else split_heads
    return Chain(
        Parallel(
            query=Seq(q_proj=nn.Linear(4, width), heads=split),
            key=Seq(k_proj=nn.Linear(4, width), heads=split),
            value=Seq(v_proj=nn.Linear(4, width), heads=split),
            mask=Use("mask"),
        ),
        attend=attend,
    )


@pytest.mark.parametrize(
    "layers", [[attention(4), attention(8)], [attention(4, heads=False)]], ids=["sizes", "heads"]
)
def test_attention_that_is_not_alike_or_not_split_can_not_have_a_prefix(layers: Any) -> None:
    tree = Chain(positions=Seq(nn_=nn.Identity()), **{f"l{i}": a for i, a in enumerate(layers)})
    roles = {
        "attention.attend": "*.attend",
        "attention.key": "*.k_proj",
        "positions": "positions",
    }
    with pytest.raises(InarchError) as caught:
        Model({"": tree}, roles=roles).adapt("prefix")
    assert (caught.value.code, ".attend" in caught.value.where) == ("IA440", True)


def test_a_model_of_several_embeddings_can_not_have_a_prompt() -> None:
    tree = Chain(a=nn.Embedding(3, 4), b=nn.Linear(4, 4))
    roles = {"embedding.tokens": "*", "positions": "a", "norm.final": "b"}
    with pytest.raises(InarchError) as caught:
        Model({"": tree}, roles=roles).adapt("prompt-tuning")
    assert (caught.value.code, caught.value.where) == ("IA440", "a")
