"""What several edits make of one tree, in which orders, and what is refused."""

from __future__ import annotations

import itertools

import pytest
import torch
from small_trees import SIZE, Factor, LowRank, inputs, language_model, linear, run, same
from torch import Tensor, nn

from inarch.errors import InarchError
from inarch.testing.interpreter import interpret
from inarch.tree import Chain, Edit, Export, Here, Identity, Let, Parallel, Seq, Sum, Use

QUERY = "model.layers.0.self_attn.q_proj"


class Term(nn.Module):
    """A term that does not take the sum so far."""

    def __init__(self):
        super().__init__()
        self.inner = linear()

    def forward(self, x):
        return self.inner(x)


class Needy(nn.Module):
    """A term that takes the sum so far and a named value."""

    def __init__(self):
        super().__init__()
        self.inner = linear()

    def forward(self, x, *, positions, plus):
        return plus + self.inner(x) * positions.sum()


def doubled(x):
    return x * 2


def shifted(x):
    return x + 1


def code_of(tree, *edits):
    with pytest.raises(InarchError) as caught:
        tree.edit(edits)
    return caught.value.code


@pytest.mark.parametrize("kind", ["add", "scale"])
def test_adds_and_scales_by_four_adapters_commute_in_every_order(kind):
    base = language_model(1)
    make = {"add": [LowRank, Term, Needy, LowRank], "scale": [Factor] * 4}[kind]
    edits = [
        getattr(Edit, kind)(QUERY, one(), name)
        for one, name in zip(make, ["b", "a", "ab", "lora"], strict=True)
    ]
    results = []
    for order in itertools.permutations(edits):
        one_by_one = base
        for edit in order:
            one_by_one = one_by_one.edit([edit])
        results += [base.edit(order), one_by_one]
    assert len({tree.form for tree in results}) == 1
    assert len({tree.model.layers[0].self_attn.source for tree in results}) == 1
    expected = run(results[0])
    assert all(same(run(tree), expected) for tree in results)
    args, named = inputs()
    assert same(interpret(results[0], *args, **named), expected)


def test_before_and_after_commute():
    base = Chain(a=linear())
    edits = [
        Edit.before("a", doubled, "p"),
        Edit.after("a", shifted, "q"),
        Edit.add("a", Term(), "z"),
    ]
    one = base.edit(edits[:2])
    other = base.edit([edits[1], edits[0]])
    assert one.form is other.form
    x = torch.randn(SIZE)
    assert torch.equal(one(x), base.a(x * 2) + 1)


def test_befores_run_outermost_last_given_and_afters_in_order():
    base = Chain(a=Identity())
    tree = base.edit([Edit.before("a", doubled, "p"), Edit.before("a", shifted, "q")])
    assert torch.equal(tree(torch.ones(1)), torch.tensor([4.0]))
    tree = base.edit([Edit.after("a", doubled, "p"), Edit.after("a", shifted, "q")])
    assert torch.equal(tree(torch.ones(1)), torch.tensor([3.0]))


def test_an_add_after_a_scale_is_another_tree_than_a_scale_after_an_add():
    base, term, factor = Chain(a=linear()), Term(), Factor()
    add, scale = Edit.add("a", term, "p"), Edit.scale("a", factor, "q")
    x = torch.randn(2, SIZE)
    assert torch.equal(base.edit([add, scale])(x), (base.a(x) + term(x)) * factor.vector)
    assert torch.equal(base.edit([scale, add])(x), base.a(x) * factor.vector + term(x))


def test_a_term_that_takes_the_sum_adds_to_all_before_it():
    base, first, second = Chain(a=linear()), Term(), LowRank()
    tree = base.edit([Edit.add("a", second, "z"), Edit.add("a", first, "b")])
    assert tree.source == (
        "def forward(self, x):\n"
        "    a = self.a(x)\n"
        "    a__b = self.a__b(x)\n"
        "    a = a + a__b\n"
        "    return self.a__z(x, plus=a)\n"
    )
    x = torch.randn(2, SIZE)
    assert torch.equal(tree(x), second(x, plus=base.a(x) + first(x)))


def test_a_replacement_that_would_lose_an_edit_is_refused_in_both_orders():
    base = language_model(1)
    add = Edit.add(QUERY, LowRank(), "p")
    for address in (QUERY, "model.layers.0.self_attn.query", "model.layers.0.self_attn"):
        replace = Edit.replace(address, torch.tanh, "q")
        assert code_of(base, add, replace) == "IA111"
        assert code_of(base.edit([add]), replace) == "IA111"
    assert code_of(base.edit([replace]), add) == "IA110"


def test_a_replacement_may_itself_be_edited():
    base = Chain(a=linear())
    tree = base.edit([Edit.replace("a", doubled, "q"), Edit.add("a", shifted, "p")])
    assert torch.equal(tree(torch.ones(1)), torch.tensor([4.0]))
    assert list(tree.state_dict()) == ["a.weight"]


def test_a_wrap_holds_what_it_wraps_once():
    base = Chain(a=doubled)
    tree = base.edit([Edit.wrap("a", Sum(Seq(shifted, Here()), shifted), "p")])
    assert torch.equal(tree(torch.ones(1)), torch.tensor([6.0]))
    tree = tree.edit([Edit.add("a", shifted, "q"), Edit.wrap("a", Seq(Here(), shifted), "r")])
    assert torch.equal(tree(torch.ones(1)), torch.tensor([9.0]))


def test_a_wrap_s_own_modules_stand_beside_the_site():
    tree = Chain(a=linear()).edit([Edit.wrap("a", Seq(("down", linear()), Here()), "p")])
    assert list(tree.state_dict()) == ["a.weight", "a__p.down.weight"]
    [found] = tree.select("a")
    assert found.module is tree.a


def test_an_edit_at_a_let_changes_the_name_and_not_what_flows_on():
    base = Chain(Let("skip", Identity()), doubled, Parallel(Identity(), Use("skip")))
    tree = base.edit([Edit.add("skip", shifted, "p")])
    before, after = base(torch.ones(1)), tree(torch.ones(1))
    assert [v.item() for v in before] == [2, 1]
    assert [v.item() for v in after] == [2, 3]


def test_a_tap_names_a_value_that_another_edit_uses():
    base = language_model(2)
    tree = base.edit(
        [
            Edit.tap("model.layers.0", "early", "p", export=True),
            Edit.add("model.layers.1", Use("early"), "p"),
        ]
    )
    assert tree.model.layers.form.exports == ("early",)
    logits, early = run(tree)
    assert logits.shape == (2, 5, 11)
    assert early.shape == (2, 5, SIZE)


def test_a_tap_that_stays_in_its_chain_changes_no_output():
    base = language_model(1)
    tree = base.edit([Edit.tap(QUERY, "seen", "p")])
    assert same(run(tree), run(base))


def test_taps_commute_and_each_name_stands_once():
    base = Chain(a=doubled, b=shifted)
    edits = [Edit.tap("a", "one", "p", export=True), Edit.tap("a", "two", "q", export=True)]
    assert base.edit(edits).form is base.edit(edits[::-1]).form
    assert code_of(base, edits[0], Edit.tap("b", "one", "q")) == "IA101"


def test_a_provided_value_reaches_every_chain_and_its_input_shows():
    def from_image(x, *, image):
        return image * 2

    base = language_model(2)
    edits = [Edit.provide("tokens", from_image, "p", inputs=("image",))]
    for found in base.select("model.layers.*.mlp.down_proj", count=2):
        edits.append(Edit.add(found.address, Use("tokens"), "p"))
    tree = base.edit(edits)
    assert list(tree.inputs) == ["input_ids", "image", "positions", "mask"]
    assert tree.inputs["image"] == ("tokens",)
    args, named = inputs()
    image = torch.randn(SIZE)
    assert not same(tree(*args, image=image, **named), run(base))
    assert same(tree(*args, image=torch.zeros(SIZE), **named), run(base))
    with pytest.raises(TypeError, match="image"):
        tree(*args, **named)


def test_provides_of_two_adapters_commute_and_one_name_is_provided_once():
    base = Chain(a=doubled, inputs=())

    def give(adapter, name, source):
        step = Seq(Use(source), torch.sin)
        return Edit.provide(name, step, adapter, inputs=(source,))

    one, two = give("p", "first", "i"), give("q", "second", "j")
    assert base.edit([one, two]).form is base.edit([two, one]).form
    assert code_of(base, one, give("q", "first", "j")) == "IA101"


def test_an_adapter_s_second_provided_value_may_use_its_first():
    base = Chain(a=doubled, inputs=())
    tree = base.edit(
        [
            Edit.provide("z_first", torch.sin, "p"),
            Edit.provide("a_second", Seq(Use("z_first"), torch.cos), "p"),
            Edit.add("a", Use("a_second"), "p"),
        ]
    )
    x = torch.randn(3)
    assert torch.equal(tree(x), x * 2 + x.sin().cos())


def test_a_provided_value_from_a_tree_of_its_own_adapts_each_skip():
    """ControlNet: a copy of an encoder gives one value for each skip, added where it is bound."""

    def encoder():
        return Chain(Export("skip_1"), ("a", linear()), Export("skip_2"))

    def both(x, *, skip_1, skip_2):
        return x + skip_1 * skip_2

    base = Chain(down=encoder(), up=both, keeps=("skip_1", "skip_2"), inputs=())
    control = Chain(
        Use("canny_image"),
        net=Chain(encoder=encoder(), last=Use("skip_1", "skip_2"), keeps=("skip_1", "skip_2")),
    )
    tree = base.edit(
        [
            Edit.provide(("canny_1", "canny_2"), control, "canny", inputs=("canny_image",)),
            Edit.add("down.skip_1", Use("canny_1"), "canny", inputs=("canny_1",)),
            Edit.add("down.skip_2", Use("canny_2"), "canny", inputs=("canny_2",)),
        ]
    )
    x, image = torch.randn(2, SIZE), torch.randn(2, SIZE)
    net = control.net.encoder
    flowing = base.down.a(x)
    expected = flowing + (x + image) * (flowing + net.a(image))
    assert torch.allclose(tree(x, canny_image=image), expected)
    assert same(tree(x, canny_image=image), interpret(tree, x, canny_image=image))
    assert "provided__canny.net.encoder.a" in tree.form.index


def test_the_inside_of_a_chain_that_an_edit_brought_can_be_edited():
    base = Chain(a=linear())
    brought = Chain(inner=linear(), act=torch.tanh)
    first = base.edit([Edit.add("a", brought, "p")])
    address = "a__p.inner"
    assert address in first.select(type=nn.Linear).addresses
    term = LowRank()
    tree = first.edit([Edit.add(address, term, "q")])
    x = torch.randn(2, SIZE)
    inner = brought.inner(x)
    assert torch.equal(tree(x), base.a(x) + torch.tanh(term(x, plus=inner)))
    assert first.get_submodule("a__p") is brought
    assert "a__p.inner__q.a.weight" in tree.state_dict()


ADAPTERS = ["lora", "weight", "base_layer", "a", "ab", "a_b", "q_proj", "self", "é", "A", "lambda"]


def test_adapters_of_any_name_live_beside_each_other():
    base = language_model(1)
    edits = [Edit.add(QUERY, LowRank(), name) for name in ADAPTERS]
    edits += [Edit.wrap(QUERY, Seq(("w", linear()), Here()), name) for name in ("a", "ab")]
    tree = base.edit(edits)
    attention = tree.model.layers[0].self_attn
    assert {f"q_proj__{name}" for name in ADAPTERS} < set(attention._modules)
    [found] = tree.select(QUERY)
    assert found.module is base.get_submodule(QUERY)
    args, named = inputs()
    assert same(run(tree), interpret(tree, *args, **named))
    again = tree.edit([Edit.scale(QUERY, Factor(), "ab")])
    assert "q_proj__ab__scale" in again.model.layers[0].self_attn._modules


@pytest.mark.parametrize(
    "name", ["", "a.b", "a-b", "a__b", "_a", "a_", "1a", "a b", "ﬁ", "٣", "../x", "a\n"]
)
def test_a_name_that_no_module_can_have_is_refused_with_one_that_can(name):
    with pytest.raises(InarchError) as caught:
        Chain(a=linear()).edit([Edit.add("a", LowRank(), name)])
    assert caught.value.code == "IA116"
    remedy = caught.value.remedy.removeprefix('name="').removesuffix('"')
    Chain(a=linear()).edit([Edit.add("a", LowRank(), remedy)])


@pytest.mark.parametrize("kind", ["add", "scale", "before", "after", "replace"])
def test_an_adapter_makes_one_edit_of_a_kind_at_a_site(kind):
    for make in (LowRank, lambda: torch.tanh, linear):
        edits = [getattr(Edit, kind)("a", make(), "p") for _ in range(2)]
        assert code_of(Chain(a=linear()), *edits) == "IA115"


def test_sites_inside_one_labelled_group_are_their_own():
    base = Chain(g=Seq(a=linear(), b=linear()))
    tree = base.edit([Edit.add(name, LowRank(), "p") for name in ("a", "b")])
    assert tree.edit([Edit.add("g", torch.tanh, "p")]).form.sites == ("g", "a", "b")


def test_a_dotted_and_a_flat_label_that_read_alike_get_modules_of_their_own():
    base = Chain(("a.b", linear()), a_b=linear())
    tree = base.edit([Edit.add("a.b", LowRank(), "p"), Edit.add("a_b", LowRank(), "p")])
    x = torch.randn(2, SIZE)
    assert len(tree.state_dict()) == 6
    assert same(tree(x), interpret(tree, x))


@pytest.mark.parametrize("label", ["_", "a_", "_a"])
def test_underscores_at_the_ends_of_labels_hide_no_adapter_s_name(label):
    base = Chain((label, Seq(Let("v", torch.tanh), ("_", Seq(f=torch.sin)))))
    tree = base.edit([Edit.add(f"{label}._.f", Chain(inner=linear()), "p")])
    [found] = tree.select("*.inner")
    assert found.address.endswith("f__p.inner")
    single = Chain((label, linear())).edit([Edit.add(label, Chain(inner=linear()), "p")])
    assert single.select("*.inner").addresses == (f"{label}__p.inner",)


def test_a_digit_label_takes_edits():
    tree = Chain(linear(), torch.tanh, linear()).edit([Edit.add("2", LowRank(), "p")])
    assert "at_2__p.a.weight" in tree.state_dict()


def test_an_add_where_several_values_leave_is_refused():
    def two(x) -> tuple[Tensor, Tensor]:
        return x, x

    assert code_of(Chain(a=two), Edit.add("a", torch.tanh, "p")) == "IA104"


def test_a_before_at_a_step_of_several_values_maps_all_of_them():
    """A KV cache: what comes in at `attend` is (query, key, value, mask)."""

    def cached(query, key, value, mask) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return query, key, value * 2, mask

    base = language_model(1)
    tree = base.edit([Edit.before("model.layers.*.self_attn.attend", cached, "cache")])
    assert not same(run(tree), run(base))
    assert "cached(query, key, value, mask)" in tree.model.layers[0].self_attn.source


def test_a_pattern_edits_every_site_and_one_module_may_serve_them_all():
    base, shared = language_model(3), LowRank()
    tree = base.edit([Edit.add("model.layers.*.self_attn.q_proj", shared, "p")])
    assert all(block.self_attn.q_proj__p is shared for block in tree.model.layers)


def test_an_edit_s_inputs_open_the_closed_list_and_no_other_tree_s():
    def conditioned(x, *, extra):
        return x * extra

    base = language_model(1)
    edit = Edit.add("lm_head", conditioned, "p")
    assert code_of(base, edit) == "IA105"
    tree = base.edit([Edit.after("lm_head", conditioned, "p", inputs=("extra",))])
    assert "extra" in tree.inputs
    assert base.interface.inputs == ("mask", "positions")
