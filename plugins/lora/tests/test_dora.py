"""DoRA reads the pristine weight: PEFT's outputs and gradients, and nothing at all at first."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

import inarch
from inarch.adapters import Model
from inarch.tree import Chain

peft = pytest.importorskip("peft")


def moved(model: Any, seed: int = 7) -> None:
    """Move every trainable parameter away from where it began."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.data.add_(noise.to(parameter) * 0.2)


def peft_dora(layered: tuple[Any, ...], folder: Path, **more: Any) -> tuple[Any, Model, Tensor]:
    """PEFT's net with a trained DoRA, and ours with the folder it saved."""
    name, net, ours, x = layered
    config = peft.LoraConfig(
        **{"r": 4, "lora_alpha": 6, "use_dora": True, "target_modules": ["layer"], **more},
        fan_in_fan_out=name == "transposed",
    )
    theirs = peft.get_peft_model(net, config)
    moved(theirs)
    theirs.save_pretrained(folder, save_embedding_layers=False)
    return theirs, ours.adapt(inarch.adapter("lora", weights=folder)), x


def test_each_kind_of_layer_equals_peft(layered: tuple[Any, ...], tmp_path: Path) -> None:
    theirs, adapted, x = peft_dora(layered, tmp_path)
    expected = theirs.eval()(x)
    torch.testing.assert_close(adapted.tree(x), expected, rtol=1e-6, atol=1e-6)
    adapted.adapters["lora"].trainable = True
    expected.square().mean().backward()
    adapted.tree(x).square().mean().backward()
    wanted = {
        name.replace(".default", "").replace(".weight", "").rpartition(".")[2]: p.grad
        for name, p in theirs.named_parameters()
        if p.requires_grad
    }
    found = {
        name.rpartition(".")[2]: p.grad for name, p in adapted.adapter_parameters("lora").items()
    }
    assert set(found) == set(wanted)
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-5, atol=1e-6)


def test_the_users_scale_acts_in_the_norm_as_peft_s_does(
    layered: tuple[Any, ...], tmp_path: Path
) -> None:
    theirs, adapted, x = peft_dora(layered, tmp_path)
    if layered[0] == "embedding":
        theirs.base_model.model.layer.scaling["default"] *= 0.3
    else:
        theirs.base_model.model.layer.set_scale("default", 0.3)
    adapted.adapters["lora"].scale = 0.3
    torch.testing.assert_close(adapted.tree(x), theirs.eval()(x), rtol=1e-6, atol=1e-6)


def test_what_is_kept_of_a_forward_under_autocast_serves_no_other(
    layered: tuple[Any, ...], tmp_path: Path
) -> None:
    _, adapted, x = peft_dora(layered, tmp_path)

    def cast() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return adapted.tree(x)

    with torch.no_grad():
        first = cast()
        plain = adapted.tree(x)
        adapted.adapters["lora"].scale = 0.5
        adapted.tree(x)
        adapted.adapters["lora"].scale = 1.0
        assert torch.equal(adapted.tree(x), plain)
        assert torch.equal(cast(), first)


def test_an_untrained_one_is_a_bitwise_no_op(layered: tuple[Any, ...]) -> None:
    _, _, ours, x = layered
    adapted = ours.adapt(inarch.adapter("lora", targets=["layer"], rank=4, use_dora=True))
    assert torch.equal(adapted.tree(x), ours.tree(x))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_an_untrained_one_is_a_bitwise_no_op_in_any_dtype(dtype: torch.dtype) -> None:
    chain = Chain(layer=nn.Linear(33, 17)).to(dtype).requires_grad_(False).eval()
    base = Model({"": chain}, roles={"mlp.up": "layer"})
    adapted = base.adapt(inarch.adapter("lora", use_dora=True, targets=["layer"]))
    x = torch.randn(5, 33, dtype=dtype)
    assert torch.equal(adapted.tree(x), base.tree(x))


def test_a_row_of_zeros_stays_finite() -> None:
    chain = Chain(layer=nn.Linear(4, 3)).requires_grad_(False).eval()
    chain.get_submodule("layer").weight[1] = 0.0
    base = Model({"": chain}, roles={"mlp.up": "layer"})
    adapted = base.adapt(inarch.adapter("lora", use_dora=True, targets=["layer"]))
    x = torch.randn(2, 4)
    assert torch.equal(adapted.tree(x), base.tree(x))
    adapted.tree(x).sum().backward()
    for parameter in adapted.adapter_parameters("lora").values():
        assert bool(torch.isfinite(parameter.grad).all())


def test_beside_other_adapters_it_reads_the_pristine_weight(
    layered: tuple[Any, ...], tmp_path: Path
) -> None:
    _, _, ours, x = layered
    peft_dora(layered, tmp_path)
    dora = inarch.adapter("lora", weights=tmp_path, name="dora")
    both = ours.adapt(inarch.adapter("lora", targets=["layer"], rank=4, name="plain"), dora)
    for parameter in both.adapter_parameters("plain").values():
        parameter.data.normal_(std=0.3)
    terms = [both.adapters[name].modules["layer"](x) for name in ("plain", "dora")]
    expected = torch.nn.functional.gelu(ours.tree.get_submodule("layer")(x) + sum(terms))
    torch.testing.assert_close(both.tree(x), expected, rtol=1e-5, atol=1e-6)
    alone = ours.adapt(dora).adapters["dora"].modules["layer"]
    assert torch.equal(alone(x), terms[1])


@pytest.mark.parametrize("scale", [1.0, 0.4, 0.0])
def test_merging_equals_running_unmerged(
    layered: tuple[Any, ...], tmp_path: Path, scale: float
) -> None:
    name, _, _, x = layered
    _, adapted, x = peft_dora(layered, tmp_path)
    adapted.adapters["lora"].scale = scale
    if name == "grouped":  # its A mixes the groups, and the base's weight can't
        with pytest.raises(inarch.InarchError) as caught:
            adapted.merge()
        assert caught.value.code == "IA409"
        return
    merged = adapted.merge()
    torch.testing.assert_close(merged.tree(x), adapted.tree(x), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(merged.merge().tree(x), merged.tree(x), rtol=0, atol=0)


def test_what_is_saved_is_what_peft_saves(layered: tuple[Any, ...], tmp_path: Path) -> None:
    _, net, ours, x = layered
    adapted = ours.adapt(inarch.adapter("lora", targets=["layer"], rank=4, use_dora=True))
    for parameter in adapted.adapter_parameters("lora").values():
        parameter.data.add_(torch.randn_like(parameter) * 0.2)
    adapted.save_adapter("lora", tmp_path)
    theirs = peft.PeftModel.from_pretrained(net, tmp_path).eval()
    torch.testing.assert_close(theirs(x), adapted.tree(x), rtol=1e-6, atol=1e-6)
    theirs.save_pretrained(tmp_path / "theirs", save_embedding_layers=False)
    files = [tmp_path / "adapter_model.safetensors", tmp_path / "theirs/adapter_model.safetensors"]
    shapes = [{key: t.shape for key, t in load_file(file).items()} for file in files]
    assert shapes[0] == shapes[1]


def test_a_llama_with_rank_stabilised_scaling_equals_peft(
    llamas: tuple[Any, Any], ids: Tensor, tmp_path: Path
) -> None:
    base, ours = llamas
    config = peft.LoraConfig(
        r=3, lora_alpha=6, use_dora=True, use_rslora=True, target_modules=["q_proj", "down_proj"]
    )
    theirs = peft.get_peft_model(base, config)
    moved(theirs)
    theirs.save_pretrained(tmp_path)
    adapted = ours.adapt(inarch.adapter("lora", weights=tmp_path))
    expected = theirs.eval()(ids).logits
    largest = float(expected.detach().abs().max())
    torch.testing.assert_close(adapted(ids), expected, rtol=1e-6, atol=1e-6 * largest)


def test_the_edits_say_that_they_read_the_weight(layered: tuple[Any, ...]) -> None:
    _, _, ours, _ = layered
    adapted = ours.adapt(inarch.adapter("lora", targets=["layer"], rank=4, use_dora=True))
    assert [edit.reads for edit in adapted.adapters["lora"].edits] == [("layer.weight",)]


def test_it_compiles_whole_and_rescaling_recompiles_nothing() -> None:
    from torch._dynamo.testing import CompileCounter

    chain = Chain(layer=nn.Linear(8, 8)).requires_grad_(False).eval()
    base = Model({"": chain}, roles={"mlp.up": "layer"})
    adapted = base.adapt(inarch.adapter("lora", use_dora=True, targets=["layer"]))
    for parameter in adapted.adapter_parameters("lora").values():
        parameter.data.add_(torch.randn_like(parameter) * 0.2)
    adapted.adapters["lora"].trainable = False
    counter = CompileCounter()
    torch._dynamo.reset()
    compiled = torch.compile(adapted.tree, backend=counter, fullgraph=True)
    x = torch.randn(4, 8)
    for scale in (1.0, 0.5, 0.0, -2.0):
        adapted.adapters["lora"].scale = scale
        torch.testing.assert_close(compiled(x), adapted.tree(x), rtol=1e-5, atol=1e-5)
    assert counter.frame_count == 1


def test_settings_that_deny_the_magnitude_are_refused(
    layered: tuple[Any, ...], tmp_path: Path
) -> None:
    import json

    _, _, ours, _ = layered
    peft_dora(layered, tmp_path)
    file = tmp_path / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "use_dora": False}))
    with pytest.raises(inarch.InarchError) as caught:
        ours.adapt(inarch.adapter("lora", weights=tmp_path))
    assert (caught.value.code, "use_dora" in caught.value.why) == ("IA426", True)


@torch.no_grad()
def test_the_norm_is_made_again_only_where_something_changed(
    layered: tuple[Any, ...], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    _, adapted, x = peft_dora(layered, tmp_path)
    edge = adapted.adapters["lora"].modules["layer"]
    made: list[float] = []
    norm = type(edge)._norm
    monkeypatch.setattr(type(edge), "_norm", lambda e, s: made.append(s) or norm(e, s))

    def fresh() -> Tensor:
        edge.memory.kept = None
        return adapted.tree(x)

    adapted.tree(x)
    first = adapted.tree(x)
    assert len(made) == 1
    for change in (
        lambda: edge.pair()[1].mul_(1.5),
        lambda: setattr(adapted.adapters["lora"], "scale", 0.5),
        lambda: edge.base().weight.mul_(0.9),
    ):
        change()
        made.clear()
        again = adapted.tree(x)
        assert len(made) == 1
        assert not torch.equal(again, first)
        assert torch.equal(again, fresh())
        first = again


def test_while_it_learns_the_norm_is_never_kept(layered: tuple[Any, ...], tmp_path: Path) -> None:
    _, adapted, x = peft_dora(layered, tmp_path)
    edge = adapted.adapters["lora"].modules["layer"]
    with torch.no_grad():
        adapted.tree(x)
    assert edge.memory.kept is not None
    for parameter in edge.parameters():
        parameter.requires_grad_(True)
        parameter.data.mul_(1.5)  # without a trace, as some optimisers write
    learnt = adapted.tree(x)
    assert edge.memory.kept is None
    with torch.no_grad():
        torch.testing.assert_close(adapted.tree(x), learnt)


class Flops(TorchDispatchMode):
    """Counts as torch's own counter does, which has a hook of all modules: each is then called."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        count = flop_registry.get(func.overloadpacket)
        self.total += count(*args, **(kwargs or {}), out_val=out) if count else 0
        return out


@torch.no_grad()
def test_the_layer_is_computed_once(layered: tuple[Any, ...], tmp_path: Path) -> None:
    _, _, ours, x = layered
    _, adapted, x = peft_dora(layered, tmp_path)
    adapted.tree(x)  # which also makes the norm
    counts: list[int] = []
    for model in (ours, adapted):
        with Flops() as counter:
            model.tree(x)
        counts.append(counter.total)
    edge = adapted.adapters["lora"].modules["layer"]
    with Flops() as counter:
        edge.up(edge.down(x, edge.pair()[0]), edge.pair()[1], None, 1.0)
    assert counts[1] - counts[0] == counter.total


@torch.no_grad()
def test_what_a_hook_makes_of_the_layers_output_is_not_taken_for_its_product(
    layered: tuple[Any, ...], tmp_path: Path
) -> None:
    _, adapted, x = peft_dora(layered, tmp_path)
    layer, edge = (
        adapted.sites.find(["layer"])[0].module,
        adapted.adapters["lora"].modules["layer"],
    )
    plain, term = layer(x), edge(x)
    with layer.register_forward_hook(lambda _layer, _x, output: output * 2):
        torch.testing.assert_close(adapted.tree(x), torch.nn.functional.gelu(plain * 2 + term))
