"""How a tree prints: repr, diff and source, as a person reads them."""

from __future__ import annotations

import functools

import torch
from small_trees import Factor, LowRank, language_model, linear, low_rank_edits
from torch import Tensor, nn

from inarch.tree import Chain, Concat, Edit, Export, Here, Let, Parallel, Residual, Seq, Sum, Use

MODEL = """\
Chain
├─ model: Chain
│  ├─ embed_tokens: Embedding [11, 8]
│  ├─ let cos, sin = rotary_emb: Rotary (positions)
│  ├─ layers: Chain
│  │  └─ (0-29) x30: Chain
│  │     ├─ Residual
│  │     │  ├─ input_layernorm: LayerNorm [8] [8]
│  │     │  └─ self_attn: Chain
│  │     │     ├─ Parallel
│  │     │     │  ├─ query: Seq
│  │     │     │  │  ├─ q_proj: Linear [8, 8]
│  │     │     │  │  ├─ heads: split_heads()
│  │     │     │  │  └─ rotate() (cos, sin)
│  │     │     │  ├─ key: Seq
│  │     │     │  │  ├─ k_proj: Linear [8, 8]
│  │     │     │  │  ├─ heads: split_heads()
│  │     │     │  │  └─ rotate() (cos, sin)
│  │     │     │  ├─ value: Seq
│  │     │     │  │  ├─ v_proj: Linear [8, 8]
│  │     │     │  │  └─ heads: split_heads()
│  │     │     │  └─ mask: use mask
│  │     │     ├─ attend()
│  │     │     ├─ merge: merge_heads()
│  │     │     └─ o_proj: Linear [8, 8]
│  │     └─ Residual
│  │        ├─ post_attention_layernorm: LayerNorm [8] [8]
│  │        └─ mlp: Chain
│  │           ├─ Product
│  │           │  ├─ gate: Seq
│  │           │  │  ├─ gate_proj: Linear [16, 8]
│  │           │  │  └─ act: silu()
│  │           │  └─ up_proj: Linear [16, 8]
│  │           └─ down_proj: Linear [8, 16]
│  └─ norm: LayerNorm [8] [8]
└─ lm_head: Linear [11, 8]"""

EDITED = """\
Chain
├─ provide let given = from_text() (text) [p]
├─ a: Linear [8, 8]
│  ├─ + a__p: LowRank [2, 8] [8, 2] [p]
│  ├─ + a__q: LowRank [2, 8] [8, 2] [q]
│  └─ x a__r: Factor [8] [r]
├─ b: () Seq [p]
│  ├─ sin()
│  └─ tanh()
├─ c: Seq
│  ├─ tanh()
│  ├─ < sin() [p]
│  ├─ > cos() [q]
│  └─ tap export seen [q]
└─ d: != cos() [p]"""


def from_text(x, *, text):
    return x + text


def split(x) -> tuple[Tensor, Tensor]:
    return x, x


def test_a_model_prints_as_a_tree_with_equal_layers_folded():
    assert repr(language_model(30)) == MODEL


def test_layers_that_differ_are_not_folded_together():
    tree = language_model(6)
    edits = [Edit.add(f"model.layers.{i}.mlp.up_proj", LowRank(8, 16), "a") for i in (2, 3)]
    text = repr(tree.edit(edits))
    assert [line.strip("│ ├└─") for line in text.splitlines() if ") x" in line] == [
        "(0-1) x2: Chain",
        "(2-3) x2: Chain",
        "(4-5) x2: Chain",
    ]
    assert "+ up_proj__a: LowRank [2, 8] [16, 2] [a]" in text


def test_every_kind_of_edit_is_marked_with_its_adapter():
    base = Chain(a=linear(), b=torch.tanh, c=Seq(torch.tanh), d=torch.tanh)
    tree = base.edit(
        [
            Edit.add("a", LowRank(), "q"),
            Edit.add("a", LowRank(), "p"),
            Edit.scale("a", Factor(), "r"),
            Edit.wrap("b", Seq(torch.sin, Here()), "p"),
            Edit.before("c", torch.sin, "p"),
            Edit.after("c", torch.cos, "q"),
            Edit.tap("c", "seen", "q", export=True),
            Edit.replace("d", torch.cos, "p"),
            Edit.provide("given", from_text, "p"),
        ]
    )
    assert repr(tree) == EDITED


def test_every_kind_of_step_prints():
    tree = Chain(
        Let("skip", ("first", linear())),
        Export("out"),
        cat=Concat(Use("skip"), torch.tanh, dim=-1),
        two=split,
        joined=Seq(Parallel(torch.add)),
        custom=functools.partial(torch.mul, other=2),
    )
    assert repr(tree).splitlines() == [
        "Chain",
        "├─ let skip = first: Linear [8, 8]",
        "├─ export out",
        "├─ cat: Concat(dim=-1)",
        "│  ├─ use skip",
        "│  └─ tanh()",
        "├─ two: split()",
        "├─ joined: Seq",
        "│  └─ Parallel",
        "│     └─ add()",
        "└─ custom: mul()",
    ]


DIFF = """\
--- model.layers.{0-2}.self_attn x3
+++ model.layers.{0-2}.self_attn x3
@@ -1,4 +1,5 @@
 def forward(self, x, *, cos, sin, mask):
     q_proj = self.q_proj(x)
+    q_proj = self.q_proj__a(x, plus=q_proj)
     heads = split_heads(q_proj)
     query = rotate(heads, cos=cos, sin=sin)
@@ -7,4 +8,5 @@
     key = rotate(heads, cos=cos, sin=sin)
     v_proj = self.v_proj(x)
+    v_proj = self.v_proj__a(x, plus=v_proj)
     value = split_heads(v_proj)
     attend_ = attend(query, key, value, mask)
"""


def test_a_difference_is_one_for_all_chains_that_share_it():
    tree = language_model(3)
    assert tree.edit(low_rank_edits(tree, "a")).diff(tree) == DIFF


def test_a_difference_backwards_takes_away_what_was_added():
    tree = language_model(3)
    edited = tree.edit(low_rank_edits(tree, "a"))
    swapped = [line for line in tree.diff(edited).splitlines() if line.startswith("-    ")]
    assert [line[1:].strip() for line in swapped] == [
        "q_proj = self.q_proj__a(x, plus=q_proj)",
        "v_proj = self.v_proj__a(x, plus=v_proj)",
    ]


def test_equal_trees_have_no_difference():
    assert language_model(2).diff(language_model(2)) == ""


def test_a_chain_that_an_edit_brought_is_new_in_the_difference():
    tree = Chain(a=linear())
    text = tree.edit([Edit.add("a", Chain(inner=linear()), "p")]).diff(tree)
    assert "+++ a__p\n" in text
    assert "+    return self.inner(x)" in text


def test_ranges_of_layers_show_what_is_left_out():
    tree = language_model(6)
    edits = [Edit.add(f"model.layers.{i}.mlp.up_proj", LowRank(8, 16), "a") for i in (0, 1, 2, 4)]
    assert tree.edit(edits).diff(tree).startswith("--- model.layers.{0-2,4}.mlp x4\n")


def test_a_block_s_source_reads_as_one_would_write_it():
    assert language_model(1).model.layers[0].source == (
        "def forward(self, x, *, cos, sin, mask):\n"
        "    input_layernorm = self.input_layernorm(x)\n"
        "    self_attn = self.self_attn(input_layernorm, cos=cos, sin=sin, mask=mask)\n"
        "    x = x + self_attn\n"
        "    post_attention_layernorm = self.post_attention_layernorm(x)\n"
        "    mlp = self.mlp(post_attention_layernorm)\n"
        "    return x + mlp\n"
    )


def test_a_residual_stream_keeps_its_name_under_a_label_and_an_edit_of_it_has_the_label():
    tree = Chain(after_a=Residual(a=linear()), after_b=Residual(b=linear()))
    assert "    x = x + a\n" in tree.source
    edited = tree.edit([Edit.after("after_a", linear(), "p")]).source
    assert "    x = x + a\n    after_a = self.after_a__p(x)\n    b = self.b(after_a)\n" in edited


def test_equal_functions_have_one_name_and_different_ones_two():
    def scaled(x, *, by):
        return x * by

    twice = [functools.partial(scaled, by=2) for _ in range(2)]
    tree = Chain(Sum(*twice, functools.partial(scaled, by=3)))
    assert tree.source == (
        "def forward(self, x):\n"
        "    x_2 = scaled(x)\n"
        "    x_3 = scaled(x)\n"
        "    x = scaled_2(x)\n"
        "    return x_2 + x_3 + x\n"
    )


def test_constants_of_different_types_make_different_structures():
    def made(value):
        return Chain(functools.partial(torch.mul, other=value))

    forms = [made(value).form for value in (1, 1.0, True, 0.0, -0.0)]
    assert len(set(forms)) == 5
    assert made(1)(torch.ones(1, dtype=torch.int64)).dtype == torch.int64
    assert made(1.0)(torch.ones(1, dtype=torch.int64)).dtype == torch.float32


def test_a_lambda_made_twice_is_one_structure_and_one_over_a_variable_is_not():
    def plain():
        return Chain(lambda x: x * 2)

    def closed(n):
        return Chain(lambda x: x * n)

    assert plain().form is plain().form
    one, two = closed(1), closed(2)
    assert one.form is not two.form
    assert two(torch.ones(1)).item() == 2


def test_defaults_of_a_lambda_are_part_of_its_structure():
    trees = [Chain(lambda x, n=n: x * n) for n in (1, 2, 1.0)]
    assert len({tree.form for tree in trees}) == 3
    assert [tree(torch.ones(1)).item() for tree in trees] == [1, 2, 1]


def test_the_same_tree_has_the_same_text_when_it_is_made_again():
    import gc

    first = [m.source for m in language_model(1).modules() if isinstance(m, Chain)]
    gc.collect()
    assert [m.source for m in language_model(1).modules() if isinstance(m, Chain)] == first


LONG = "a_rather_long_name_for_a_value_of_a_skip_connection"


def test_long_lines_wrap_at_a_hundred_columns():
    names = tuple(f"{LONG}_{i}" for i in range(6))

    def many(x) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
        return x, x, x, x, x, x

    inner = Chain(*(Export(name, torch.tanh) for name in names), torch.tanh)
    tree = Chain(
        Let(tuple(f"own_{name}" for name in names), many),
        down=inner,
        cat=Concat(*(Use(name) for name in names), dim=0),
        sum=Sum(*(Use(name) for name in names)),
        rest=Parallel(*(Use(f"asked_{name}") for name in names)),
    )
    asked = {f"asked_{name}": torch.ones(1) for name in names}
    for chain in (inner, tree):
        assert max(map(len, chain.source.splitlines())) <= 100, chain.source
    assert len(tree(torch.ones(1), **asked)) == 12


def adding(n, name):
    def step(x):
        return x + n

    step.__name__ = name
    return step


def test_a_step_may_be_called_what_the_forward_itself_uses():
    names = ("forward", "self", "cat", "_explain", "_error", "Exception", "x", "class", "é")
    steps = [adding(i, name) for i, name in enumerate(names)]
    joined = Concat(torch.tanh, torch.tanh, dim=0)
    tree = Chain(*steps, joined, ("cat", torch.sin), ("self", torch.cos))
    value = torch.ones(1)
    expected = torch.cat([(value + 36).tanh()] * 2).sin().cos()
    assert torch.equal(tree(value), expected), tree.source
    with_names = Chain(Let("cat", torch.tanh), Concat(Use("cat"), Use("step"), dim=0))
    assert with_names(value, step=value).shape == (2,)


def test_a_failure_is_explained_whatever_steps_are_called():
    def fail(x):
        raise ValueError("no")

    fail.__name__ = "_explain"
    try:
        Chain(a=fail)(torch.ones(1))
    except ValueError as error:
        assert error.__notes__ == ["in inarch, at `a`; what came in: x [1] float32"]


def test_several_takes_come_first_and_may_be_renamed_by_steps():
    def add(a, b):
        return a + b

    tree = Chain(add, act=torch.tanh, takes=("query", "key"), inputs=())
    assert tree.source == (
        "def forward(self, query, key):\n    query = add(query, key)\n    return tanh(query)\n"
    )
    outer = Chain(Parallel(("left", linear()), ("right", linear())), both=tree)
    assert outer.source.endswith("    return self.both(left, right)\n")
    assert Chain(torch.tanh, takes="input_ids").source.startswith("def forward(self, input_ids)")


def test_positions_name_modules_between_other_steps():
    tree = Chain(linear(), Residual(norm=nn.LayerNorm(8)), torch.tanh, linear())
    assert list(tree._modules) == ["0", "norm", "3"]


def test_a_value_kept_by_an_ancestor_goes_no_further_up():
    def use(x, *, skip):
        return x + skip

    low = Chain(Export("skip", torch.tanh), torch.sin)
    middle = Chain(low=low)
    keeper = Chain(down=middle, up=use, keeps=("skip",))
    top = Chain(inner=keeper, act=torch.cos)
    assert (low.form.exports, middle.form.exports) == (("skip",), ("skip",))
    assert (keeper.form.exports, top.form.exports) == ((), ())
    x = torch.randn(3)
    assert torch.equal(top(x), (x.sin() + x.tanh()).cos())
    assert middle.source == "def forward(self, x):\n    return self.low(x)\n"


def test_a_let_in_one_branch_is_known_to_the_next():
    tree = Chain(Sum(Seq(Let("t", torch.tanh), torch.sin), Use("t")))
    x = torch.randn(3)
    assert torch.equal(tree(x), x.sin() + x.tanh())


def test_an_inner_name_may_be_that_of_an_outer_one_where_it_stays_inside():
    inner = Chain(Let("t", torch.sin), Use("t"))
    tree = Chain(Let("t", torch.tanh), a=inner, b=Sum(torch.cos, Use("t")))
    x = torch.randn(3)
    assert torch.equal(tree(x), x.sin().cos() + x.tanh())


def test_needs_come_in_the_order_of_their_first_use():
    def late(x, *, b, a):
        return x * b + a

    tree = Chain(Use("c"), late)
    assert tree.form.needs == ("c", "b", "a")


def test_a_parameter_of_its_own_is_named_in_the_checkpoint_and_bound_in_the_source():
    def join(x, *, token):
        return x + token

    tree = Chain(token=nn.Parameter(torch.ones(3)), layer=nn.Linear(3, 3), join=join)
    assert list(tree.state_dict()) == ["token", "layer.weight", "layer.bias"]
    assert tree.source == (
        "def forward(self, x):\n"
        "    layer = self.layer(x)\n"
        "    return join(layer, token=self.token)\n"
    )
    assert "let token = Parameter [3]" in repr(tree)
    doubled = tree.edit([Edit.scale("token", lambda x: 2, "twice")])
    x = torch.randn(2, 3)
    assert torch.equal(doubled(x), tree.layer(x) + 2)
    assert doubled.token is tree.token


def test_a_chain_drawn_before_is_named_and_not_drawn_again() -> None:
    def block(width: int, extra: bool = False) -> Chain:
        steps = [(f"layer_{i}", nn.Linear(width, width)) for i in range(6 + extra)]
        return Chain(*steps)

    tree = Chain(
        first=block(2), out=torch.sin, second=block(2), third=block(3), fourth=block(2, True)
    )
    lines = repr(tree).splitlines()
    assert lines[1] == "├─ first: Chain"
    assert lines[9:11] == [
        "├─ second: Chain, as first",
        "├─ third: Chain, as first in other sizes",
    ]
    assert lines[11] == "└─ fourth: Chain"
    edited = tree.edit([Edit.add("second.layer_0", nn.Linear(2, 2), "a")])
    drawn = repr(edited)
    assert "second: Chain\n" in drawn
    assert "[a]" in drawn


def test_addresses_that_differ_in_words_are_not_taken_for_layers() -> None:
    from inarch.tree.diff import folded

    assert folded(["a.1.b", "a.2.b", "a.3.b"]) == "a.{1-3}.b x3"
    assert folded(["a.waves", "control.temb"]) == "a.waves, control.temb"
    assert folded(["a.1.b", "a.1.c"]) == "a.1.b, a.1.c"


def test_a_dotted_name_stays_whole_where_adapters_edit_it() -> None:
    tree = Chain(("to_out.0", nn.Linear(2, 2)), ("to_out.1", nn.Linear(2, 2)))
    edits = [Edit.add("to_out.0", nn.Linear(2, 2), "a"), Edit.after("to_out.1", torch.sin, "b")]
    drawn = repr(tree.edit(edits))
    assert "├─ to_out.0: Linear [2, 2] [2]\n│  └─ + to_out_0__a: Linear" in drawn
    assert "└─ to_out.1: Linear [2, 2] [2]\n   └─ > sin() [b]" in drawn
