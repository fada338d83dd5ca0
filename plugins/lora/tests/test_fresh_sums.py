"""A LoRA is added in the memory of its layer's own output, where nobody else can see that."""

from __future__ import annotations

import copy
import threading
from typing import Any

import pytest
import torch
from test_joint import NAMES, filled, in_turn, inputs, stacked
from test_lora import linear_model
from torch import Tensor, nn

import inarch
from inarch.adapters import Model
from inarch.tree import Edit
from inarch_lora.edges import LinearLoRA

SHAPES = [(8,), (5, 8), (2, 5, 8), (1, 5, 8), (1, 1, 8), (0, 8), (2, 1, 3, 8)]
STACKS = {"one": ("a",), "several": NAMES}


@pytest.fixture(params=STACKS)
def model(request: pytest.FixtureRequest) -> Model:
    return stacked(*STACKS[request.param])


class Written(torch.utils._python_dispatch.TorchDispatchMode):
    """Counts operations that write into a given tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += bool(func._schema.is_mutable)
        return func(*args, **(kwargs or {}))


def written(model: Model, x: Tensor) -> int:
    model.tree(x)
    with Written() as seen:
        model.tree(x)
    return seen.count


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("shape", SHAPES[1:5])
def test_each_layer_s_output_is_written_into(
    model: Model, mode: Any, shape: tuple[int, ...]
) -> None:
    with mode():
        assert written(model, inputs(*shape)) == 3


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_it_is_what_the_terms_give_one_after_another(
    model: Model, shape: tuple[int, ...], dtype: torch.dtype, mode: Any
) -> None:
    model.tree.to(dtype)
    with mode():
        x = inputs(*shape).to(dtype)
        kept = x.clone()
        got, expected = model.tree(x), in_turn(model, x)
        assert torch.equal(x, kept)
    within = {torch.float64: 1e-12, torch.float32: 1e-5}.get(dtype, 0.1)
    torch.testing.assert_close(got, expected, rtol=within, atol=within)


@pytest.mark.parametrize("every", [False, True])
def test_a_hook_that_keeps_a_layer_s_output_has_the_base_s(model: Model, every: bool) -> None:
    kept: list[Tensor] = []

    def keep(module: nn.Module, _args: Any, output: Tensor) -> None:
        if module is model.tree.fc1:
            kept.append(output)

    register: Any = model.tree.fc1.register_forward_hook
    if every:
        register = nn.modules.module.register_module_forward_hook
    x = inputs()
    with torch.no_grad():
        expected = model.tree(x)
        handle = register(keep)
        try:
            torch.testing.assert_close(model.tree(x), expected)
        finally:
            handle.remove()
        before = in_turn_until(model, x)
        torch.testing.assert_close(kept[0], model.tree.fc1(before))


def in_turn_until(model: Model, x: Tensor) -> Tensor:
    """What comes into the second layer."""
    y = model.tree.fc0(x)
    for term in sorted(n for n in model.tree._modules if n.startswith("fc0__")):
        y = model.tree.get_submodule(term)(x, plus=y)
    return y


def test_a_forward_put_in_place_of_a_layer_s_own_keeps_what_it_gave(model: Model) -> None:
    kept: list[Tensor] = []
    own = model.tree.fc0.forward

    def forward(x: Tensor) -> Tensor:
        kept.append(own(x))
        return kept[-1]

    model.tree.fc0.forward = forward
    x = inputs()
    with torch.no_grad():
        model.tree(x)
        assert torch.equal(kept[0], own(x))


def test_a_tap_sees_the_base_s_value_beside_an_adapter() -> None:
    base, x = linear_model(), inputs()
    term = LinearLoRA((2, 8), (8, 2), 1.0)
    nn.init.normal_(term.lora_A)
    nn.init.normal_(term.lora_B)
    tree = base.tree.edit([Edit.tap("fc0", "seen", "t", export=True)])
    tree = tree.edit([Edit.add("fc0", term, "a")])
    with torch.no_grad():
        got, seen = tree(x)
        assert torch.equal(seen, base.tree.fc0(x))
        assert not torch.equal(got, base.tree(x))


def test_a_layer_that_gives_its_own_input_is_not_written_into() -> None:
    """As an Identity does that somebody put in place of a layer."""
    model, x = stacked("a"), inputs()
    model.tree._modules["fc0"] = nn.Identity()
    kept = x.clone()
    with torch.no_grad():
        model.tree(x)
    assert torch.equal(x, kept)


def test_two_threads_compute_with_one_model(model: Model) -> None:
    xs = [torch.randn(1, 64, 8) for _ in range(2)]
    expected = [in_turn(model, x) for x in xs]
    wrong: list[int] = []

    def run(number: int) -> None:
        with torch.inference_mode():
            for _ in range(200):
                got = model.tree(xs[number])
                if not torch.allclose(got, expected[number], rtol=1e-4, atol=1e-4):
                    wrong.append(number)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_gradients_flow_as_ever_through_what_does_not_learn(model: Model) -> None:
    with torch.no_grad():
        model.tree(inputs())
    x, other = inputs().requires_grad_(), inputs().requires_grad_()
    model.tree(x).square().sum().backward()
    in_turn(model, other).square().sum().backward()
    torch.testing.assert_close(x.grad, other.grad, rtol=1e-5, atol=1e-5)


def test_one_that_learns_has_the_gradients_of_its_own_call() -> None:
    model, x = stacked("a"), inputs()
    with torch.no_grad():
        model.tree(x)
    model.adapters["a"].trainable = True
    model.tree(x).square().sum().backward()
    got = [p.grad.clone() for p in model.adapter_parameters("a").values()]
    model.tree.zero_grad()
    in_turn(model, x).square().sum().backward()
    for gradient, parameter in zip(got, model.adapter_parameters("a").values(), strict=True):
        torch.testing.assert_close(gradient, parameter.grad)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast_casts_as_it_does_terms_apart(model: Model, dtype: torch.dtype) -> None:
    x = inputs(1, 5, 8)
    model.tree.to(dtype)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        got, expected = model.tree(x), in_turn(model, x)
    assert got.dtype == expected.dtype == torch.bfloat16
    torch.testing.assert_close(got, expected, rtol=0.1, atol=0.1)


def test_vmap_and_jacobians_are_those_of_terms_apart(model: Model) -> None:
    x = inputs(3, 8)
    with torch.no_grad():
        model.tree(x)
        torch.testing.assert_close(torch.vmap(model.tree)(x), in_turn(model, x))
    jacobian = torch.func.jacrev(model.tree)(x[0])
    expected = torch.func.jacrev(lambda row: in_turn(model, row))(x[0])
    torch.testing.assert_close(jacobian, expected)


def test_what_is_not_in_one_piece_is_added_to_all_the_same() -> None:
    layer = nn.Linear(8, 8)
    term = LinearLoRA((2, 8), (8, 2), 1.0)
    nn.init.normal_(term.lora_A)
    nn.init.normal_(term.lora_B)
    joint = LinearLoRA.joined([term], layer)
    x = inputs(4, 3, 8)
    with torch.no_grad():
        plus = layer(x).transpose(0, 1).contiguous().transpose(0, 1)
        expected = term(x, plus=plus.clone())
        assert not plus.is_contiguous()
        torch.testing.assert_close(joint(x, plus=plus), expected)


# One alone keeps views of its parameters, and nothing else


def _moved(model: Model) -> None:
    parameter = model.tree.fc1__a.lora_A
    parameter.data = torch.randn_like(parameter)


LONE: dict[str, Any] = {
    "a rescale": lambda m: setattr(m.adapters["a"], "scale", 0.3),
    "a write through data": lambda m: m.tree.fc1__a.lora_B.data.normal_(),
    "other data": _moved,
    "another parameter": lambda m: setattr(
        m.tree.fc0__a, "lora_A", nn.Parameter(torch.randn(8, 8), requires_grad=False)
    ),
    "a cast": lambda m: m.tree.double(),
}


@pytest.mark.parametrize("change", LONE)
def test_what_changes_is_seen(change: str) -> None:
    model, x = stacked("a"), inputs(1, 5, 8)
    with torch.no_grad():
        before = model.tree(x)
        LONE[change](model)
        x = x.to(model.tree.fc0.weight.dtype)
        got = model.tree(x)
        assert not torch.equal(got.float(), before)
        torch.testing.assert_close(got, in_turn(model, x), rtol=1e-5, atol=1e-5)


def test_one_alone_holds_no_memory_of_its_own() -> None:
    model = stacked("a")
    with torch.no_grad():
        model.tree(inputs(1, 5, 8))
    own = {p.untyped_storage()._cdata for p in model.parameters()}
    for name in ("fc0__a_", "fc1__a_", "fc2__a_"):
        seen = model.tree.__dict__[name].seen
        assert seen is not None
        assert {t.untyped_storage()._cdata for t in seen[-1]} <= own


def test_at_scale_nought_a_broken_adapter_is_not_there() -> None:
    base, x = linear_model(), inputs()
    model = stacked("a", base=base)
    with torch.no_grad():
        for parameter in model.adapter_parameters("a").values():
            parameter.fill_(float("nan"))
        model.adapters["a"].scale = 0.0
        assert torch.equal(model.tree(x), base.tree(x))


def test_a_hook_on_one_alone_is_called() -> None:
    model, x = stacked("a"), inputs()
    seen: list[Tensor] = []
    with torch.no_grad():
        expected = model.tree(x)
        handle = model.tree.fc1__a.register_forward_hook(lambda _m, _a, out: seen.append(out))
        torch.testing.assert_close(model.tree(x), expected)
        handle.remove()
    assert len(seen) == 1


def test_a_hook_of_all_modules_sees_each_term(model: Model) -> None:
    x, seen = inputs(), set()
    with torch.no_grad():
        expected = model.tree(x)
        handle = nn.modules.module.register_module_forward_hook(lambda m, _a, _o: seen.add(m))
        try:
            torch.testing.assert_close(model.tree(x), expected)
        finally:
            handle.remove()
    assert {m for m in model.tree.modules() if isinstance(m, LinearLoRA)} <= seen


def test_a_copy_keeps_nothing_of_its_original() -> None:
    model, x = stacked("a"), inputs()
    with torch.no_grad():
        expected = model.tree(x)
        again = copy.deepcopy(model.tree)
        for parameter in model.tree.parameters():
            parameter.zero_()
        assert torch.equal(again(x), expected)


@pytest.mark.parametrize(
    "layered", ["embedding", "transposed", "conv1d", "conv2d", "conv3d", "grouped"], indirect=True
)
@pytest.mark.parametrize("count", [1, 3])
def test_every_kind_of_layer(layered: Any, count: int) -> None:
    kind, _, ours, x = layered
    names = "abc"[:count]
    specs = (inarch.adapter("lora", name=name, targets=["layer"], rank=2) for name in names)
    model = filled(ours.adapt(*specs))
    with torch.no_grad():
        expected = model.tree.layer(x)
        for name in names:
            expected = model.tree.get_submodule(f"layer__{name}")(x, plus=expected)
        got = model.tree(x)
    torch.testing.assert_close(got, nn.functional.gelu(expected), rtol=1e-5, atol=1e-5)
    assert bool(model.tree.form.joints) == (kind != "grouped")
