"""The order of a stack is what its edits make it, or what somebody declared; else it is refused."""

from __future__ import annotations

import copy
import itertools
import json
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from stacks import made
from torch import Tensor

from inarch.adapters import Model
from inarch.errors import InarchError
from inarch.resolve import Refused, footprint, graph, places

FC = "layers.0.inner.fc"


def refusal(model: Model, *adapters: Any) -> InarchError:
    with pytest.raises(InarchError) as caught:
        model.adapt(*adapters)
    return caught.value


def test_every_permutation_of_a_stack_gives_one_digest_order_and_output(
    base: Model, installed: Callable[..., Any], x: Tensor
) -> None:
    installed(ia3={"after": ["lora"]}, lora={})
    specs = [
        made("b", f"add {FC}", use="lora"),
        made("a", f"add {FC}", "before head", use="lora"),
        made("gains", f"scale {FC}", use="ia3"),
        made("z", "after head"),
    ]
    models = [base.adapt(*order) for order in itertools.permutations(specs)]
    assert {model.digest for model in models} == {models[0].digest}
    assert {model.order.names for model in models} == {("a", "b", "z", "gains")}
    assert models[0].order.layers == (("a", "b", "z"), ("gains",))
    assert all(torch.equal(model.tree(x), models[0].tree(x)) for model in models)
    assert not torch.equal(models[0].tree(x), base.tree(x))


def test_adapting_in_two_calls_is_adapting_in_one(base: Model, x: Tensor) -> None:
    first, second = made("a", f"add {FC}"), made("b", f"scale {FC}", after="a")
    at_once = base.adapt(second, first)
    one_by_one = base.adapt(first).adapt(second)
    assert one_by_one.digest == at_once.digest
    assert torch.equal(one_by_one.tree(x), at_once.tree(x))


@pytest.mark.parametrize("name", ["do", "scale", "name"])
def test_another_stack_has_another_digest(base: Model, name: str) -> None:
    plain = base.adapt(made("a", f"add {FC}"))
    other = {
        "do": made("a", "add head"),
        "scale": made("a", f"add {FC}", scale=0.5),
        "name": made("b", f"add {FC}"),
    }[name]
    assert base.adapt(other).digest != plain.digest


def test_the_users_word_is_an_order_and_the_other_word_is_the_other_program(
    base: Model, x: Tensor
) -> None:
    add, scale = f"add {FC}", f"scale {FC}"
    forward = base.adapt(made("a", add), made("b", scale, after="a"))
    backward = base.adapt(made("a", add, after="b"), made("b", scale))
    same = base.adapt(made("b", scale), made("a", add, before="b"))
    assert forward.order.names == ("a", "b")
    assert backward.order.names == ("b", "a")
    assert forward.digest == same.digest != backward.digest
    assert not torch.equal(forward.tree(x), backward.tree(x))
    [verdict] = forward.order.verdicts
    assert (verdict.a, verdict.b, verdict.word, verdict.at) == ("a", "b", "user", (FC,))
    assert "the stack says `b` after `a`" in verdict.reason


def test_a_manifests_order_is_told_with_who_says_so(
    base: Model, installed: Callable[..., Any]
) -> None:
    installed(ia3={"after": ["plain"]})
    model = base.adapt(made("b", f"add {FC}"), made("a", f"scale {FC}", use="ia3"))
    [verdict] = model.order.verdicts
    assert (verdict.a, verdict.b, verdict.word) == ("b", "a", "ordered")
    assert "ia3 declares after plain" in verdict.reason


def test_an_order_may_follow_through_a_third(base: Model) -> None:
    model = base.adapt(
        made("a", f"add {FC}"),
        made("between", "add head", after="a"),
        made("z", f"scale {FC}", after="between"),
    )
    assert model.order.names.index("a") < model.order.names.index("z")
    # Nothing makes `between` wait for `a` but words, which leave no trace in the program.
    assert model.order.layers == (("a", "between"), ("z",))


def test_a_pair_that_needs_a_word_says_so_and_shows_either_source(base: Model) -> None:
    error = refusal(base, made("lora", f"add {FC}"), made("gains", f"scale {FC}"))
    assert (error.code, error.where) == ("IA407", FC)
    assert error.remedy == (
        'after = ["gains"] in the table of `lora`, or after = ["lora"] in that of `gains`'
    )
    assert "gains, then lora:" in error.why
    assert "lora, then gains:" in error.why
    forward, backward = error.why.split("lora, then gains:")
    assert "fc__lora(x)" in forward
    assert "fc__gains(x)" in backward
    assert forward.split(":", 1)[1].strip() != backward.strip()


def test_the_cure_that_is_printed_cures(base: Model) -> None:
    refusal(base, made("lora", f"add {FC}"), made("gains", f"scale {FC}"))
    base.adapt(made("lora", f"add {FC}", after=["gains"]), made("gains", f"scale {FC}"))


def test_where_one_order_alone_works_the_cure_is_that_one(base: Model, x: Tensor) -> None:
    stack = made("new", f"replace {FC}"), made("lora", f"add {FC}")
    error = refusal(base, *stack)
    assert (error.code, error.remedy) == ("IA407", 'after = ["new"] in the table of `lora`')
    assert "refused: the replacement by adapter `new` would lose an edit" in error.why
    base.adapt(stack[0], made("lora", f"add {FC}", after="new")).tree(x)
    wrong = refusal(base, stack[0], made("lora", f"add {FC}", before="new"))
    assert wrong.code == "IA416"
    assert 'after = ["new"] for `lora`' in wrong.remedy


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (f"replace {FC}", f"replace {FC}"),
        ("replace layers.0.inner", f"add {FC}"),
        ("replace layers.0", "add layers.0.out"),
        ("replace group", "scale left"),
        ("tap head as seen", "tap group as seen"),
        ("provide seen", "provide seen"),
    ],
)
def test_what_can_not_be_together_is_a_conflict_in_both_orders(
    base: Model, one: str, other: str
) -> None:
    for after in ({}, {"after": "a"}):
        error = refusal(base, made("a", one), made("b", other, **after))
        assert (error.code, error.remedy) == ("IA416", "leave `a` or `b` out")


def test_what_reads_comes_before_what_replaces_what_was_read(base: Model, x: Tensor) -> None:
    reader, writer = made("a", "add head", reads=["layers.0.inner.fc.weight"]), f"replace {FC}"
    assert refusal(base, reader, made("b", writer)).code == "IA407"
    model = base.adapt(reader, made("b", writer, after="a"))
    assert "is made from `layers.0.inner.fc.weight`" in model.order.verdicts[0].reason
    assert refusal(base, reader, made("b", writer, before="a")).code == "IA416"


def test_what_is_read_at_many_sites_is_told_once(base: Model) -> None:
    sites = [FC, "head", "layers.1.inner.fc"]
    reader = made("a", "add layers.0.out", reads=[f"{site}.weight" for site in sites])
    writer = made("b", *(f"replace {site}" for site in sites), after="a")
    [verdict] = base.adapt(reader, writer).order.verdicts
    assert verdict.reason.count("is made from") == 1
    assert f"`a` is made from `{min(sites)}.weight`, which `b` replaces" in verdict.reason
    assert (verdict.at, verdict.deciding) == (tuple(sorted(sites)), 3)


@pytest.mark.parametrize(
    ("read", "site"),
    [("left.weight", "group"), ("layers.0", FC), ("layers.0.out.weight", "layers.0"), (FC, FC)],
)
def test_what_was_read_is_touched_by_what_changes_a_part_of_it_or_holds_it(
    base: Model, read: str, site: str
) -> None:
    stack = made("a", "add head", reads=[read]), made("b", f"replace {site}")
    assert refusal(base, *stack).code == "IA407"


@pytest.mark.parametrize("kind", ["add", "scale", "before", "after"])
def test_reading_the_pristine_model_is_free(base: Model, kind: str) -> None:
    reader = made("a", "add head", reads=[FC])
    assert base.adapt(reader, made("b", f"{kind} {FC}")).order.verdicts[0].word == "commute"


def test_a_value_asked_of_the_caller_is_not_captured(base: Model) -> None:
    asker = made("a", "use head hint")
    error = refusal(base, asker, made("b", "tap group as hint"))
    assert error.code == "IA407"
    assert "`a` asks for `hint`, a name that `b` binds" in error.why


def test_a_circle_is_the_shortest_with_each_reason(
    base: Model, installed: Callable[..., Any]
) -> None:
    installed(ia3={"after": ["lora"]}, lora={})
    error = refusal(
        base,
        made("d", "add head", after="c"),
        made("c", "add head", after="b"),
        made("b", "add head", after="d"),
        made("gains", f"scale {FC}", use="ia3", before="lora"),
        made("lora", f"add {FC}", use="lora"),
    )
    assert isinstance(error, Refused)
    short, long = error.problems
    assert (short.code, short.where) == ("IA415", "gains -> lora -> gains")
    assert short.why == (
        "`gains` before `lora`: the stack says `gains` before `lora`\n"
        "`lora` before `gains`: ia3 declares after lora"
    )
    assert long.where == "b -> c -> d -> b"


def test_all_problems_are_told_at_once(base: Model, installed: Callable[..., Any]) -> None:
    installed(
        picky={"requires": ["lora"], "conflicts": ["other"], "models": {"small": ">=2"}},
    )
    error = refusal(
        base,
        made("a", "add nowhere", after="nobody"),
        made("b", "add head", use="picky"),
        made("c", "scale head", use="other"),
        made("c", "add head"),
    )
    assert isinstance(error, Refused)
    assert [p.code for p in error.problems] == [
        "IA110",
        "IA403",
        "IA417",
        "IA416",
        "IA419",
        "IA407",
    ]
    for problem in error.problems:
        assert str(problem) in str(error)


def test_a_name_the_stack_does_not_have_is_an_error_with_the_nearest(base: Model) -> None:
    error = refusal(base, made("pirate", f"add {FC}"), made("b", "add head", after="pirat"))
    assert (error.code, error.remedy) == ("IA418", 'after = ["pirate"]')
    assert refusal(base, made("b", "add head", after="b")).code == "IA418"


def test_declarations_count_only_where_both_are_present(
    base: Model, installed: Callable[..., Any]
) -> None:
    installed(hermit={"after": ["absent"], "conflicts": ["absent"], "models": {"other": ">=9"}})
    assert base.adapt(made("a", "add head", use="hermit")).order.names == ("a",)


def test_up_to_three_disjoint_culprits_are_named(base: Model) -> None:
    pairs = [(made(f"a{i}", f"add {FC}"), made(f"b{i}", f"scale {FC}")) for i in range(5)]
    error = refusal(base, *itertools.chain(*pairs))
    assert isinstance(error, Refused)
    named = [sorted(p.what.split("`")[1::2]) for p in error.problems]
    assert named == [["a0", "b0"], ["a1", "b1"], ["a2", "b2"]]
    assert "22 more pairs wait for a word too" in error.problems[-1].why


def test_fifty_adapters_of_one_footprint_are_compared_once(base: Model) -> None:
    stack = [made(f"m{i}", f"add {FC}", "add head") for i in range(50)]
    order = base.adapt(*stack).order
    assert order.comparisons == 1
    assert len(order.verdicts) == 50 * 49 / 2
    assert len({id(verdict.at) for verdict in order.verdicts}) == 1


def test_each_pair_of_footprints_is_compared_once_and_no_address_is_sorted_unasked(
    base: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    kinds = (f"add {FC}", "add head", "tap left as seen{}")
    stack = [made(f"m{i}", kinds[i % 3].format(i)) for i in range(30)]
    monkeypatch.setattr("inarch.resolve.places.Places._all", None)
    order = base.adapt(*stack).order
    taps = 10
    assert order.comparisons == 2 + 1 + 2 * taps + taps * (taps - 1) // 2


def test_ordering_different_footprints_spells_no_address_and_seeks_ways_once_a_member(
    base: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    sites = sorted(base.pristine[""].form.index)[:6]
    stack = [
        made(
            f"m{i:02}",
            *(
                f"{('add', 'scale', 'before')[(i + j) % 3]} {s}"
                for j, s in enumerate(sites)
                if i >> j & 1
            ),
            after=f"m{i - 1:02}" if i > 1 else (),
        )
        for i in range(1, 40)
    ]
    asked: list[str] = []

    def counted(owner: Any, name: str) -> None:
        real = getattr(owner, name)

        def count(*args: Any) -> Any:
            asked.append(name)
            return real(*args)

        monkeypatch.setattr(owner, name, count)

    for owner, name in (
        (places.Numbered, "spelled"),
        (footprint.Grounds, "inside"),
        (footprint.Grounds, "touched"),
        (graph, "origins"),
    ):
        counted(owner, name)
    order = base.adapt(*stack).order
    assert order.comparisons == len(order.verdicts) == 39 * 38 / 2
    assert asked == ["origins"] * 38


def test_where_a_pair_meets_is_as_good_as_a_tuple(base: Model) -> None:
    stack = made("a", f"add {FC}", "add head"), made("b", f"scale {FC}", "add head", after="a")
    [verdict] = base.adapt(*stack).order.verdicts
    where = (FC, "head")
    assert verdict.at == where
    assert where == verdict.at
    assert hash(verdict.at) == hash(where)
    assert json.dumps(verdict.as_dict()["at"]) == json.dumps(where)
    assert (len(verdict.at), verdict.deciding) == (2, 1)
    assert pickle.loads(pickle.dumps(verdict)) == copy.deepcopy(verdict) == verdict


def test_what_is_merged_comes_before_all_that_is_not(base: Model) -> None:
    model = base.adapt(made("a", f"scale {FC}"), made("b", f"add {FC}", after="a"))
    with pytest.raises(InarchError) as caught:
        model.merge("b")
    assert caught.value.code == "IA409"
    assert "acts on the scale of `a`" in caught.value.why


def test_dropping_a_member_keeps_the_order_of_the_others(base: Model, x: Tensor) -> None:
    model = base.adapt(
        made("a", f"add {FC}"), made("b", f"scale {FC}", after="a"), made("c", "add head")
    )
    dropped = model.without("c")
    assert dropped.order.names == ("a", "b")
    assert model.without("a").order.names == ("b", "c")
    assert torch.equal(
        dropped.tree(x),
        base.adapt(made("a", f"add {FC}"), made("b", f"scale {FC}", after="a")).tree(x),
    )
