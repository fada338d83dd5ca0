"""Whatever is stacked, in whatever order, rescaled, merged and dropped: the sum the papers write.

The oracle knows nothing of edits: it takes the base's weights W, makes W + sum of s_i alpha_i / r_i
B_i A_i of them, times (IA)^3's factors, and runs the base's own tree with those.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

import inarch
from inarch.testing import Bystander, tiny_models
from inarch.testing.subject import inputs_of

ROLES = ["attention.query", "attention.key", "attention.value", "attention.output", "mlp.*"]
NAMES = ["a", "ab", "lora", "weight", "z"]


@dataclass
class Stack:
    """What was done, as numbers: the oracle's state beside the model's."""

    model: Any
    scales: dict[str, float] = field(default_factory=dict)
    terms: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    factors: dict[str, tuple[Tensor, bool]] = field(default_factory=dict)
    merged: bool = False

    def weights(self, base: Any) -> dict[str, Tensor]:
        state = {name: value.clone() for name, value in base.tree.state_dict().items()}
        for name, terms in self.terms.items():
            for address, product in terms.items():
                state[f"{address}.weight"] += self.scales[name] * product
        for address, (factor, outputs) in self.factors.items():
            factor = 1.0 + self.scales["ia3"] * (factor - 1.0)
            state[f"{address}.weight"] *= factor[:, None] if outputs else factor
        return state


def lora(data: st.DataObject, stack: Stack, name: str) -> None:
    rank, alpha = data.draw(st.integers(1, 3)), data.draw(st.sampled_from([1.0, 2.0, 5.0]))
    targets = data.draw(st.lists(st.sampled_from(ROLES), min_size=1, unique=True))
    scale = data.draw(st.sampled_from([1.0, 0.5, -2.0]))
    spec = inarch.adapter("lora", name=name, rank=rank, alpha=alpha, targets=targets, scale=scale)
    stack.model = stack.model.adapt(spec)
    stack.scales[name], stack.terms[name] = scale, {}
    generator = torch.Generator().manual_seed(len(stack.terms) + 10 * rank)
    for address, edge in stack.model.adapters[name].modules.items():
        for parameter in edge.parameters():
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
        product = edge.lora_B.detach() @ edge.lora_A.detach()
        stack.terms[name][address] = product * (alpha / rank)


def ia3(stack: Stack) -> None:
    stack.model = stack.model.adapt("ia3")
    stack.scales["ia3"] = 1.0
    generator = torch.Generator().manual_seed(5)
    for name, parameter in stack.model.adapter_parameters("ia3").items():
        parameter.data.copy_(1 + 0.3 * torch.randn(parameter.shape, generator=generator))
        address = name.rpartition(".")[0]
        stack.factors[address] = (parameter.detach().flatten(), not address.endswith("down_proj"))


def act(data: st.DataObject, stack: Stack) -> None:
    name = data.draw(st.sampled_from([*NAMES, "ia3"]))
    if name not in stack.scales:
        ia3(stack) if name == "ia3" else lora(data, stack, name)
    elif data.draw(st.booleans()):
        stack.model = stack.model.without(name)
        del stack.scales[name]
        stack.factors = {} if name == "ia3" else stack.factors
        stack.terms.pop(name, None)
    else:
        stack.scales[name] = data.draw(st.sampled_from([0.0, 1.0, 0.25, -1.0]))
        stack.model.adapters[name].scale = stack.scales[name]


@settings(
    max_examples=30,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(data=st.data())
def test_any_stack_is_the_sum_the_papers_write(data: st.DataObject) -> None:
    base: Any = next(iter(tiny_models(families=("llama",)))).build(dtype=torch.float64)
    bystander = Bystander(base)
    stack = Stack(base)
    for _ in range(data.draw(st.integers(1, 7))):
        act(data, stack)
    model, exact = stack.model, 1e-9
    if data.draw(st.booleans()) and stack.scales:
        model, exact = model.merge(), 1e-4  # merging adds in float32
    state = stack.weights(base)
    for tree, inputs in inputs_of(base):
        expected = torch.func.functional_call(base.trees[tree], state, kwargs=inputs)
        actual = model.trees[tree](**inputs)
        largest = max(1.0, float(expected.abs().max()))
        torch.testing.assert_close(actual, expected, rtol=exact, atol=exact * largest)
    bystander.check()
