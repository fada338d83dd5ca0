"""torch.compile: one compilation a structure, no graph break, adapted or not."""

from __future__ import annotations

import pytest
import torch
from small_trees import Factor, LowRank, inputs, language_model, linear, low_rank_edits, run
from torch._dynamo.testing import CompileCounter
from torch.utils.checkpoint import checkpoint

from inarch.tree import Chain, Edit, Let, Residual, Seq, Use


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


class Mix(torch.nn.Module):
    def forward(self, x, *, temb):
        return x + temb


def gated(x, *, temb):
    return torch.tanh(x * temb)


def layer(kind):
    """Twelve structures, some of which differ only below a nested Chain or in a constant."""
    return [
        lambda: Chain(a=linear()),
        lambda: Chain(a=linear(), act=torch.tanh),
        lambda: Chain(a=linear(), act=torch.sin),
        lambda: Chain(Residual(a=linear())),
        lambda: Chain(inner=Chain(a=linear())),
        lambda: Chain(inner=Chain(a=linear(), act=torch.tanh)),
        lambda: Chain(inner=Chain(a=linear(), act=torch.sin)),
        lambda: Chain(a=LowRank()),
        lambda: Chain(gated=gated),
        lambda: Chain(Let("twice", lambda x: x * 2), a=linear(), b=Use("twice")),
        lambda: Chain(inner=Chain(inner=Chain(a=linear()))),
        lambda: Chain(mix=Mix()),
    ][kind % 12]()


def test_twelve_structures_over_thirty_two_layers_compile_twelve_times():
    layers = [layer(i) for i in range(32)]
    assert len({chain.form for chain in layers}) == 12
    counter = CompileCounter()
    for chain in layers:
        chain.compile(backend=counter, fullgraph=True)
    x = torch.randn(2, 8, requires_grad=True)
    for chain in layers:
        x = chain(x, **({"temb": x} if chain.form.needs else {}))
    assert counter.frame_count == 12


def test_sixteen_different_lora_layouts_compile_sixteen_times_each_block_alone():
    tree = language_model(16)
    pairs = [f"{a}_proj" for a in "qkvo"]
    edits = [
        Edit.add(f"model.layers.{i}.self_attn.{name}", LowRank(), "a")
        for i in range(16)
        for bit, name in enumerate(pairs)
        if i >> bit & 1
    ]
    tree = tree.edit(edits)
    counter = CompileCounter()
    expected = run(tree)
    for block in list(tree.model.layers):
        block.compile(backend=counter, fullgraph=True)
    assert torch.allclose(run(tree), expected)
    assert counter.frame_count == 16


def test_blocks_of_twenty_widths_compile_within_the_budget():
    chains = [Chain(a=linear(8, 8 + i), act=torch.tanh) for i in range(20)]
    counter = CompileCounter()
    for chain in chains:
        chain.compile(backend=counter, fullgraph=True)
        chain(torch.randn(2, 8))
    assert counter.frame_count == 20


def test_low_rank_terms_of_twelve_ranks_compile_within_the_budget():
    chains = [Chain(a=linear()).edit([Edit.add("a", LowRank(rank=i + 1), "p")]) for i in range(12)]
    counter = CompileCounter()
    for chain in chains:
        chain.compile(backend=counter, fullgraph=True)
        chain(torch.randn(2, 8))
    assert counter.frame_count == 12


def test_a_step_that_breaks_the_graph_still_gives_the_same_values():
    def broken(x):
        torch._dynamo.graph_break()
        return x + 1

    tree = Chain(inner=Chain(a=linear(), broken=broken, b=linear()), last=linear())
    x = torch.randn(2, 8)
    assert torch.allclose(torch.compile(tree, backend="eager")(x), tree(x))


@pytest.mark.parametrize("adapted", [False, True])
def test_a_whole_model_compiles_without_a_graph_break(adapted):
    tree = language_model(3)
    if adapted:
        tree = tree.edit(
            [
                *low_rank_edits(tree, "a"),
                *low_rank_edits(tree, "b", "model.layers.*.mlp.down_proj")[:0],
                *(Edit.scale(f"model.layers.{i}.mlp.up_proj", Factor(16), "c") for i in range(3)),
                Edit.tap("model.layers.1", "hidden", "d", export=True),
            ]
        )
    counter = CompileCounter()
    compiled = torch.compile(tree, backend=counter, fullgraph=True)
    got, expected = run(compiled), run(tree)
    for one, other in zip(got, expected, strict=True):
        assert torch.allclose(one, other)
    assert counter.frame_count == 1


def test_gradients_of_a_compiled_tree_equal_eager_ones():
    tree = language_model(2)
    run(tree).sum().backward()
    eager = {n: p.grad.clone() for n, p in tree.named_parameters()}
    tree.zero_grad()
    run(torch.compile(tree, backend="aot_eager", fullgraph=True)).sum().backward()
    for name, parameter in tree.named_parameters():
        assert torch.allclose(parameter.grad, eager[name], atol=1e-6), name


def checkpointed(tree):
    """Every block of the model recomputed in the backward pass."""
    for block in list(tree.model.layers):
        forward = block.forward

        def recomputed(*args, forward=forward, **named):
            return checkpoint(forward, *args, use_reentrant=False, **named)

        block.forward = recomputed
    return tree


def with_let_values():
    """Blocks that bind, use and export values, beside those that come down from above."""

    def conditioned(x, *, temb, skip):
        return torch.tanh(x * temb + skip)

    def block(i):
        return Chain(
            Let("skip", ("norm", torch.nn.LayerNorm(8))),
            inner=Chain(Seq(a=linear(), act=conditioned)),
        )

    return Chain(
        model=Chain(
            Let("temb", ("time", linear())),
            layers=Chain(*(block(i) for i in range(3))),
            last=Use("temb"),
            head=linear(),
        )
    )


def plain_gradients(tree, args, named):
    tree.zero_grad()
    value = tree(*args, **named)
    value.square().sum().backward()
    return value, {n: p.grad.clone() for n, p in tree.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("adapted", [False, True])
@pytest.mark.parametrize("kind", ["language", "let"])
def test_checkpointed_blocks_give_equal_gradients(kind, adapted):
    if kind == "language":
        tree, (args, named) = language_model(3), inputs()
        pattern = "model.layers.*.self_attn.q_proj"
    else:
        tree, args, named = with_let_values(), (torch.randn(2, 8),), {}
        pattern = "model.layers.*.inner.a"
    if adapted:
        tree = tree.edit(low_rank_edits(tree, "a", pattern))
    value, expected = plain_gradients(tree, args, named)
    again, got = plain_gradients(checkpointed(tree), args, named)
    assert torch.equal(value, again)
    assert expected.keys() == got.keys()
    assert all(torch.equal(expected[name], got[name]) for name in expected)
