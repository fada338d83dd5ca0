"""What LoRA promises on its own: no effect at first, two operations, and gradients by the book."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import inarch
from inarch.adapters import Model
from inarch.tree import Chain
from inarch_lora.edges import ConvLoRA, EmbeddingLoRA, LinearLoRA

_VIEWS = ("view", "_unsafe_view", "t", "transpose", "alias", "expand", "detach", "unsqueeze")


class Operations(TorchDispatchMode):
    """Counts what is computed, views left out."""

    def __init__(self) -> None:
        super().__init__()
        self.count: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name not in _VIEWS:
            self.count[name] += 1
        return func(*args, **(kwargs or {}))


def counted(model: Model, x: Tensor) -> Counter[str]:
    with Operations() as operations, torch.no_grad():
        model.tree(x)
    return operations.count


def linear_model(layers: int = 3) -> Model:
    torch.manual_seed(0)
    chain = Chain(**{f"fc{i}": nn.Linear(8, 8) for i in range(layers)})
    return Model(
        {"": chain.requires_grad_(False).eval()}, roles={"mlp.up": "*", "attention.query": "*"}
    )


@pytest.mark.parametrize("shape", [(5, 8), (2, 5, 8), (1, 1, 8)])
def test_an_unmerged_adapter_costs_two_operations_a_layer(shape: tuple[int, ...]) -> None:
    base = linear_model()
    adapted = base.adapt(inarch.adapter("lora", scale=0.5))
    x = torch.randn(shape)
    added = counted(adapted, x) - counted(base, x)
    assert sum(added.values()) == 2 * 3


def test_an_untrained_adapter_is_a_bitwise_no_op(layered: tuple[Any, ...]) -> None:
    _, _, ours, x = layered
    adapted = ours.adapt(inarch.adapter("lora", targets=["layer"], rank=4))
    assert torch.equal(adapted.tree(x), ours.tree(x))


def test_the_same_seed_initialises_the_same_bits(llamas: tuple[Any, Any]) -> None:
    _, ours = llamas
    drawn = []
    for _ in range(2):
        torch.manual_seed(5)
        drawn.append(ours.adapt("lora").adapter_parameters("lora"))
    assert all(torch.equal(drawn[0][name], drawn[1][name]) for name in drawn[0])


def test_dropout_acts_in_training_only() -> None:
    adapted = linear_model().adapt(inarch.adapter("lora", dropout=0.5))
    for parameter in adapted.adapter_parameters("lora").values():
        parameter.data.normal_()
    x = torch.randn(4, 8)
    assert not torch.equal(adapted.tree(x), adapted.tree(x))
    adapted.adapters["lora"].trainable = False
    assert torch.equal(adapted.tree(x), adapted.tree(x))


def test_rescaling_recompiles_nothing() -> None:
    from torch._dynamo.testing import CompileCounter

    adapted = linear_model().adapt("lora")
    for parameter in adapted.adapter_parameters("lora").values():
        parameter.data.normal_()
    adapted.adapters["lora"].trainable = False
    counter = CompileCounter()
    torch._dynamo.reset()
    compiled = torch.compile(adapted.tree, backend=counter, fullgraph=True)
    x = torch.randn(4, 8)
    for scale in (1.0, 0.5, 0.0, -2.0):
        adapted.adapters["lora"].scale = scale
        torch.testing.assert_close(compiled(x), adapted.tree(x), rtol=1e-5, atol=1e-5)
    assert counter.frame_count == 1


@settings(deadline=None, max_examples=40)
@given(
    rank=st.integers(1, 5),
    scaling=st.floats(-2, 2),
    strength=st.floats(-2, 2),
    width=st.integers(1, 6),
    data=st.data(),
)
def test_the_term_is_the_equation(
    rank: int, scaling: float, strength: float, width: int, data: st.DataObject
) -> None:
    torch.manual_seed(data.draw(st.integers(0, 10_000)))
    edge = LinearLoRA((rank, width), (3, rank), scaling).double()
    for parameter in edge.parameters():
        parameter.data.normal_()
    edge.rescale(strength)
    x, plus = torch.randn(2, 4, width).double(), torch.randn(2, 4, 3).double()
    expected = plus + strength * scaling * x @ edge.lora_A.T @ edge.lora_B.T
    torch.testing.assert_close(edge(x, plus=plus), expected)
    torch.testing.assert_close(plus + edge(x), expected)


def edges() -> list[tuple[Any, Tensor, Tensor]]:
    conv = nn.Conv2d(4, 6, 3, groups=2)
    return [
        (LinearLoRA((2, 4), (3, 2), 0.5), torch.randn(2, 4), torch.randn(2, 3)),
        (
            LinearLoRA((2, 4), (3, 2), 0.5, outputs=3, lora_bias=True, bias=True),
            torch.randn(2, 4),
            torch.randn(2, 3),
        ),
        (ConvLoRA(conv, (2, 4, 3, 3), (6, 1, 1, 1), 2.0), torch.randn(1, 4, 5, 5), torch.ones(1)),
    ]


@pytest.mark.parametrize("which", range(3))
def test_gradients_are_those_of_finite_differences(which: int) -> None:
    torch.manual_seed(0)
    edge, x, plus = edges()[which]
    edge = edge.double()
    for parameter in edge.parameters():
        parameter.data.normal_()
    names = [name for name, _ in edge.named_parameters()]

    def run(x: Tensor, plus: Tensor, *values: Tensor) -> Tensor:
        state = dict(zip(names, values, strict=True))
        return torch.func.functional_call(edge, state, (x,), {"plus": plus})

    plus = plus.double().expand_as(edge(x.double())).contiguous()
    inputs = [x.double(), plus, *(p.detach() for p in edge.parameters())]
    assert torch.autograd.gradcheck(run, [i.requires_grad_() for i in inputs])


def test_gradients_of_an_embedding_are_those_of_finite_differences() -> None:
    torch.manual_seed(0)
    edge = EmbeddingLoRA((2, 5), (3, 2), 0.5).double()
    ids = torch.tensor([[0, 4, 4]])

    def run(a: Tensor, b: Tensor) -> Tensor:
        return torch.func.functional_call(
            edge, {"lora_embedding_A": a, "lora_embedding_B": b}, (ids,)
        )

    values = [
        torch.randn_like(p, dtype=torch.double, requires_grad=True) for p in edge.parameters()
    ]
    assert torch.autograd.gradcheck(run, values)
