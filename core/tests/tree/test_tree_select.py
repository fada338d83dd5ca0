"""Finding sites: addresses, patterns, classes, predicates, counts; and what a tree asks for."""

from __future__ import annotations

import pytest
import torch
from small_trees import LowRank, language_model, linear, low_rank_edits
from torch import nn

from inarch.errors import InarchError
from inarch.tree import Chain, Edit, Export, Let, Seq, Use


@pytest.fixture
def tree():
    return language_model(3)


@pytest.mark.parametrize(
    ("pattern", "count"),
    [
        ("model.layers.*.self_attn.{q,v}_proj", 6),
        ("model.layers.*.self_attn.*_proj", 12),
        ("model.layers.{0,2}.mlp.down_proj", 2),
        ("model.layers.*", 3),
        ("model.layers.0.self_attn.query", 1),
        ("model.layers.0.self_attn.query.rotate", 1),
        ("model.layers.0.self_attn.attend", 1),
        ("lm_head", 1),
        ("*", 2),
        ("model.*", 5),
        ("q_proj", 0),
        ("model.layers.*.self_attn", 3),
        ("model.layers.3", 0),
    ],
)
def test_a_pattern_finds_this_many_sites(tree, pattern, count):
    assert len(tree.select(pattern, count=count)) == count


def test_a_star_never_crosses_a_level(tree):
    assert tree.select("model.*.q_proj").addresses == ()


def test_sites_come_in_the_order_of_the_tree(tree):
    names = [f"model.layers.{i}.self_attn.{n}_proj" for i in range(3) for n in "qkvo"]
    assert tree.select("*.layers.*.*.*_proj", where=lambda f: "mlp" not in f.address).addresses == (
        tuple(names)
    )


def test_classes_and_predicates_narrow_a_selection(tree):
    assert len(tree.select(type=nn.LayerNorm)) == 7
    assert len(tree.select(type=(nn.LayerNorm, nn.Embedding))) == 8
    wide = tree.select(type=nn.Linear, where=lambda found: found.module.out_features == 16)
    assert len(wide) == 6
    assert all(isinstance(module, nn.Linear) for module in wide.modules)


def test_a_found_site_gives_its_module_and_its_chain(tree):
    [found] = tree.select("model.layers.1.mlp.up_proj")
    assert found.module is tree.model.layers[1].mlp.up_proj
    assert found.chain is tree.model.layers[1].mlp
    [attend] = tree.select("model.layers.1.self_attn.attend")
    assert attend.module is None


def test_another_count_than_demanded_is_an_error_that_lists_what_was_found(tree):
    with pytest.raises(InarchError) as caught:
        tree.select("model.layers.*", count=4)
    assert caught.value.code == "IA114"
    assert "model.layers.2" in str(caught.value)
    assert "3 sites match where 4 were expected" in str(caught.value)


@pytest.mark.parametrize("pattern", ["", "a..b", ".a", "a.", "{a", "a}", "{{a}}", "**", "{}"])
def test_a_malformed_pattern_is_refused(tree, pattern):
    with pytest.raises(InarchError) as caught:
        tree.select(pattern)
    assert caught.value.code == "IA113"


def test_a_selection_prints_what_it_holds(tree):
    assert repr(tree.select("model.layers.*")) == (
        "3 sites match model.layers.*\n  model.layers.0\n  model.layers.1\n  model.layers.2"
    )
    assert repr(tree.select("model.*", type=nn.Linear)) == "0 sites match model.* and Linear"
    assert repr(tree.select(type=(nn.Linear, nn.LayerNorm), count=29)).startswith(
        "29 sites match Linear or LayerNorm\n"
    )


def test_a_selected_module_is_the_author_s_whatever_was_added(tree):
    adapted = tree.edit(low_rank_edits(tree, "a"))
    assert adapted.select(type=nn.Linear).modules == tree.select(type=nn.Linear).modules
    before = adapted.edit(
        [Edit.before("lm_head", linear(), "b"), Edit.wrap("lm_head", _wrap(), "c")]
    )
    assert before.select("lm_head").modules == (tree.lm_head,)


def _wrap():
    from inarch.tree import Here

    return Seq(("more", linear()), Here())


def test_a_dotted_label_is_addressed_as_it_is_written():
    tree = Chain(("resnets.0", linear()), ("attentions.0", linear()), ("resnets.1", linear()))
    assert tree.select("resnets.*").addresses == ("resnets.0", "resnets.1")
    assert list(tree.state_dict()) == [
        "resnets.0.weight",
        "resnets.1.weight",
        "attentions.0.weight",
    ]
    assert "x = self.attentions[0](x)" in tree.source


def test_inputs_name_each_value_and_who_asks_for_it(tree):
    assert tree.inputs == {
        "input_ids": (),
        "positions": ("model.rotary_emb",),
        "mask": tuple(f"model.layers.{i}.self_attn.mask" for i in range(3)),
    }


def test_inputs_leave_out_what_the_tree_binds_itself():
    def both(x, *, inner, outer):
        return x + inner + outer

    tree = Chain(
        down=Chain(Export("inner", ("make", linear())), Let("own"), ("last", Use("own"))),
        up=Chain(act=both),
        keeps=("inner",),
    )
    assert tree.inputs == {"x": (), "outer": ("up.act",)}


def test_a_module_that_needs_a_value_is_named_by_its_address():
    class Needy(nn.Module):
        def forward(self, x, *, gain):
            return x * gain

    tree = Chain(("blocks.0", Needy()), ("blocks.1", Needy()))
    assert tree.inputs["gain"] == ("blocks.0", "blocks.1")
    adapted = tree.edit([Edit.add("blocks.1", Needy(), "p")])
    assert adapted.inputs["gain"][:2] == ("blocks.0", "blocks.1")


def test_an_unknown_address_is_refused_with_the_nearest_ones(tree):
    with pytest.raises(InarchError) as caught:
        tree.edit([Edit.add("model.layers.0.self_attn.qproj", LowRank(), "a")])
    assert "model.layers.0.self_attn.q_proj" in caught.value.remedy
    assert torch.is_tensor(tree.lm_head.weight)
