"""LyCORIS's files and PEFT's LoHa and LoKr give their outputs and gradients here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

import inarch
from inarch.adapters import Model
from inarch.tree import Chain

peft = pytest.importorskip("peft")
lycoris = pytest.importorskip("lycoris.modules")

LAYERS = {
    "linear": (lambda: nn.Linear(12, 8), (3, 12)),
    "conv1d": (lambda: nn.Conv1d(4, 6, 3, padding=1), (2, 4, 7)),
    "conv2d": (lambda: nn.Conv2d(4, 6, 3, stride=2, padding=1), (2, 4, 7, 8)),
    "pointwise": (lambda: nn.Conv2d(8, 6, 1), (2, 8, 3, 3)),
    "grouped": (lambda: nn.Conv2d(8, 6, 3, groups=2), (2, 8, 5, 5)),
}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "locon": ("LoConModule", {}),
    "locon with a core": ("LoConModule", {"use_tucker": True}),
    "locon decomposed": ("LoConModule", {"weight_decompose": True}),
    "locon decomposed by inputs": (
        "LoConModule",
        {"weight_decompose": True, "wd_on_out": False},
    ),
    "locon rank-stabilised": ("LoConModule", {"rs_lora": True}),
    "loha": ("LohaModule", {}),
    "loha with cores": ("LohaModule", {"use_tucker": True}),
    "loha decomposed": ("LohaModule", {"weight_decompose": True}),
    "lokr": ("LokrModule", {"lora_dim": 1}),
    "lokr with a core": ("LokrModule", {"lora_dim": 1, "use_tucker": True}),
    "lokr of two products": ("LokrModule", {"lora_dim": 1, "decompose_both": True, "factor": 2}),
    "lokr of whole factors": ("LokrModule", {"full_matrix": True}),
    "lokr decomposed": ("LokrModule", {"lora_dim": 1, "weight_decompose": True}),
    "oft": ("DiagOFTModule", {"alpha": 0.0}),
    "oft constrained": ("DiagOFTModule", {"alpha": 0.0, "constraint": 0.05}),
    "oft rescaled": ("DiagOFTModule", {"alpha": 0.0, "rescaled": True}),
    "full": ("FullModule", {}),
}


def lycoris_module(layer: nn.Module, kind: str, multiplier: float) -> Any:
    name, options = KINDS[kind]
    options = {"lora_dim": 2, "alpha": 3.0, "multiplier": multiplier, **options}
    module = getattr(lycoris, name)("lycoris_layer", layer, **options)
    generator = torch.Generator().manual_seed(4)
    for parameter in module.parameters():
        parameter.data.add_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return module


def model_of(layer: nn.Module, name: str = "layer") -> Model:
    chain = Chain(**{name: layer}, act=F.gelu).requires_grad_(False).eval()
    return Model({"": chain}, roles={"mlp.up": name})


def saved(module: Any, file: Path, name: str = "lycoris_layer") -> Path:
    state = module.state_dict()
    if "diff" in state:  # made from an applied module; this one is a change of its own
        state = {"diff": module.weight, "diff_b": module.bias}
    save_file({f"{name}.{k}": v.detach().clone().contiguous() for k, v in state.items()}, file)
    return file


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layer", LAYERS)
def test_a_file_of_lycoris_gives_its_outputs_and_gradients(
    layer: str, kind: str, tmp_path: Path
) -> None:
    torch.manual_seed(3)
    multiplier = 1.0 if layer == "linear" else 0.6
    make, shape = LAYERS[layer]
    base = make()
    if "inputs" in kind and layer == "conv1d":
        base = nn.Conv1d(4, 6, 1)
    x = torch.randn(shape)
    module = lycoris_module(base, kind, multiplier)
    file = saved(module, tmp_path / "file.safetensors")
    spec = inarch.adapter("lora", weights=file, scale=multiplier)
    adapted = model_of(base).adapt(spec)
    expected = F.gelu(module(x))
    torch.testing.assert_close(adapted.tree(x), expected, rtol=2e-6, atol=2e-6)
    torch.testing.assert_close(adapted.merge().tree(x), expected, rtol=2e-6, atol=2e-6)

    adapted.adapters["lora"].trainable = True
    expected.square().sum().backward()
    adapted.tree(x).square().sum().backward()
    wanted = {name: p.grad for name, p in module.named_parameters()}
    if "weight" in wanted:
        wanted = {"diff": wanted["weight"], "diff_b": wanted["bias"]}
    rename = {"lora_A": "lora_down.weight", "lora_B": "lora_up.weight"}
    rename |= {"lora_mid": "lora_mid.weight", "oft_rescale": "rescale"}
    found = {
        rename.get(own, own): p.grad
        for name, p in adapted.adapter_parameters("lora").items()
        for own in [name.rpartition(".")[2]]
    }
    assert set(found) == set(wanted)
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_saving_writes_the_file_again(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(3)
    base = nn.Conv2d(4, 6, 3, stride=2, padding=1)
    module = lycoris_module(base, kind, 1.0)
    file = saved(module, tmp_path / "file.safetensors")
    model = model_of(base)
    adapted = model.adapt(inarch.adapter("lora", weights=file))
    adapted.save_adapter("lora", tmp_path / "ours")
    first, second = load_file(file), load_file(tmp_path / "ours" / "adapter.safetensors")
    if "whole factors" in kind:  # there is no rank, so alpha says nothing
        first.pop("lycoris_layer.alpha")
        second.pop("lycoris_layer.alpha", None)
    assert {k: t.shape for k, t in first.items()} == {k: t.shape for k, t in second.items()}
    assert all(torch.equal(first[key].float(), second[key].float()) for key in first)
    x = torch.randn(2, 4, 7, 8)
    again = model.adapt(inarch.adapter("lora", weights=tmp_path / "ours"))
    assert torch.equal(again.tree(x), adapted.tree(x))


NORMS = {
    "layer norm": (lambda: nn.LayerNorm(6), (3, 6)),
    "group norm": (lambda: nn.GroupNorm(2, 6), (2, 6, 4)),
}


@pytest.mark.parametrize("norm", NORMS)
def test_norms_give_its_outputs_and_merge(norm: str, tmp_path: Path) -> None:
    torch.manual_seed(3)
    make, shape = NORMS[norm]
    base = make()
    module = lycoris.NormModule("lycoris_layer", base, multiplier=0.7)
    for parameter in module.parameters():
        parameter.data.normal_()
    file = saved(module, tmp_path / "file.safetensors")
    adapted = model_of(base).adapt(inarch.adapter("lora", weights=file, scale=0.7))
    x = torch.randn(shape)
    expected = F.gelu(module(x))
    torch.testing.assert_close(adapted.tree(x), expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(adapted.merge().tree(x), expected, rtol=1e-6, atol=1e-6)
    adapted.adapters["lora"].trainable = True
    adapted.tree(x).square().sum().backward()
    expected.square().sum().backward()
    for name, parameter in adapted.adapter_parameters("lora").items():
        wanted = getattr(module, name.rpartition(".")[2]).grad
        torch.testing.assert_close(parameter.grad, wanted, rtol=1e-5, atol=1e-5)


PEFT = {
    "loha": (peft.LoHaConfig, {"r": 3, "alpha": 5}),
    "loha with cores": (peft.LoHaConfig, {"r": 3, "alpha": 5, "use_effective_conv2d": True}),
    "lokr": (peft.LoKrConfig, {"r": 1, "alpha": 3}),
    "lokr with a core": (peft.LoKrConfig, {"r": 1, "alpha": 3, "use_effective_conv2d": True}),
    "lokr of whole factors": (peft.LoKrConfig, {"r": 8, "alpha": 4}),
    "lokr of two products": (
        peft.LoKrConfig,
        {"r": 1, "alpha": 4, "decompose_both": True, "decompose_factor": 2},
    ),
}
# PEFT's LoKr with a core can't run beside a Conv1d: torch.kron fails on what it is given.
PEFT_CASES = [
    (layer, kind)
    for layer in LAYERS
    for kind in PEFT
    if layer != "grouped" and (layer, kind) != ("conv1d", "lokr with a core")
]


class Layered(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(self.layer(x))


@pytest.mark.parametrize(("layer", "kind"), PEFT_CASES)
def test_a_folder_of_peft_gives_its_outputs_and_gradients_and_is_saved_again(
    layer: str, kind: str, tmp_path: Path
) -> None:
    torch.manual_seed(3)
    make, shape = LAYERS[layer]
    base, x = make(), torch.randn(shape)
    config, options = PEFT[kind]
    model = model_of(base)
    theirs = peft.get_peft_model(Layered(base), config(target_modules=["layer"], **options))
    generator = torch.Generator().manual_seed(4)
    for parameter in theirs.parameters():
        if parameter.requires_grad:
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    theirs.save_pretrained(tmp_path / "theirs")
    adapted = model.adapt(inarch.adapter("lora", weights=tmp_path / "theirs"))
    expected = theirs.eval()(x)
    torch.testing.assert_close(adapted.tree(x), expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(adapted.merge().tree(x), expected, rtol=2e-6, atol=2e-6)

    adapted.adapters["lora"].trainable = True
    expected.square().sum().backward()
    adapted.tree(x).square().sum().backward()
    wanted = {
        name.split(".")[-2]: p.grad for name, p in theirs.named_parameters() if p.requires_grad
    }
    found = {
        name.rpartition(".")[2]: p.grad for name, p in adapted.adapter_parameters("lora").items()
    }
    assert set(found) == set(wanted)
    for name, gradient in wanted.items():
        if kind == "loha with cores" and name in ("hada_w1_a", "hada_w2_a"):
            continue  # PEFT's own backward takes these from the other half; LyCORIS's doesn't
        torch.testing.assert_close(found[name], gradient, rtol=1e-5, atol=1e-5)

    adapted.save_adapter("lora", tmp_path / "ours")
    names = ["theirs", "ours"]
    files = [load_file(tmp_path / name / "adapter_model.safetensors") for name in names]
    assert files[0].keys() == files[1].keys()
    assert all(torch.equal(files[0][key], files[1][key]) for key in files[0])
    again = peft.PeftModel.from_pretrained(theirs.unload(), tmp_path / "ours").eval()
    torch.testing.assert_close(again(x), expected, rtol=1e-6, atol=1e-6)


FRESH: dict[str, dict[str, Any]] = {
    "loha": {"algorithm": "loha", "rank": 3, "alpha": 5},
    "loha with cores": {"algorithm": "loha", "rank": 3, "tucker": True},
    "lokr": {"algorithm": "lokr", "rank": 1},
    "lokr with a core": {"algorithm": "lokr", "rank": 1, "tucker": True},
    "lokr of whole factors": {"algorithm": "lokr", "rank": 8},
    "lokr of two products": {
        "algorithm": "lokr",
        "rank": 1,
        "decompose_both": True,
        "factor": 2,
    },
}


@pytest.mark.parametrize(("layer", "kind"), PEFT_CASES)
def test_a_fresh_one_does_nothing_and_loads_into_peft(
    layer: str, kind: str, tmp_path: Path
) -> None:
    torch.manual_seed(3)
    make, shape = LAYERS[layer]
    base, x = make(), torch.randn(shape)
    model = model_of(base)
    adapted = model.adapt(inarch.adapter("lora", targets=["layer"], **FRESH[kind]))
    assert torch.equal(adapted.tree(x), model.tree(x))
    for parameter in adapted.adapter_parameters("lora").values():
        parameter.data.normal_(std=0.3)
    assert not torch.equal(adapted.tree(x), model.tree(x))
    adapted.save_adapter("lora", tmp_path)
    theirs = peft.PeftModel.from_pretrained(Layered(base), tmp_path).eval()
    torch.testing.assert_close(theirs(x), adapted.tree(x), rtol=1e-6, atol=1e-6)
    again = model.adapt(inarch.adapter("lora", weights=tmp_path))
    assert torch.equal(again.tree(x), adapted.tree(x))


def test_a_nan_is_not_merged(tmp_path: Path) -> None:
    base = nn.Linear(12, 8)
    module = lycoris_module(base, "loha", 1.0)
    module.hada_w1_a.data[0, 0] = float("nan")
    file = saved(module, tmp_path / "file.safetensors")
    adapted = model_of(base).adapt(inarch.adapter("lora", weights=file))
    with pytest.raises(inarch.InarchError) as caught:
        adapted.merge()
    assert caught.value.code == "IA409"


def change(file: Path, **tensors: Tensor | None) -> Path:
    state = load_file(file)
    for name, tensor in tensors.items():
        if tensor is None:
            state.pop(f"lycoris_layer.{name}")
        else:
            state[f"lycoris_layer.{name}"] = tensor
    save_file(state, file)
    return file


@pytest.mark.parametrize(
    ("tensors", "code", "named"),
    [
        ({"hada_w2_b": None}, "IA427", "hada_w2_b"),
        ({"hada_w2_b": torch.ones(2, 11)}, "IA427", "hada_w2_b [2, 11]"),
        ({"hada_w3_a": torch.ones(2, 11)}, "IA423", "hada_w3_a"),
        ({"lokr_w1": torch.ones(2, 2)}, "IA426", "loha and lokr"),
        ({"oft_blocks": torch.ones(2, 2, 2)}, "IA426", "loha and oft"),
        ({"a1.weight": torch.ones(2, 2)}, "IA423", "GLoRA"),
        ({"on_input": torch.ones(1)}, "IA423", "IA3"),
    ],
)
def test_what_does_not_fit_is_named(
    tensors: dict[str, Any], code: str, named: str, tmp_path: Path
) -> None:
    base = nn.Linear(12, 8)
    file = saved(lycoris_module(base, "loha", 1.0), tmp_path / "file.safetensors")
    change(file, **tensors)
    with pytest.raises(inarch.InarchError) as caught:
        model_of(base).adapt(inarch.adapter("lora", weights=file))
    assert caught.value.code == code
    assert named in str(caught.value)
