"""What virtual tokens promise on their own: where they stand, how they begin, how they combine."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import inarch
from inarch.errors import InarchError


def test_two_prefixes_in_either_order_give_one_form_and_equal_bits(
    pair: tuple[Any, Any], ids: Tensor
) -> None:
    _, ours = pair
    names = ("a", "ab", "lora")
    first = ours.adapt(*(inarch.adapter("prefix", name=n, tokens=2) for n in names))
    by_name = {member.name: member for member in first.adapters}
    for order in itertools.permutations(names):
        again = first._with([by_name[name] for name in order])
        assert again.tree.form is first.tree.form
        assert torch.equal(again(ids), first(ids))
    assert not torch.equal(first(ids), first.without("ab")(ids))


def test_two_prefixes_are_one_of_both(llamas: tuple[Any, Any], ids: Tensor) -> None:
    _, ours = llamas
    both = ours.adapt(
        *(inarch.adapter("prefix", name=n, tokens=k) for n, k in (("b", 2), ("a", 3)))
    )
    joined = ours.adapt(inarch.adapter("prefix", name="joined", tokens=5))
    [tensor] = joined.adapter_parameters("joined").values()
    parts = [next(iter(both.adapter_parameters(n).values())) for n in "ab"]
    tensor.data.copy_(torch.cat(parts))
    torch.testing.assert_close(both(ids), joined(ids), rtol=1e-5, atol=1e-5)


def test_a_prefix_before_a_prompt_is_seen_by_the_prompt(
    llamas: tuple[Any, Any], ids: Tensor
) -> None:
    """Either way it is written down: keys of the prefix, then the prompt's, then the text's."""
    _, ours = llamas
    specs = [inarch.adapter("prefix", tokens=2), inarch.adapter("prompt-tuning", tokens=3)]
    forms, results = set(), []
    for order in (specs, specs[::-1]):
        torch.manual_seed(0)
        model = ours.adapt(*order)
        for member in model.adapters:
            for parameter in member.parameters().values():
                generator = torch.Generator().manual_seed(len(member.kind))
                parameter.data.copy_(torch.randn(parameter.shape, generator=generator))
        forms.add(model.tree.form)
        results.append(model(ids))
        prompt = ids[0, :4].tolist()
        steps = list(model.generate_ids([prompt], max_new_tokens=5, stop=frozenset()))
        for [step] in steps:
            assert step == int(model(torch.tensor([prompt]))[0, -1].argmax())
            prompt.append(step)
    assert len(forms) == 1
    assert torch.equal(*results)


def test_a_prompt_of_known_tokens_is_those_tokens(pair: tuple[Any, Any], ids: Tensor) -> None:
    _, ours = pair
    adapted = ours.adapt(inarch.adapter("prompt-tuning", tokens=3))
    [tensor] = adapted.adapter_parameters("prompt_tuning").values()
    tokens = torch.tensor([[7, 3, 11]])
    table = ours.tree.get_parameter("model.embed_tokens.weight")
    tensor.data.copy_(table[tokens[0]])
    whole = ours(torch.cat((tokens.expand(len(ids), -1), ids), dim=1))
    torch.testing.assert_close(adapted(ids), whole[:, 3:], rtol=1e-5, atol=1e-5)
    assert adapted(ids).shape == ours(ids).shape


def test_a_prompt_begins_as_tokens_of_the_vocabulary_where_asked(llamas: tuple[Any, Any]) -> None:
    _, ours = llamas
    adapted = ours.adapt(inarch.adapter("prompt-tuning", tokens=4, start="vocabulary"))
    [tensor] = adapted.adapter_parameters("prompt_tuning").values()
    table = ours.tree.get_parameter("model.embed_tokens.weight")
    assert all(any(torch.equal(row, token) for token in table) for row in tensor)


def test_a_prefix_of_zeros_is_keys_and_values_of_zero(llamas: tuple[Any, Any], ids: Tensor) -> None:
    _, ours = llamas
    for options in ({}, {"projection": True, "hidden": 3}):
        adapted = ours.adapt(inarch.adapter("prefix", tokens=2, start="zero", **options))
        assert not torch.equal(adapted(ids), ours(ids))
        prefix = adapted.adapters["prefix"].modules["prefix"]
        assert not prefix(ids).any()


def test_every_layer_is_one_structure_to_a_compiler(llamas: tuple[Any, Any]) -> None:
    adapted = llamas[1].adapt(inarch.adapter("prefix", tokens=2))
    assert len({block.form for block in adapted.tree.model.layers}) == 1


def test_a_step_of_training_moves_the_virtual_tokens_and_nothing_else(
    llamas: tuple[Any, Any], ids: Tensor
) -> None:
    _, ours = llamas
    before = {k: v.clone() for k, v in ours.state_dict().items()}
    for use in ("prefix", "prompt-tuning"):
        adapted = ours.adapt(inarch.adapter(use, name="mine", tokens=2))
        [parameter] = adapted.adapter_parameters("mine").values()
        start = parameter.detach().clone()
        adapted(ids).square().mean().backward()
        torch.optim.SGD([parameter], lr=0.1).step()
        assert bool((parameter != start).any(dim=1).all())
    assert all(torch.equal(ours.state_dict()[k], v) for k, v in before.items())


def test_neither_has_a_scale_nor_can_be_merged(llamas: tuple[Any, Any]) -> None:
    _, ours = llamas
    for use in ("prefix", "prompt-tuning"):
        with pytest.raises(InarchError, match="has no scale"):
            ours.adapt(inarch.adapter(use, scale=0.5))
        with pytest.raises(InarchError, match="can't be merged"):
            ours.adapt(inarch.adapter(use)).merge()


def test_a_swap_of_more_tokens_says_in_few_words_what_would_differ(
    llamas: tuple[Any, Any], tmp_path: Path
) -> None:
    _, ours = llamas
    files = [
        ours.adapt(inarch.adapter("prefix", tokens=n)).save_adapter("prefix", tmp_path / f"{n}")
        for n in (3, 5)
    ]
    model = ours.adapt(inarch.adapter("prefix", weights=files[0]))
    with pytest.raises(InarchError) as caught:
        model.swap("prefix", files[1])
    assert caught.value.code == "IA498"
    assert "would be later(by=5), not later(by=3)" in caught.value.why
