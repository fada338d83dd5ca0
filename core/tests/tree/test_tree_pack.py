"""Packing a tree: what is one product afterwards, what stays apart, and whose memory it is."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from inarch.errors import InarchError
from inarch.tree import Chain, Edit, Identity, Let, Parallel, Product, Seq, Sum, Use
from inarch.tree.pack import packed

QKV = {"q": "q", "k": "k", "v": "v"}
GATED = {"mlp.gate": "gate", "mlp.up": "up"}


def joined(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return query * key.tanh() + value


def tree(bias: bool = True) -> Chain:
    torch.manual_seed(0)
    layers = {name: nn.Linear(6, 8, bias=bias) for name in "qkv"}
    mlp = Chain(Product(gate=nn.Linear(8, 5), up=nn.Linear(8, 5)), down=nn.Linear(5, 6))
    return Chain(Parallel(**layers), joined=joined, mlp=mlp).requires_grad_(False)


def pack(tree: Chain, own: Chain | None = None, *groups: Mapping[str, str]) -> Chain:
    return packed(tree, groups or (QKV, GATED), own or tree)


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(2.0))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor


def adjacent(chain: Chain) -> bool:
    """Whether every pack's layers are views of its module's memory."""
    whole = True
    for pack in chain.packs:
        rows = chain.module_at(pack.name)
        at = rows.weight.data_ptr()
        for site in pack.sites:
            layer = chain.module_at(site)
            whole &= layer.weight.data_ptr() == at
            at += layer.weight.nbytes
    return whole


@pytest.mark.parametrize("bias", [True, False])
def test_layers_of_one_input_are_one_product_of_equal_values(bias: bool) -> None:
    plain = tree(bias)
    x = torch.randn(3, 6)
    expected = plain(x)
    one = pack(plain)
    assert one.source.splitlines()[1:3] == [
        "    q, k, v = self.qkv(x)",
        "    joined_ = joined(q, k, v)",
    ]
    assert "gate, up = self.gate_up(x)" in one.mlp.source
    torch.testing.assert_close(one(x), expected, rtol=1e-6, atol=1e-6)
    assert torch.equal(plain(x), expected)


def test_names_and_bits_are_those_of_the_plain_tree() -> None:
    plain = tree()
    before = {name: tensor.clone() for name, tensor in plain.state_dict().items()}
    one = pack(plain)
    for either in (one, plain):
        state = either.state_dict()
        assert list(state) == list(before)
        assert all(torch.equal(tensor, before[name]) for name, tensor in state.items())
    assert [n for n, _ in one.named_parameters()] == [n for n, _ in plain.named_parameters()]


def test_both_trees_hold_one_memory() -> None:
    plain = tree()
    one = pack(plain)
    assert one.q is plain.q
    assert adjacent(one)
    assert adjacent(one.mlp)
    with torch.no_grad():
        plain.k.weight.add_(1.0)
    x = torch.randn(2, 6)
    torch.testing.assert_close(one(x), plain(x), rtol=1e-6, atol=1e-6)


def test_packing_again_copies_nothing() -> None:
    plain = tree()
    first, second = pack(plain), pack(plain)
    assert first.qkv.weight.data_ptr() == second.qkv.weight.data_ptr()
    assert first.form is second.form


def test_a_layer_whose_input_an_edit_changes_stays_apart() -> None:
    plain = tree()
    edited = plain.edit([Edit.before("q", Twice(), "a")])
    x = torch.randn(3, 6)
    expected = edited(x)
    one = pack(edited, plain)
    assert one.packs[0].sites == ("k", "v")
    assert "q = self.q(" in one.source
    torch.testing.assert_close(one(x), expected, rtol=1e-6, atol=1e-6)


def test_layers_whose_input_is_a_named_value_are_packed_after_it_is_bound() -> None:
    torch.manual_seed(1)
    layers = {name: Seq(Use("text"), **{name: nn.Linear(6, 8)}) for name in "kv"}
    plain = Chain(
        Let("text", ("embed", nn.Linear(6, 6))),
        Parallel(query=Seq(q=nn.Linear(6, 8)), key=layers["k"], value=layers["v"]),
        joined=joined,
    )
    one = pack(plain, None, QKV)
    assert "k, v = self.kv(text)" in one.source
    x = torch.randn(3, 6)
    torch.testing.assert_close(one(x), plain(x), rtol=1e-6, atol=1e-6)


def test_a_value_asked_of_the_caller_is_shared_too() -> None:
    layers = {name: Seq(Use("text"), **{name: nn.Linear(6, 8)}) for name in "kv"}
    plain = Chain(Parallel(Seq(q=nn.Linear(6, 8)), *layers.values()), joined=joined)
    one = pack(plain, None, QKV)
    x, text = torch.randn(3, 6), torch.randn(3, 6)
    torch.testing.assert_close(one(x, text=text), plain(x, text=text), rtol=1e-6, atol=1e-6)
    assert one.packs[0].sites == ("k", "v")


@pytest.mark.parametrize(
    "other",
    [
        nn.Linear(6, 8, bias=False),
        nn.Linear(6, 8, dtype=torch.float64),
        nn.Identity(),
        type("Own", (nn.Linear,), {})(6, 8),
    ],
    ids=["no bias", "another dtype", "another class", "a subclass"],
)
def test_layers_that_are_not_alike_stay_apart(other: nn.Module) -> None:
    plain = Chain(Sum(q=nn.Linear(6, 8), k=other))
    assert pack(plain, None, QKV).form is plain.form


def test_terms_on_one_of_them_give_equal_values_and_gradients() -> None:
    plain = tree()
    low = nn.Linear(6, 8, bias=False)
    edited = plain.edit([Edit.add("q", low, "a"), Edit.scale("v", nn.Linear(6, 8), "b")])
    grads = []
    for one in (edited, pack(edited, plain)):
        x = torch.randn(3, 6, generator=torch.Generator().manual_seed(2)).requires_grad_()
        one(x).square().sum().backward()
        grads.append((x.grad, low.weight.grad))
        low.weight.grad = None
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-5, atol=1e-5)


def test_gradients_reach_each_layer_where_the_base_is_trained() -> None:
    plain = tree().requires_grad_(True)
    x = torch.randn(3, 6)
    plain(x).square().sum().backward()
    expected = {name: p.grad.clone() for name, p in plain.named_parameters()}
    one = pack(plain)
    one.zero_grad()
    one(x).square().sum().backward()
    for name, parameter in one.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-5, atol=1e-5)


def pickled(tree: Chain) -> Chain:
    buffer = io.BytesIO()
    pickle.dump(tree, buffer)
    return pickle.loads(buffer.getvalue())


def cast(tree: Chain) -> Chain:
    return tree.double().float()


def loaded(tree: Chain) -> Chain:
    state = {name: tensor.clone() for name, tensor in tree.state_dict().items()}
    tree.load_state_dict(state, assign=True)
    return tree


@pytest.mark.parametrize("how", [copy.deepcopy, pickled, cast, loaded])
def test_layers_are_rows_of_their_pack_after(how: object) -> None:
    one = pack(tree())
    x = torch.randn(3, 6)
    expected = one(x)
    other = how(one)  # type: ignore[operator]
    assert torch.equal(other(x), expected)
    assert adjacent(other)
    assert adjacent(other.mlp)


def test_an_edit_after_a_packed_layer_is_fine_and_one_before_it_is_refused() -> None:
    one = pack(tree())
    x = torch.randn(3, 6)
    twice = one.edit([Edit.after("q", Twice(), "a")])
    q, k, v = (F.linear(x, layer.weight, layer.bias) for layer in (one.q, one.k, one.v))
    torch.testing.assert_close(twice(x), one.mlp(joined(2 * q, k, v)))
    for edit in (Edit.before("q", Identity(), "a"), Edit.wrap("q", Seq(Identity()), "a")):
        with pytest.raises(InarchError) as caught:
            one.edit([edit])
        assert caught.value.code == "IA119"


def test_the_module_of_a_packed_site_is_its_layer() -> None:
    one = pack(tree())
    assert one.select("{q,k,v}", type=nn.Linear, count=3).modules == (one.q, one.k, one.v)
