"""What bottlenecks promise on their own: the papers' equations, no effect at first, a scale."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import inarch
from inarch_bottleneck.edges import ParallelBottleneck, SequentialBottleneck
from inarch_bottleneck.settings import ACTIVATIONS, Shape

KINDS = ("houlsby", "pfeiffer", "parallel")


def randomised(model: Any, seed: int = 0) -> Any:
    generator = torch.Generator().manual_seed(seed)
    for member in model.adapters:
        for parameter in member.parameters().values():
            noise = torch.randn(parameter.shape, generator=generator) * 0.3
            parameter.data.add_(noise.to(parameter.dtype))
    return model


def reference(model: Any, ids: Tensor, kind: str, scaling: float, strength: float) -> Tensor:
    """Each block by the paper's equation, from the base's own parts."""
    tree, member = model.pristine[""], model.adapters["b"]
    x = tree.model.embed_tokens(ids)
    cos, sin = tree.model.rotary_emb(x, torch.arange(ids.shape[1])[None])
    act = {"houlsby": F.silu, "pfeiffer": F.relu, "parallel": F.relu}[kind]
    for number, block in enumerate(tree.model.layers):
        for norm, part in (("input_layernorm", "self_attn"), ("post_attention_layernorm", "mlp")):
            given = block.get_submodule(norm)(x)
            more = {"cos": cos, "sin": sin, "mask": None} if part == "self_attn" else {}
            h = block.get_submodule(part)(given, **more)
            stands = {"self_attn": "after_attention", "mlp": "after_mlp"}[part]
            address = f"model.layers.{number}.{part if kind == 'houlsby' else stands}"
            total = x + h
            if address in member.modules:
                edge = member.modules[address]
                seen = {"houlsby": h, "pfeiffer": total, "parallel": x}[kind]
                hidden = act(seen @ edge.down_weight.T + edge.down_bias)
                total = total + strength * scaling * (hidden @ edge.up_weight.T + edge.up_bias)
            x = total
    return tree.lm_head(tree.model.norm(x))


@pytest.mark.parametrize("strength", [1.0, 0.4, 0.0])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("parts", [(True, True), (True, False), (None, None)])
def test_each_kind_is_its_paper_s_equation(
    llama: Any, ids: Tensor, kind: str, parts: tuple[Any, Any], strength: float
) -> None:
    options = {"kind": kind, "attention": parts[0], "mlp": parts[1], "reduction": 3}
    spec = inarch.adapter("bottleneck", name="b", scale=strength, **options)
    adapted = randomised(llama.adapt(spec))
    scaling = 4.0 if kind == "parallel" else 1.0
    expected = reference(adapted, ids, kind, scaling, strength)
    within = 1e-12 if llama.dtype == torch.float64 else 1e-5
    torch.testing.assert_close(adapted(ids), expected, rtol=within, atol=within)


@pytest.mark.parametrize("llama", ["float32"], indirect=True)
@pytest.mark.parametrize(
    "options",
    [
        {"kind": kind, "norm_before": before, "norm_after": after, "scaling": scaling}
        for kind, before, after, scaling in itertools.product(
            KINDS, (False, True), (False, True), (None, "learned", "channel")
        )
    ],
    ids=str,
)
def test_an_untrained_adapter_changes_no_bit(
    llama: Any, ids: Tensor, options: dict[str, Any]
) -> None:
    adapted = llama.adapt(inarch.adapter("bottleneck", name="a", **options))
    assert torch.equal(adapted(ids), llama(ids))
    assert not torch.equal(randomised(adapted)(ids), llama(ids))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gradients_are_those_of_finite_differences(activation: str) -> None:
    torch.manual_seed(0)
    for kind, scaling, whole in itertools.product(
        (SequentialBottleneck, ParallelBottleneck), (0.5, "channel"), (False, True)
    ):
        shape = Shape(activation, scaling, True, True, whole, 0.0, 0.0)
        edge = kind(4, 3, shape).double()
        edge.rescale(0.7)
        edge.reset_parameters()
        names = [name for name, _ in edge.named_parameters()]
        values = [(p + torch.randn_like(p) * 0.3).detach() for p in edge.parameters()]

        def run(x: Tensor, *given: Tensor, edge: Any = edge, names: Any = names) -> Tensor:
            return torch.func.functional_call(edge, dict(zip(names, given, strict=True)), (x,))

        inputs = [t.requires_grad_() for t in (torch.randn(2, 4).double(), *values)]
        assert torch.autograd.gradcheck(run, inputs)


def test_blocks_are_left_out_and_narrowed_by_their_number(llama: Any) -> None:
    adapted = llama.adapt(
        inarch.adapter("bottleneck", reduction={"1": 2.0, "default": 8}, attention=True)
    )
    widths = {
        address: module.down_weight.shape[0]
        for address, module in adapted.adapters["bottleneck"].modules.items()
    }
    assert {a.split(".")[2]: w for a, w in widths.items()} == {"0": 2, "1": 8}
    left = llama.adapt(inarch.adapter("bottleneck", leave_out=[0]))
    assert {a.split(".")[2] for a in left.adapters["bottleneck"].modules} == {"1"}


def test_dropout_and_stochastic_depth_act_in_training_only() -> None:
    torch.manual_seed(0)
    x = torch.randn(64, 3, 4)
    for shape in (
        Shape("relu", 1.0, False, False, False, 0.5, 0.0),
        Shape("relu", 1.0, False, False, False, 0.0, 0.5),
    ):
        edge = SequentialBottleneck(4, 2, shape)
        edge.reset_parameters()
        torch.nn.init.ones_(edge.up_bias)
        assert torch.equal(edge.eval()(x), x + 1)
        kept = (edge.train()(x) - x).round()
        assert set(kept.unique().tolist()) == {0.0, 2.0}
        rows = (kept == kept[:, :1, :1]).flatten(1).all(dim=1)
        assert bool(rows.all()) == (shape.depth > 0)


def test_a_step_of_training_moves_the_bottlenecks_and_nothing_else(llama: Any, ids: Tensor) -> None:
    before = {k: v.clone() for k, v in llama.state_dict().items()}
    adapted = llama.adapt(inarch.adapter("bottleneck", kind="houlsby"))
    parameters = adapted.adapter_parameters("bottleneck")
    optimizer = torch.optim.SGD(parameters.values(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        adapted(ids).square().mean().backward()
        optimizer.step()
    assert all(bool(p.grad.any()) for p in parameters.values())
    assert all(torch.equal(llama.state_dict()[k], v) for k, v in before.items())
