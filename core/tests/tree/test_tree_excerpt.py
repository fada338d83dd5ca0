"""A part of a tree as a new tree, and constant inputs taken out of a loop."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from inarch.errors import InarchError
from inarch.tree import Chain, Edit, Export, Identity, Let, Parallel, Seq, Use
from inarch.tree.excerpt import excerpt, structure
from inarch.tree.hoist import hoist


def encoder() -> Chain:
    torch.manual_seed(0)
    tree = Chain(
        ("first", nn.Linear(4, 4)),
        Let("skip_0"),
        ("blocks.0", Chain(("inner", nn.Linear(4, 4)), Export("skip_1"))),
        ("mid", nn.Linear(4, 4)),
        ("last", nn.Linear(4, 4)),
        takes="latents",
        inputs=(),
        keeps=("skip_1",),
    )
    return tree.requires_grad_(False).eval()


class Counted(nn.Module):
    """Counts how often it runs."""

    def __init__(self) -> None:
        super().__init__()
        self.runs = 0

    def forward(self, x: Tensor) -> Tensor:
        self.runs += 1
        return x * 2


def test_an_excerpt_has_the_steps_up_to_a_site_and_no_weights_of_its_own() -> None:
    tree = encoder()
    part = excerpt(tree, "mid", Parallel(("out", nn.Linear(4, 2)), Use("skip_0"), Use("skip_1")))
    assert all(p.is_meta for p in part.blocks.parameters())
    names = {n for n, _ in tree.named_parameters() if not n.startswith("last")}
    assert {n for n, _ in part.named_parameters()} == names | {"out.weight", "out.bias"}
    part.to_empty(device="cpu").load_state_dict(
        {n: p for n, p in tree.state_dict().items() if n in names}
        | {"out.weight": torch.eye(4)[:2], "out.bias": torch.zeros(2)}
    )
    x = torch.randn(3, 4)
    out, skip_0, skip_1 = part(x)
    assert torch.equal(skip_0, tree.first(x))
    assert torch.equal(skip_1, tree.blocks[0].inner(tree.first(x)))
    assert torch.allclose(out, tree.mid(skip_1)[:, :2])


def test_an_excerpt_leaves_the_tree_as_it_was() -> None:
    tree = encoder()
    before, x = {n: id(m) for n, m in tree.named_modules()}, torch.randn(2, 4)
    expected = tree(x)
    excerpt(tree, "mid")
    assert before == {n: id(m) for n, m in tree.named_modules()}
    assert torch.equal(tree(x), expected)


def test_an_excerpt_shares_the_code_of_the_chains_it_copies() -> None:
    tree = encoder()
    assert excerpt(tree, "mid").blocks[0].form is tree.blocks[0].form


def test_an_excerpt_up_to_nothing_is_refused() -> None:
    with pytest.raises(InarchError) as raised:
        excerpt(encoder(), "middle")
    assert raised.value.code == "IA110"


def test_a_copied_structure_keeps_ties_and_the_values_no_checkpoint_holds() -> None:
    tree = Chain(a=nn.Linear(4, 4, bias=False), b=nn.Linear(4, 4, bias=False))
    tree.tie("b.weight", "a.weight")
    tree.a.register_buffer("table", torch.arange(3), persistent=False)
    copied = structure(tree)
    assert copied.a.weight is copied.b.weight
    assert copied.a.weight is not tree.a.weight
    assert torch.equal(copied.a.table, torch.arange(3))


def provided(name: str, make: Callable[[], nn.Module]) -> list[Edit]:
    """An embedding of an image, and what a tower makes of it and of the main value."""
    image = Edit(
        address="",
        kind="provide",
        adapter=name,
        names=(f"{name}_hint",),
        step=Seq(Use(f"{name}_image"), make()),
        inputs=(f"{name}_image",),
        label="hint",
    )
    tower = Edit(
        address="",
        kind="provide",
        adapter=name,
        names=(f"{name}_0",),
        step=Chain(("first", nn.Linear(4, 4)), Parallel(Identity(), Use(f"{name}_hint")), plus),
        label="tower",
    )
    return [image, tower, Edit.add("mid", Use(f"{name}_0"), name)]


def plus(x: Tensor, hint: Tensor) -> Tensor:
    return x + hint


def test_hoisting_runs_what_is_constant_once_and_gives_the_same_bits() -> None:
    counters = [Counted(), Counted()]
    edits = [e for n, c in zip("ab", counters, strict=True) for e in provided(n, lambda c=c: c)]
    base = encoder()
    tree = base.edit(edits).requires_grad_(False)
    images = {"a_image": torch.randn(1, 4), "b_image": torch.randn(1, 4)}
    inner, values = hoist(tree, images)
    assert [c.runs for c in counters] == [1, 1]
    assert set(values) == {"a_hint", "b_hint"}
    for _ in range(3):
        x = torch.randn(2, 4)
        assert torch.equal(inner(x, **values), tree(x, **images))
    assert [c.runs for c in counters] == [4, 4]
    assert set(tree.inputs) == {"latents", "a_image", "b_image"}


def test_hoisting_keeps_what_depends_on_an_input_that_changes() -> None:
    counter = Counted()
    tree = encoder().edit(provided("a", lambda: counter))
    inner, values = hoist(tree, {})
    assert inner is tree
    assert values == {}


def test_hoisting_leaves_a_compiled_tree_alone() -> None:
    tree = encoder().edit(provided("a", Counted))
    tree.compile(backend="eager")
    image = torch.randn(1, 4)
    assert hoist(tree, {"a_image": image}) == (tree, {"a_image": image})
