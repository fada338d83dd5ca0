"""Adapting gives a new value; the base stays, bit for bit, whatever is done to the new one."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import inarch
from inarch.adapters import Edge, Model
from inarch.adapters.merge import merged
from inarch.errors import InarchError


def randomised(model: Model, seed: int = 2) -> Model:
    """The model with every adapter's parameters drawn anew, so that each has an effect."""
    generator = torch.Generator().manual_seed(seed)
    for member in model.adapters:
        for parameter in member.parameters().values():
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator))
    return model


def test_an_untrained_adapter_changes_no_output_bit(base: Model, x: Tensor) -> None:
    adapted = base.adapt(inarch.adapter("lowrank"))
    assert torch.equal(adapted.tree(x), base.tree(x))


def test_dropping_an_adapter_leaves_every_base_bit(base: Model, x: Tensor) -> None:
    before = {k: v.clone() for k, v in base.state_dict().items()}
    modules = [id(m) for m in base.tree.modules()]
    adapted = randomised(base.adapt(inarch.adapter("lowrank")))
    assert not torch.equal(adapted.tree(x), base.tree(x))
    dropped = adapted.without("lowrank")
    assert torch.equal(dropped.tree(x), base.tree(x))
    after = base.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[k], before[k]) for k in before)
    assert [id(m) for m in base.tree.modules()] == modules


def test_every_order_of_three_adapters_gives_one_form_and_equal_bits(
    base: Model, x: Tensor
) -> None:
    names = ("a", "ab", "lora")
    first = randomised(base.adapt(*(inarch.adapter("lowrank", name=n) for n in names)))
    weights = {n: first.adapters[n].parameters() for n in names}
    for order in itertools.permutations(names):
        model = base.adapt(*(inarch.adapter("lowrank", name=n) for n in order))
        for name in names:
            for key, parameter in model.adapters[name].parameters().items():
                parameter.data.copy_(weights[name][key])
        assert model.tree.form is first.tree.form
        assert torch.equal(model.tree(x), first.tree(x))


def test_the_output_is_the_equation(base: Model, x: Tensor) -> None:
    adapted = randomised(base.adapt(inarch.adapter("lowrank", scale=0.5)))
    expected = x
    for i in range(2):
        fc = base.tree.get_submodule(f"layers.{i}.fc")
        edge = adapted.adapters["lowrank"].modules[f"layers.{i}.fc"]
        weight = fc.weight + 0.5 * edge.up @ edge.down
        expected = expected + nn.functional.silu(expected @ weight.T + fc.bias)
    torch.testing.assert_close(adapted.tree(x), base.tree.head(expected))


def test_rescaling_one_model_and_back_restores_its_output(base: Model, x: Tensor) -> None:
    adapted = randomised(base.adapt(inarch.adapter("lowrank")))
    full = adapted.tree(x)
    adapted.adapters["lowrank"].scale = 0.0
    assert torch.equal(adapted.tree(x), base.tree(x))
    adapted.adapters["lowrank"].scale = 1.0
    assert torch.equal(adapted.tree(x), full)


def test_an_edge_holds_its_scale_as_a_buffer_that_no_checkpoint_has(base: Model) -> None:
    adapted = base.adapt(inarch.adapter("lowrank", scale=0.25))
    [edge, *_] = adapted.adapters["lowrank"].edges
    assert isinstance(edge, Edge)
    assert edge.scale.item() == edge.strength == 0.25
    assert not [key for key in adapted.state_dict() if key.endswith("scale")]


def test_only_the_fresh_adapter_takes_gradients_and_moves_in_a_step(base: Model, x: Tensor) -> None:
    before = {k: v.clone() for k, v in base.state_dict().items()}
    adapted = base.adapt(inarch.adapter("lowrank"))
    trainable = [p for p in adapted.parameters() if p.requires_grad]
    assert {id(p) for p in trainable} == {
        id(p) for p in adapted.adapters["lowrank"].parameters().values()
    }
    optimizer = torch.optim.SGD(trainable, lr=0.1)
    adapted.tree(x).square().sum().backward()
    optimizer.step()
    assert all(torch.equal(base.state_dict()[k], v) for k, v in before.items())
    assert not torch.equal(adapted.tree(x), base.tree(x))


def test_training_one_adapter_leaves_the_other_frozen(base: Model) -> None:
    model = base.adapt(inarch.adapter("lowrank", name="a"), inarch.adapter("lowrank", name="b"))
    model.adapters["a"].trainable = False
    assert (model.adapters["a"].trainable, model.adapters["b"].trainable) == (False, True)
    assert not model.adapters["a"].modules["layers.0.fc"].training
    assert model.adapters["b"].modules["layers.0.fc"].training


def test_a_saved_adapter_loads_to_equal_outputs_and_frozen(
    base: Model, x: Tensor, tmp_path: Path
) -> None:
    adapted = randomised(base.adapt(inarch.adapter("lowrank", rank=3)))
    folder = adapted.save_adapter("lowrank", tmp_path / "saved")
    again = base.adapt(inarch.adapter("lowrank", weights=folder))
    assert torch.equal(again.tree(x), adapted.tree(x))
    assert not again.adapters["lowrank"].trainable


def test_merging_gives_a_new_value_and_leaves_the_base(base: Model, x: Tensor) -> None:
    before = {k: v.clone() for k, v in base.state_dict().items()}
    adapted = randomised(base.adapt(inarch.adapter("lowrank", scale=0.5)))
    heavier = adapted.merge("lowrank")
    torch.testing.assert_close(heavier.tree(x), adapted.tree(x), rtol=1e-5, atol=1e-6)
    assert heavier.adapters["lowrank"].merged
    assert not adapted.adapters["lowrank"].merged
    assert list(heavier.state_dict()) == list(before)
    assert torch.equal(heavier.merge().tree(x), heavier.tree(x))
    assert torch.equal(heavier.without("lowrank").tree(x), base.tree(x))
    assert all(torch.equal(base.state_dict()[k], v) for k, v in before.items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_hundred_merges_and_drops_change_no_bit_of_the_base(
    base: Model, x: Tensor, dtype: torch.dtype
) -> None:
    base.tree.to(dtype)
    before = {k: v.clone() for k, v in base.state_dict().items()}
    model = randomised(base.adapt(inarch.adapter("lowrank", scale=0.7)))
    expected, first = base.tree(x.to(dtype)), model.merge().tree(x.to(dtype))
    assert not torch.equal(first, expected)
    for _ in range(100):
        heavier = model.merge()
        assert torch.equal(heavier.tree(x.to(dtype)), first)
        dropped = heavier.without("lowrank")
        model = dropped.adapt(inarch.adapter("lowrank", scale=0.7))
        for name, parameter in model.adapter_parameters("lowrank").items():
            parameter.data.copy_(heavier.adapter_parameters("lowrank")[name])
        model.adapters["lowrank"].trainable = False
    assert torch.equal(dropped.tree(x.to(dtype)), expected)
    bits = {k: v.view(torch.uint8) for k, v in before.items()}
    assert all(torch.equal(v.view(torch.uint8), bits[k]) for k, v in base.state_dict().items())


def test_a_merge_is_rounded_once_from_float32(base: Model) -> None:
    base.tree.to(torch.bfloat16)
    model = randomised(base.adapt(inarch.adapter("lowrank", name="a"), inarch.adapter("lowrank")))
    merged_weight = model.merge().tree.get_submodule("layers.0.fc").weight
    whole = base.tree.get_submodule("layers.0.fc").weight.float()
    for name in ("a", "lowrank"):
        edge = model.adapters[name].modules["layers.0.fc"]
        whole = whole + edge.up.float() @ edge.down.float()
    assert torch.equal(merged_weight, whole.to(torch.bfloat16))


class Coded(torch.Tensor):
    """A weight that is no plain tensor, as torchao's quantised ones are."""


@pytest.mark.parametrize("kind", ["int8", "float8", "subclass", "buffer"])
def test_a_quantised_weight_is_not_merged_into(base: Model, kind: str) -> None:
    model = randomised(base.adapt("lowrank"))
    layer = base.tree.get_submodule("layers.1.fc")
    weight = layer.weight.detach()
    held = {
        "int8": (weight * 10).to(torch.int8),
        "float8": weight.to(torch.float8_e4m3fn),
        "subclass": weight.as_subclass(Coded),
        "buffer": (weight * 10).to(torch.int8),
    }[kind]
    del layer._parameters["weight"]
    if kind == "buffer":
        layer.register_buffer("weight", held)
    else:
        layer._parameters["weight"] = nn.Parameter(held, requires_grad=False)
    with pytest.raises(InarchError, match="can't be merged") as caught:
        model.merge()
    assert (caught.value.code, caught.value.where) == ("IA409", "layers.1.fc")
    assert "quantised" in caught.value.why


def test_a_delta_that_is_not_finite_is_not_merged(base: Model) -> None:
    adapted = randomised(base.adapt(inarch.adapter("lowrank")))
    adapted.adapters["lowrank"].modules["layers.1.fc"].up.data[0, 0] = float("nan")
    with pytest.raises(InarchError, match="can't be merged") as caught:
        adapted.merge()
    assert (caught.value.code, caught.value.where) == ("IA409", "layers.1.fc")


def test_what_half_precision_does_not_hold_is_not_merged(base: Model) -> None:
    base.tree.half()
    adapted = randomised(base.adapt(inarch.adapter("lowrank", scale=1e6)))
    with pytest.raises(InarchError, match="can't be merged") as caught:
        adapted.merge()
    assert caught.value.code == "IA409"
    assert "beyond what torch.float16 holds" in caught.value.why


def test_finite_numbers_whose_sum_is_not_are_merged(base: Model) -> None:
    layer = base.tree.get_submodule("layers.1.fc")
    layer.weight.data[0, :2] = torch.finfo(torch.float32).max
    merged_model = randomised(base.adapt("lowrank")).merge()
    assert merged_model.tree.get_submodule("layers.1.fc").weight.isfinite().all()


def test_an_edge_that_multiplies_says_what_merging_makes_of_weight_and_bias(
    base: Model, x: Tensor
) -> None:
    adapted = randomised(base.adapt(inarch.adapter("factor", scale=0.5)))
    heavier = adapted.merge()
    torch.testing.assert_close(heavier.tree(x), adapted.tree(x), rtol=1e-5, atol=1e-6)
    assert list(heavier.state_dict()) == list(base.state_dict())
    assert torch.equal(heavier.without("factor").tree(x), base.tree(x))


def test_factors_merge_to_the_same_bits_in_either_order(base: Model, x: Tensor) -> None:
    names = ("a", "ab", "lora")
    model = randomised(base.adapt(*(inarch.adapter("factor", name=n) for n in names)))
    first = model.merge()
    again = model._with([*reversed(model.adapters)]).merge()
    assert torch.equal(first.tree(x), again.tree(x))


def test_what_acts_on_an_adapter_that_stays_unmerged_is_not_merged_before_it(base: Model) -> None:
    [added] = base.adapt("lowrank").adapters
    [factor] = base.adapt("factor").merge().adapters
    with pytest.raises(InarchError, match="`factor` can't be merged") as caught:
        merged(base.pristine, [added, factor])
    assert (caught.value.code, caught.value.where) == ("IA409", "layers.0.fc")
    assert "acts on the add of `lowrank`" in caught.value.why
    merged(base.pristine, [factor, added])


def test_kinds_that_have_no_sum_and_several_kinds_are_not_combined(base: Model, x: Tensor) -> None:
    model = base.adapt("lowrank", inarch.adapter("factor", after="lowrank"))
    before = model.tree(x)
    for weights in ({"lowrank": 1.0, "factor": 1.0}, {"lowrank": 1.0}):
        with pytest.raises(InarchError) as caught:
            model.combine(weights)
        assert caught.value.code == "IA499"
    assert torch.equal(model.tree(x), before)


def test_addresses_of_a_model_of_several_trees_begin_with_the_tree(
    twin_trees: Model, x: Tensor
) -> None:
    adapted = randomised(twin_trees.adapt(inarch.adapter("lowrank", targets=["mlp.*", "left"])))
    assert set(adapted.adapters["lowrank"].modules) == {
        "left.fc",
        "right.layers.0.fc",
        "right.layers.1.fc",
    }
    assert not torch.equal(adapted.trees["left"](x), twin_trees.trees["left"](x))
    assert not torch.equal(adapted.trees["right"](x), twin_trees.trees["right"](x))
    assert "left.fc__lowrank.up" in adapted.state_dict()


def test_the_difference_from_the_base_shows_what_was_added(base: Model) -> None:
    text = base.adapt(inarch.adapter("lowrank", name="pirate")).diff(base)
    assert "+    fc__pirate = self.fc__pirate(x)" in text
    assert "layers.{0-1} x2" in text
    assert base.diff(base) == ""


def test_selecting_by_role_finds_its_sites(base: Model) -> None:
    assert base.select(role="mlp.*", count=2).addresses == ("layers.0.fc", "layers.1.fc")
    assert base.select("layers.*.fc").addresses == base.select(role="mlp.up").addresses
