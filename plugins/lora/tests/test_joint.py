"""Several LoRAs at one site run as one of rank sum, and nobody can tell but by the clock."""

from __future__ import annotations

import copy
import itertools
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_lora import Operations, linear_model
from torch import Tensor, nn

import inarch
from inarch.adapters import Model
from inarch.adapters.graft import draft_of
from inarch.resolve.proof import prove
from inarch.tree import Chain
from inarch_lora.edges import ConvLoRA, LinearLoRA

SIZE = 8
NAMES = ("a", "ab", "b", "lora")


def filled(model: Model, *, trainable: bool = False) -> Model:
    """The same model with all its adapters drawn anew, each by its name."""
    for member in model.adapters:
        generator = torch.Generator().manual_seed(sum(map(ord, member.name)))
        with torch.no_grad():
            for parameter in member.parameters().values():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
        member.trainable = trainable
    return model


def stacked(*names: str, base: Model | None = None, **options: Any) -> Model:
    specs = [inarch.adapter("lora", name=name, **options) for name in names or NAMES]
    return filled((base or linear_model()).adapt(*specs))


def in_turn(model: Model, x: Tensor) -> Tensor:
    """What the model gives where every term is a call of its own, as the interpreter makes them."""
    for name, layer in model.tree.named_children():
        if "__" not in name:
            y = layer(x)
            for term in sorted(n for n in model.tree._modules if n.startswith(f"{name}__")):
                y = model.tree.get_submodule(term)(x, plus=y)
            x = y
    return x


def write(parameter: Any) -> None:
    with torch.no_grad():
        parameter.normal_()


def inputs(*shape: int) -> Tensor:
    return torch.randn(*shape or (2, 5, SIZE), generator=torch.Generator().manual_seed(7))


def test_the_source_says_which_run_together() -> None:
    assert "fc0 = self.fc0__a__ab__b__lora_(x, plus=fc0)" in stacked().tree.source


@pytest.mark.parametrize("count", [1, 2, 8])
def test_any_number_costs_two_operations_a_layer(count: int) -> None:
    base, x = linear_model(), inputs()
    model = stacked(*(f"a{i}" for i in range(count)), base=base)
    with torch.no_grad():
        model.tree(x)
        with Operations() as operations:
            model.tree(x)
        with Operations() as plain:
            base.tree(x)
    assert sum((operations.count - plain.count).values()) == 2 * 3


@pytest.mark.parametrize("shape", [(SIZE,), (5, SIZE), (2, 5, SIZE), (1, 1, SIZE), (0, SIZE)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_it_is_what_the_terms_give_one_after_another(
    shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    model = stacked()
    for number, member in enumerate(model.adapters):
        member.scale = (0.7, -1.3, 2.0, 0.1)[number]
    model.tree.to(dtype)
    x = inputs(*shape).to(dtype)
    with torch.no_grad():
        got, apart = model.tree(x), in_turn(model, x)
        model.tree.double()
        exact = in_turn(model, x.double())
    assert got.dtype == dtype
    if dtype == torch.bfloat16:  # no further from the equation than the terms apart
        assert (got - exact).norm() <= 1.5 * (apart - exact).norm()
    else:
        within = 1e-12 if dtype == torch.float64 else 1e-5
        torch.testing.assert_close(got.double(), exact, rtol=within, atol=within)


@pytest.mark.parametrize(
    "layered", ["embedding", "transposed", "conv1d", "conv2d", "conv3d"], indirect=True
)
def test_every_kind_of_layer(layered: Any) -> None:
    _, _, ours, x = layered
    specs = (
        inarch.adapter("lora", name=name, targets=["layer"], rank=rank)
        for name, rank in (("a", 2), ("b", 3), ("c", 1))
    )
    model = filled(ours.adapt(*specs))
    layer = model.tree.get_submodule("layer")(x)
    expected = layer + sum(model.tree.get_submodule(f"layer__{name}")(x) for name in "abc")
    with torch.no_grad():
        got = model.tree.__dict__["layer__a__b__c_"](x, plus=layer)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


def test_a_grouped_convolution_s_terms_run_alone() -> None:
    conv = nn.Conv2d(4, 6, 3, groups=2)
    assert ConvLoRA(conv, (2, 4, 3, 3), (6, 1, 1, 1), 2.0).joins is None


def test_terms_of_other_forms_run_alone() -> None:
    base = linear_model()
    model = base.adapt(
        inarch.adapter("lora", name="a"),
        inarch.adapter("lora", name="b", use_dora=True),
        inarch.adapter("lora", name="c", algorithm="loha"),
        inarch.adapter("lora", name="d"),
        inarch.adapter("lora", name="e", start="pissa"),
    )
    assert [joint.terms for joint in model.tree.form.joints] == [
        (f"fc{i}__a", f"fc{i}__d") for i in range(3)
    ]


@settings(deadline=None, max_examples=60)
@given(
    ranks=st.lists(st.integers(1, 5), min_size=2, max_size=6),
    data=st.data(),
)
def test_the_joint_term_is_the_sum_of_the_equations(ranks: list[int], data: st.DataObject) -> None:
    torch.manual_seed(data.draw(st.integers(0, 10_000)))
    strength = st.sampled_from([0.0, 1.0, -0.5, 1e-3, 100.0])
    terms = []
    for rank in ranks:
        term = LinearLoRA((rank, 4), (3, rank), data.draw(st.sampled_from([2.0, 0.5])))
        term.double().requires_grad_(False)
        with torch.no_grad():
            for parameter in term.parameters():
                parameter.normal_()
        term.rescale(data.draw(strength))
        terms.append(term)
    joint = LinearLoRA.joined(terms, None)
    x, plus = torch.randn(2, 4).double(), torch.randn(2, 3).double()
    for _ in range(2):
        expected = plus + sum(t.strength * t.scaling * x @ t.lora_A.T @ t.lora_B.T for t in terms)
        torch.testing.assert_close(joint(x, plus=plus), expected)
        data.draw(st.sampled_from(terms)).rescale(data.draw(strength))


# Each its own


def test_permutations_give_the_same_bits() -> None:
    base, x = linear_model(), inputs()
    specs = {n: inarch.adapter("lora", name=n, rank=i + 1) for i, n in enumerate("abc")}
    found = []
    for order in itertools.permutations("abc"):
        with torch.no_grad():
            found.append(filled(base.adapt(*(specs[n] for n in order))).tree(x))
    assert all(torch.equal(one, found[0]) for one in found)


def test_without_one_it_is_what_never_having_it_gives() -> None:
    base, x = linear_model(), inputs()
    model, never = stacked("a", "b", "c", base=base), stacked("a", "c", base=base)
    with torch.no_grad():
        model.tree(x)
        assert torch.equal(model.without("b").tree(x), never.tree(x))
        alone = stacked("a", base=base)
        assert torch.equal(model.without("b", "c").tree(x), alone.tree(x))
        assert torch.equal(model.without("a", "b", "c").tree(x), base.tree(x))


def test_an_adapter_in_two_stacks_is_seen_in_both_when_it_changes() -> None:
    base, x = linear_model(), inputs()
    one = stacked("a", "b", base=base)
    two = filled(one.adapt(inarch.adapter("lora", name="c")))
    with torch.no_grad():
        for model in (one, two):
            model.tree(x)
        write(one.tree.fc0__a.lora_A)
        one.adapters["b"].scale = 0.2
        for model in (one, two):
            torch.testing.assert_close(model.tree(x), in_turn(model, x), rtol=1e-5, atol=1e-5)


def test_names_and_digest_are_those_of_adapters_apart(tmp_path: Path) -> None:
    base = linear_model()
    model = stacked("a", "b", base=base)
    assert set(model.state_dict()) == {
        *base.state_dict(),
        *(f"fc{i}__{n}.lora_{p}" for i in range(3) for n in "ab" for p in "AB"),
    }
    assert len(list(model.parameters())) == len(list(base.parameters())) + 2 * 2 * 3
    assert "fc0__a__b" not in repr(model)


@pytest.mark.parametrize("learning", [("a",), ("b", "lora"), NAMES])
def test_gradients_are_those_of_terms_apart(learning: tuple[str, ...]) -> None:
    model = stacked()
    model.tree.double()
    for name in learning:
        model.adapters[name].trainable = True
    x = inputs().double().requires_grad_()
    model.tree(x).square().sum().backward()
    got = {n: p.grad.clone() for n, p in model.tree.named_parameters() if p.grad is not None}
    own, x.grad = x.grad, None
    model.tree.zero_grad()
    in_turn(model, x).square().sum().backward()
    assert {n.partition(".")[0].partition("__")[2] for n in got} == set(learning)
    for name, gradient in got.items():
        torch.testing.assert_close(gradient, model.tree.get_parameter(name).grad)
    torch.testing.assert_close(own, x.grad)


def test_trained_side_by_side_each_is_saved_alone(tmp_path: Path) -> None:
    base, x = linear_model(), inputs()
    model = stacked("a", "b", base=base)
    for member in model.adapters:
        member.trainable = True
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.05)
    for _ in range(3):
        optimiser.zero_grad()
        (model.tree(x) - 1).square().mean().backward()
        optimiser.step()
    for member in model.adapters:
        member.trainable = False
    specs = [
        inarch.adapter("lora", weights=model.save_adapter(n, tmp_path / n), name=n) for n in "ab"
    ]
    with torch.no_grad():
        assert torch.equal(base.adapt(*specs).tree(x), model.tree(x))
        for spec in specs:
            gone = "b" if spec.name == "a" else "a"
            assert torch.equal(base.adapt(spec).tree(x), model.without(gone).tree(x))


def test_dropout_acts_on_each_in_training() -> None:
    model, x = stacked("a", "b", dropout=0.5), inputs()
    with torch.no_grad():
        model.tree(x)
        model.adapters["a"].trainable = True
        assert not torch.equal(model.tree(x), model.tree(x))
        model.adapters["a"].trainable = False
        assert torch.equal(model.tree(x), model.tree(x))


def test_a_hook_on_one_of_them_is_called() -> None:
    model, x = stacked("a", "b"), inputs()
    seen: list[Tensor] = []
    with torch.no_grad():
        expected = model.tree(x)
        handle = model.tree.fc1__b.register_forward_hook(lambda _m, _a, out: seen.append(out))
        torch.testing.assert_close(model.tree(x), expected)
        handle.remove()
        assert torch.equal(model.tree(x), expected)
    assert len(seen) == 1


@pytest.mark.parametrize("how", ["pickled", "copied"])
def test_a_copy_keeps_nothing_of_its_original(how: str) -> None:
    model, x = stacked(), inputs()
    with torch.no_grad():
        expected = model.tree(x)
        tree = model.tree
        again: Chain = pickle.loads(pickle.dumps(tree)) if how == "pickled" else copy.deepcopy(tree)
        for parameter in tree.parameters():
            parameter.zero_()
        assert torch.equal(again(x), expected)
        assert again.__dict__["fc0__a__ab__b__lora_"].terms[0] is again.get_submodule("fc0__a")


def test_the_meta_device_computes_shapes() -> None:
    model = stacked()
    model.tree.to("meta")
    assert model.tree(inputs().to("meta")).shape == (2, 5, SIZE)


def test_a_plan_counts_two_operations_and_the_bytes_of_the_copy(llamas: tuple[Any, Any]) -> None:
    _, ours = llamas
    specs = [inarch.adapter("lora", name=name, rank=512) for name in "abc"]
    drafts = [draft_of(spec, ours) for spec in specs]
    sites = len(drafts[0].edits)
    proof, problems = prove(ours, drafts, ["a", "b", "c"])
    assert not problems
    copied = sum(proof.adapter_bytes.values())
    for run in proof.runs:
        assert run.operations - run.operations_before == 2 * sites
        assert run.activations > copied


# Compiled


def test_compiled_another_scale_compiles_nothing_and_gradients_are_each_one_s() -> None:
    from torch._dynamo.testing import CompileCounterWithBackend

    model, x = stacked("a", "b", "c"), inputs()
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled: Any = torch.compile(model.tree, backend=counter, fullgraph=True)
    with torch.no_grad():
        for scale in (1.0, 0.5, 0.0, -2.0):
            model.adapters["b"].scale = scale
            torch.testing.assert_close(compiled(x), model.tree(x), rtol=1e-5, atol=1e-5)
        write(model.tree.fc0__a.lora_A)
        torch.testing.assert_close(compiled(x), model.tree(x), rtol=1e-5, atol=1e-5)
    assert counter.frame_count == 1
    model.adapters["b"].trainable = True
    compiled(x).square().sum().backward()
    got = {n: p.grad.clone() for n, p in model.adapter_parameters("b").items()}
    model.tree.zero_grad()
    model.tree(x).square().sum().backward()
    for name, parameter in model.adapter_parameters("b").items():
        torch.testing.assert_close(got[name], parameter.grad, rtol=1e-4, atol=1e-5)
    torch._dynamo.reset()


def test_compiled_in_bfloat16_it_keeps_the_dtype() -> None:
    model, x = stacked("a", "b"), inputs().bfloat16()
    model.tree.to(torch.bfloat16)
    torch._dynamo.reset()
    compiled: Any = torch.compile(model.tree, backend="eager", fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), model.tree(x), rtol=0.06, atol=0.06)
    torch._dynamo.reset()
