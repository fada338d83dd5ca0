"""What (IA)^3 promises on its own: no effect at first, a scale, merging, and gradients."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import inarch
from inarch_ia3.edges import InputFactor, OutputFactor


def randomised(model: Any, seed: int = 0) -> Any:
    generator = torch.Generator().manual_seed(seed)
    for member in model.adapters:
        for parameter in member.parameters().values():
            parameter.data.copy_(1 + 0.4 * torch.randn(parameter.shape, generator=generator))
    return model


@pytest.mark.parametrize("name", ["ia3", "lora", "weight", "k_proj", "a", "ab", "ünïcode"])
def test_an_untrained_adapter_changes_no_bit_whatever_its_name(
    llamas: tuple[Any, Any], ids: Tensor, name: str
) -> None:
    _, ours = llamas
    adapted = ours.adapt(inarch.adapter("ia3", name=name))
    assert torch.equal(adapted(ids), ours(ids))
    trainable = {id(p) for p in adapted.parameters() if p.requires_grad}
    assert trainable == {id(p) for p in adapted.adapter_parameters(name).values()}
    assert len(trainable) == 3 * 2


def test_the_roles_say_what_is_scaled_at_its_output_and_what_at_its_input(
    llamas: tuple[Any, Any],
) -> None:
    _, ours = llamas
    kinds = {e.address: e.kind for e in ours.adapt("ia3").adapters["ia3"].edits}
    assert {a.rpartition(".")[2]: kind for a, kind in kinds.items()} == {
        "k_proj": "scale",
        "v_proj": "scale",
        "down_proj": "before",
    }


def test_two_in_either_order_give_one_form_and_equal_bits(
    llamas: tuple[Any, Any], ids: Tensor
) -> None:
    _, ours = llamas
    specs = [inarch.adapter("ia3", name=n, targets=["attention.value"]) for n in ("a", "ab")]
    first = randomised(ours.adapt(*specs))
    second = first._with([*reversed(first.adapters)])
    assert second.tree.form is first.tree.form
    assert torch.equal(second(ids), first(ids))


@pytest.mark.parametrize("strength", [0.0, 0.3, 1.0, -1.5])
def test_the_scale_goes_from_none_of_the_effect_to_all_of_it(
    llamas: tuple[Any, Any], ids: Tensor, strength: float
) -> None:
    _, ours = llamas
    adapted = randomised(ours.adapt(inarch.adapter("ia3", scale=strength)))
    scaled = ours.adapt("ia3")
    given = adapted.adapter_parameters("ia3")
    for name, parameter in scaled.adapter_parameters("ia3").items():
        parameter.data.copy_(1 + strength * (given[name].detach() - 1))
    torch.testing.assert_close(adapted(ids), scaled(ids), rtol=1e-5, atol=1e-5)
    if strength == 0.0:
        assert torch.equal(adapted(ids), ours(ids))


def test_merging_equals_running_unmerged_and_dropping_restores_the_base(
    llamas: tuple[Any, Any], ids: Tensor
) -> None:
    _, ours = llamas
    before = {k: v.clone() for k, v in ours.state_dict().items()}
    targets = ["attention.key", "attention.output", "mlp.up"]
    specs = [inarch.adapter("ia3", name=n, targets=targets) for n in ("b", "a")]
    adapted = randomised(ours.adapt(*specs))
    adapted.adapters["a"].scale = 0.5
    merged = adapted.merge()
    torch.testing.assert_close(merged(ids), adapted(ids), rtol=1e-5, atol=1e-5)
    assert list(merged.state_dict()) == list(before)
    assert torch.equal(merged.without("a", "b")(ids), ours(ids))
    assert all(torch.equal(ours.state_dict()[k], v) for k, v in before.items())


def test_rescaling_recompiles_nothing(llamas: tuple[Any, Any]) -> None:
    from torch._dynamo.testing import CompileCounter

    adapted = randomised(llamas[1].adapt("ia3"))
    adapted.adapters["ia3"].trainable = False
    layer = adapted.tree.get_submodule("model.layers.0.mlp")
    counter = CompileCounter()
    torch._dynamo.reset()
    compiled = torch.compile(layer, backend=counter, fullgraph=True)
    x = torch.randn(2, 5, 16)
    for scale in (1.0, 0.5, 0.0, -2.0):
        adapted.adapters["ia3"].scale = scale
        torch.testing.assert_close(compiled(x), layer(x), rtol=1e-5, atol=1e-5)
    assert counter.frame_count == 1


def test_a_step_of_training_moves_the_vectors_and_nothing_else(
    llamas: tuple[Any, Any], ids: Tensor
) -> None:
    _, ours = llamas
    before = {k: v.clone() for k, v in ours.state_dict().items()}
    adapted = ours.adapt("ia3")
    parameters = adapted.adapter_parameters("ia3")
    optimizer = torch.optim.SGD(parameters.values(), lr=0.1)
    adapted(ids).square().mean().backward()
    optimizer.step()
    assert all(not torch.equal(p, torch.ones_like(p)) for p in parameters.values())
    assert all(torch.equal(ours.state_dict()[k], v) for k, v in before.items())


def test_gradients_are_those_of_finite_differences() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 4).double().requires_grad_()
    for edge in (OutputFactor((4, 1), (-1, 1)).double(), InputFactor((1, 4), (1, -1)).double()):
        edge.rescale(0.7)
        given = torch.randn(edge.ia3_l.shape).double().requires_grad_()

        def run(x: Tensor, vector: Tensor, edge: OutputFactor = edge) -> Tensor:
            return x.sum() * torch.func.functional_call(edge, {"ia3_l": vector}, (x,))

        assert torch.autograd.gradcheck(run, (x, given))


def test_a_file_without_settings_is_told_by_its_shapes(
    llamas: tuple[Any, Any], ids: Tensor, tmp_path: Path
) -> None:
    _, ours = llamas
    adapted = randomised(ours.adapt("ia3"))
    adapted.save_adapter("ia3", tmp_path)
    (tmp_path / "adapter_config.json").unlink()
    again = ours.adapt(inarch.adapter("ia3", weights=tmp_path))
    assert torch.equal(again(ids), adapted(ids))


def test_half_precision_is_kept(llamas: tuple[Any, Any], ids: Tensor, tmp_path: Path) -> None:
    _, ours = llamas
    half = inarch.load(ours.checkpoint.path, dtype="bfloat16")
    adapted = randomised(half.adapt(inarch.adapter("ia3", scale=0.5)))
    assert adapted(ids).dtype == torch.bfloat16
    saved = adapted.save_adapter("ia3", tmp_path / "half")
    again = half.adapt(inarch.adapter("ia3", weights=saved, scale=0.5))
    assert torch.equal(again(ids), adapted(ids))
