"""PiSSA and OLoRA: the product that training took out of the base is made again beside it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import inarch
from inarch.adapters import Model
from inarch.nn import TransposedLinear
from inarch.tree import Chain
from inarch_lora.edges import LinearLoRA

peft = pytest.importorskip("peft")
pytorch_utils = pytest.importorskip("transformers.pytorch_utils")

LAYERS = {
    "wide": (lambda: nn.Linear(10, 6), ["pissa", "olora"]),
    "tall": (lambda: nn.Linear(6, 10), ["pissa", "olora"]),
    "transposed": (lambda: TransposedLinear(10, 6), ["pissa"]),
}
CASES = [(layer, start) for layer, (_, starts) in LAYERS.items() for start in starts]


class Layered(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(self.layer(x))


def nets(layer: str, seed: int = 0) -> tuple[nn.Module, Model, Tensor]:
    torch.manual_seed(seed)
    base = LAYERS[layer][0]()
    theirs: nn.Module = nn.Linear(*reversed(base.weight.shape))
    if layer == "transposed":
        theirs = pytorch_utils.Conv1D(base.weight.shape[1], base.weight.shape[0])
    theirs.load_state_dict(base.state_dict())
    chain = Chain(layer=base, act=F.gelu).requires_grad_(False).eval()
    inputs = base.weight.shape[0 if layer == "transposed" else 1]
    return Layered(theirs), Model({"": chain}, roles={"mlp.up": "layer"}), torch.randn(4, inputs)


def trained(net: nn.Module, layer: str, start: str, folder: Path, **more: Any) -> Any:
    """PEFT's net, a few steps after its base lost what the adapter began with."""
    options = {"r": 3, "lora_alpha": 5, **more}
    config = peft.LoraConfig(
        **options,
        init_lora_weights=start,
        target_modules=["layer"],
        fan_in_fan_out=layer == "transposed",
    )
    model = peft.get_peft_model(net, config)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize("rooted", [False, True])
@pytest.mark.parametrize(("layer", "start"), CASES)
def test_a_folder_of_peft_gives_its_outputs_and_gradients(
    layer: str, start: str, rooted: bool, tmp_path: Path
) -> None:
    net, ours, x = nets(layer)
    theirs = trained(net, layer, start, tmp_path, use_rslora=rooted)
    before = ours.tree.get_submodule("layer").weight.clone()
    adapted = ours.adapt(inarch.adapter("lora", weights=tmp_path))
    expected = theirs.eval()(x)
    torch.testing.assert_close(adapted.tree(x), expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(adapted.merge().tree(x), expected, rtol=2e-6, atol=2e-6)
    adapted.adapters["lora"].trainable = True
    expected.square().sum().backward()
    adapted.tree(x).square().sum().backward()
    wanted = [p.grad for p in theirs.parameters() if p.requires_grad]
    for mine, other in zip(adapted.adapter_parameters("lora").values(), wanted, strict=True):
        torch.testing.assert_close(mine.grad, other, rtol=1e-5, atol=1e-5)
    assert torch.equal(ours.tree.get_submodule("layer").weight, before)


@pytest.mark.parametrize(("layer", "start"), CASES)
def test_peft_loads_ours_on_an_untouched_base(layer: str, start: str, tmp_path: Path) -> None:
    net, ours, x = nets(layer)
    adapted = ours.adapt(inarch.adapter("lora", targets=["layer"], rank=3, alpha=4, start=start))
    assert torch.equal(adapted.tree(x), ours.tree(x))
    for parameter in adapted.adapter_parameters("lora").values():
        parameter.data.add_(torch.randn_like(parameter) * 0.1)
    adapted.save_adapter("lora", tmp_path)
    theirs = peft.PeftModel.from_pretrained(net, tmp_path).eval()
    torch.testing.assert_close(theirs(x), adapted.tree(x), rtol=1e-6, atol=1e-6)
    again = ours.adapt(inarch.adapter("lora", weights=tmp_path))
    assert torch.equal(again.tree(x), adapted.tree(x))


def test_two_at_once_are_the_sum_of_both_and_leave_the_base(tmp_path: Path) -> None:
    _, ours, x = nets("wide")
    specs = []
    for name, start in (("a", "pissa"), ("b", "pissa"), ("c", "olora")):
        net, _, _ = nets("wide")
        trained(net, "wide", start, tmp_path / name)
        specs.append(inarch.adapter("lora", weights=tmp_path / name, name=name))
    layer = ours.tree.get_submodule("layer")
    before = {key: value.clone() for key, value in ours.state_dict().items()}
    both = ours.adapt(*specs)
    alone = [ours.adapt(spec).adapters[spec.name].modules["layer"](x) for spec in specs]
    torch.testing.assert_close(both.tree(x), F.gelu(layer(x) + sum(alone)), rtol=1e-6, atol=1e-6)
    assert all(torch.equal(ours.state_dict()[key], value) for key, value in before.items())
    assert torch.equal(both.without("a", "b", "c").tree(x), ours.tree(x))
    assert torch.equal(ours.adapt(*reversed(specs)).tree(x), both.tree(x))


def test_what_it_began_with_is_no_parameter_and_in_no_file(tmp_path: Path) -> None:
    net, ours, _ = nets("wide")
    trained(net, "wide", "pissa", tmp_path)
    adapted = ours.adapt(inarch.adapter("lora", weights=tmp_path))
    assert set(adapted.adapter_parameters("lora")) == {"layer.lora_A", "layer.lora_B"}
    assert set(adapted.state_dict()) - set(ours.state_dict()) == {
        "layer__lora.lora_A",
        "layer__lora.lora_B",
    }
    assert [edit.reads for edit in adapted.adapters["lora"].edits] == [("layer.weight",)]


def test_a_converted_folder_is_a_plain_lora(tmp_path: Path) -> None:
    net, ours, x = nets("wide")
    model = peft.get_peft_model(
        net, peft.LoraConfig(r=3, init_lora_weights="pissa", target_modules=["layer"])
    )
    model.peft_config["default"].init_lora_weights = True
    model.save_pretrained(tmp_path / "initial")
    model.peft_config["default"].init_lora_weights = "pissa"
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.add_(torch.randn_like(parameter) * 0.1)
    expected = model.eval()(x).detach()
    model.save_pretrained(
        tmp_path / "plain", path_initial_model_for_weight_conversion=str(tmp_path / "initial")
    )
    adapted = ours.adapt(inarch.adapter("lora", weights=tmp_path / "plain"))
    assert type(adapted.adapters["lora"].modules["layer"]) is LinearLoRA
    torch.testing.assert_close(adapted.tree(x), expected, rtol=1e-5, atol=1e-5)


def test_a_start_found_by_chance_is_refused_with_the_conversion(tmp_path: Path) -> None:
    net, ours, _ = nets("wide")
    trained(net, "wide", "pissa_niter_4", tmp_path)
    with pytest.raises(inarch.InarchError) as caught:
        ours.adapt(inarch.adapter("lora", weights=tmp_path))
    assert (caught.value.code, "pissa_niter_4" in caught.value.where) == ("IA424", True)
    assert "path_initial_model_for_weight_conversion" in caught.value.remedy


def test_a_start_peft_does_not_have_for_a_layer_is_refused(tmp_path: Path) -> None:
    _, ours, _ = nets("transposed")
    with pytest.raises(inarch.InarchError) as caught:
        ours.adapt(inarch.adapter("lora", targets=["layer"], start="olora"))
    assert caught.value.code == "IA427"


def test_other_starts_leave_the_base_alone_and_just_load(tmp_path: Path) -> None:
    for start in ("orthogonal", "gaussian"):
        net, ours, x = nets("wide")
        theirs = trained(net, "wide", start, tmp_path / start, r=2)
        adapted = ours.adapt(inarch.adapter("lora", weights=tmp_path / start))
        torch.testing.assert_close(adapted.tree(x), theirs.eval()(x), rtol=1e-6, atol=1e-6)


def test_saving_what_began_so_in_a_format_that_can_t_say_it_is_refused(tmp_path: Path) -> None:
    net, ours, _ = nets("wide")
    trained(net, "wide", "pissa", tmp_path)
    file = tmp_path / "adapter_config.json"
    assert json.loads(file.read_text())["init_lora_weights"] == "pissa"
    adapted = ours.adapt(inarch.adapter("lora", weights=tmp_path, format="kohya"))
    with pytest.raises(inarch.InarchError) as caught:
        adapted.save_adapter("lora", tmp_path / "out")
    assert caught.value.code == "IA408"


@pytest.mark.parametrize("start", ["pissa", "olora"])
def test_a_head_that_peft_saves_less_what_it_began_with_is_read(
    llamas: tuple[Any, Model], ids: Tensor, tmp_path: Path, start: str
) -> None:
    base, ours = llamas
    config = peft.LoraConfig(r=2, target_modules=["lm_head", "q_proj"], init_lora_weights=start)
    theirs = peft.get_peft_model(base, config).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.1 if parameter.requires_grad else 0.0)
    theirs.save_pretrained(tmp_path)
    found = ours.adapt(inarch.adapter("lora", weights=tmp_path))
    torch.testing.assert_close(found(ids), theirs(ids).logits, rtol=1e-4, atol=1e-4)


def test_a_start_from_a_tied_weight_is_refused(llamas: tuple[Any, Model], tmp_path: Path) -> None:
    base, _ = llamas
    base.config.tie_word_embeddings = True
    base.tie_weights()
    base.save_pretrained(tmp_path)
    tied = inarch.load(tmp_path)
    with pytest.raises(inarch.InarchError) as caught:
        tied.adapt(inarch.adapter("lora", start="pissa", targets=["lm_head"]))
    assert (caught.value.code, "embed_tokens" in caught.value.why) == ("IA427", True)
    assert tied.adapt(inarch.adapter("lora", start="pissa")).adapters.names == ("lora",)


@pytest.mark.parametrize(("layer", "start"), CASES)
def test_parameters_of_another_dtype_than_the_start_take_it_along(layer: str, start: str) -> None:
    """As FSDP2 does where it computes in bfloat16: it casts parameters and no buffers."""
    _, base, x = nets(layer)
    model = base.adapt(inarch.adapter("lora", rank=3, targets=["mlp.up"], start=start))
    expected = model.tree(x)
    for parameter in model.tree.parameters():
        parameter.data = parameter.data.bfloat16()
    given = model.tree(x.bfloat16())
    assert given.dtype is torch.bfloat16
    torch.testing.assert_close(given.float(), expected, atol=0.05, rtol=0.05)
