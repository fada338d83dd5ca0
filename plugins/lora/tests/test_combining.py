"""A weighted sum of LoRAs is exactly that, and what is saved of it is PEFT's own sum."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import inarch
from inarch.adapters import Model
from inarch.errors import InarchError
from inarch.nn import TransposedLinear
from inarch.tree import Chain

PARTS: dict[str, dict[str, Any]] = {
    "a": {"rank": 2, "alpha": 4},
    "b": {"rank": 5, "alpha": 3, "targets": ["attention.*"]},
    "c": {"rank": 3, "use_rslora": True, "targets": ["mlp.*", "attention.query"]},
}
WEIGHTS = {"a": 0.7, "b": -0.4, "c": 1.5}


def trained(base: Model, folder: Path, name: str, **options: Any) -> Path:
    model = base.adapt(inarch.adapter("lora", **options))
    generator = torch.Generator().manual_seed(ord(name[0]))
    for parameter in model.adapter_parameters("lora").values():
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return model.save_adapter("lora", folder / name)


def loaded(base: Model, folder: Path, parts: dict[str, dict[str, Any]] = PARTS) -> Model:
    specs = [
        inarch.adapter("lora", name=name, weights=trained(base, folder, name, **options))
        for name, options in parts.items()
    ]
    return base.adapt(*specs)


def rescaled(model: Model, weights: dict[str, float]) -> Model:
    for name, weight in weights.items():
        model.adapters[name].scale = weight
    return model


def refusal(model: Model, *args: Any, **options: Any) -> InarchError:
    with pytest.raises(InarchError) as caught:
        model.combine(*args, **options)
    return caught.value


def test_a_sum_does_what_its_parts_do_side_by_side(
    llamas: tuple[Any, Model], ids: Tensor, tmp_path: Path
) -> None:
    base = llamas[1]
    model = loaded(base, tmp_path)
    mix = model.combine(WEIGHTS)
    assert mix.adapters.names == ("mix",)
    assert not mix.adapters["mix"].trainable
    expected = rescaled(loaded(base, tmp_path), WEIGHTS)(ids)
    torch.testing.assert_close(mix(ids), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(mix.merge()(ids), expected, rtol=1e-4, atol=1e-4)
    assert mix.adapters["mix"].modules["model.layers.0.self_attn.q_proj"].rank == 2 + 5 + 3
    assert mix.adapters["mix"].modules["model.layers.0.mlp.up_proj"].rank == 2 + 3


def test_present_scales_and_block_scales_count(
    llamas: tuple[Any, Model], ids: Tensor, tmp_path: Path
) -> None:
    base = llamas[1]
    file = trained(base, tmp_path, "a", rank=2, alpha=3)
    other = trained(base, tmp_path, "b", rank=4)
    halved = {"model.layers.1": 0.5}
    model = base.adapt(
        inarch.adapter("lora", name="a", weights=file, scale=0.3, block_scales=halved),
        inarch.adapter("lora", name="b", weights=other),
    )
    mix = model.combine({"a": 1, "b": 1})
    torch.testing.assert_close(mix(ids), model(ids), rtol=1e-5, atol=1e-5)


def test_parts_go_and_others_stay_as_they_are(
    llamas: tuple[Any, Model], ids: Tensor, tmp_path: Path
) -> None:
    model = loaded(llamas[1], tmp_path)
    before = model(ids)
    mix = model.combine({"a": 1.0, "c": 1.0}, name="a")
    assert mix.adapters.names == ("a", "b")
    torch.testing.assert_close(mix(ids), before, rtol=1e-5, atol=1e-5)
    assert mix.adapters["b"].slot is model.adapters["b"].slot
    assert torch.equal(model(ids), before)


def test_what_is_saved_of_a_sum_is_what_peft_makes_by_concatenation(
    llamas: tuple[Any, Model], ids: Tensor, tmp_path: Path
) -> None:
    peft = pytest.importorskip("peft")
    theirs, base = llamas
    plain = {"a": PARTS["a"], "b": {"rank": 5, "alpha": 3}}
    model = loaded(base, tmp_path, plain)
    mix = model.combine({"a": 0.7, "b": 0.4})
    folder = mix.save_adapter("mix", tmp_path / "mix")

    combined = peft.PeftModel.from_pretrained(copy.deepcopy(theirs), tmp_path / "a", "a")
    combined.load_adapter(tmp_path / "b", "b")
    combined.add_weighted_adapter(["a", "b"], [0.7, 0.4], "both", combination_type="cat")
    combined.set_adapter("both")
    expected = combined.eval()(ids).logits
    torch.testing.assert_close(mix(ids), expected, rtol=1e-5, atol=1e-5)

    again = peft.PeftModel.from_pretrained(copy.deepcopy(theirs), folder).eval()
    torch.testing.assert_close(again(ids).logits, expected, rtol=1e-5, atol=1e-5)
    ours = base.adapt(inarch.adapter("lora", weights=folder))
    assert torch.equal(ours(ids), mix(ids))


def test_parts_of_different_targets_are_saved_for_peft_layer_by_layer(
    llamas: tuple[Any, Model], ids: Tensor, tmp_path: Path
) -> None:
    peft = pytest.importorskip("peft")
    theirs, base = llamas
    mix = loaded(base, tmp_path).combine(WEIGHTS)
    folder = mix.save_adapter("mix", tmp_path / "mix")
    again = peft.PeftModel.from_pretrained(copy.deepcopy(theirs), folder).eval()
    torch.testing.assert_close(again(ids).logits, mix(ids), rtol=1e-5, atol=1e-5)


def test_a_lower_rank_is_pefts_own_by_singular_values_and_says_what_it_leaves_out(
    llamas: tuple[Any, Model], ids: Tensor, tmp_path: Path
) -> None:
    peft = pytest.importorskip("peft")
    theirs, base = llamas
    model = loaded(base, tmp_path, {"a": PARTS["a"], "b": {"rank": 5, "alpha": 3}})
    mix = model.combine({"a": 0.7, "b": 0.4}, rank=3)

    combined = peft.PeftModel.from_pretrained(copy.deepcopy(theirs), tmp_path / "a", "a")
    combined.load_adapter(tmp_path / "b", "b")
    combined.add_weighted_adapter(
        ["a", "b"], [0.7, 0.4], "both", combination_type="svd", svd_rank=3
    )
    combined.set_adapter("both")
    torch.testing.assert_close(mix(ids), combined.eval()(ids).logits, rtol=1e-4, atol=1e-4)

    whole = model.combine({"a": 0.7, "b": 0.4}).adapters["mix"].modules
    discarded = mix.adapters["mix"].adapter.discarded
    for address, edge in mix.adapters["mix"].modules.items():
        exact, near = whole[address].product(), edge.product()
        expected = ((exact - near).square().sum() / exact.square().sum()).item()
        assert edge.rank == 3
        assert discarded[address] == pytest.approx(expected, rel=1e-3, abs=1e-6)
        assert 0 < discarded[address] < 1


def test_a_rank_that_is_enough_discards_nothing(llamas: tuple[Any, Model], tmp_path: Path) -> None:
    mix = loaded(llamas[1], tmp_path).combine(WEIGHTS, rank=10)
    assert set(mix.adapters["mix"].adapter.discarded.values()) == {0.0}


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (lambda: nn.Linear(6, 6), (4, 6)),
        (lambda: TransposedLinear(6, 6), (4, 6)),
        (lambda: nn.Embedding(9, 6), None),
        (lambda: nn.Conv1d(4, 6, 3, padding=1), (2, 4, 7)),
        (lambda: nn.Conv2d(4, 6, (3, 2), stride=2), (2, 4, 7, 8)),
        (lambda: nn.Conv2d(4, 6, 3, groups=2), (2, 4, 7, 8)),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_kind_of_layer_has_sums(
    layer: Any, shape: Any, dtype: torch.dtype, tmp_path: Path
) -> None:
    torch.manual_seed(3)
    chain = Chain(layer=layer()).requires_grad_(False).eval().to(dtype)
    base = Model({"": chain}, roles={"mlp.up": "layer"})
    x = torch.randint(0, 9, (3, 5)) if shape is None else torch.randn(shape, dtype=dtype)
    parts = {
        "a": {"rank": 2, "alpha": 3, "targets": ["layer"], "lora_bias": shape is not None},
        "b": {"rank": 4, "targets": ["layer"]},
    }
    weights = {"a": 0.5, "b": -1.25}
    mix = loaded(base, tmp_path, parts).combine(weights)
    expected = rescaled(loaded(base, tmp_path, parts), weights).tree(x)
    close = 1e-5 if dtype == torch.float32 else 3e-2
    torch.testing.assert_close(mix.tree(x), expected, rtol=close, atol=close)


@pytest.mark.parametrize("start", ["pissa", "olora"])
def test_one_that_began_from_the_base_is_a_part_with_what_it_began_from_taken_away(
    llamas: tuple[Any, Model], ids: Tensor, tmp_path: Path, start: str
) -> None:
    base = llamas[1]
    model = loaded(base, tmp_path, {"a": {"rank": 2, "start": start}, "b": {"rank": 3}})
    mix = model.combine({"a": 0.6, "b": 1.0})
    expected = rescaled(model, {"a": 0.6})(ids)
    torch.testing.assert_close(mix(ids), expected, rtol=1e-4, atol=1e-4)
    assert mix.adapters["mix"].modules["model.layers.0.self_attn.q_proj"].rank == 2 + 2 + 3


@pytest.mark.parametrize("bias", ["lora_only", "all"])
def test_biases_are_summed(
    llamas: tuple[Any, Model], ids: Tensor, tmp_path: Path, bias: str
) -> None:
    base = llamas[1]
    model = loaded(base, tmp_path, {"a": {"rank": 2, "bias": bias}, "b": {"rank": 3}})
    mix = model.combine({"a": 0.6, "b": -1.0})
    folder = mix.save_adapter("mix", tmp_path / "mix")
    again = base.adapt(inarch.adapter("lora", weights=folder))
    expected = rescaled(model, {"a": 0.6, "b": -1.0})(ids)
    torch.testing.assert_close(mix(ids), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(again(ids), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "why"),
    [({"use_dora": True}, "magnitude"), ({"algorithm": "loha"}, "LoHa")],
)
def test_terms_without_a_sum_are_refused_with_the_reason(
    llamas: tuple[Any, Model], tmp_path: Path, options: dict[str, Any], why: str
) -> None:
    model = loaded(llamas[1], tmp_path, {"a": {"rank": 2}, "b": {"rank": 2, **options}})
    error = refusal(model, {"a": 1.0, "b": 1.0})
    assert (error.code, "`b`" in error.what, why in error.why) == ("IA499", True, True)


@pytest.mark.parametrize(
    ("weights", "options", "code"),
    [
        ({}, {}, "IA499"),
        ({"a": 0.0}, {}, "IA499"),
        ({"a": float("nan")}, {}, "IA499"),
        ({"a": "1"}, {}, "IA499"),
        (["a", "b"], {}, "IA499"),
        ({"nobody": 1.0}, {}, "IA403"),
        ({"a": 1.0}, {"name": "b"}, "IA499"),
        ({"a": 1.0}, {"name": "no name"}, "IA116"),
        ({"a": 1.0}, {"rank": 0}, "IA499"),
    ],
)
def test_what_can_t_be_asked_for_is_refused_and_changes_nothing(
    llamas: tuple[Any, Model], ids: Tensor, tmp_path: Path, weights: Any, options: Any, code: str
) -> None:
    model = loaded(llamas[1], tmp_path)
    before = model(ids)
    assert refusal(model, weights, **options).code == code
    assert torch.equal(model(ids), before)


def test_a_sum_has_a_digest_of_what_it_was_made_of(
    llamas: tuple[Any, Model], tmp_path: Path
) -> None:
    model = loaded(llamas[1], tmp_path)
    digests = {
        model.combine({"a": 0.5, "b": 0.5}).digest,
        model.combine({"b": 0.5, "a": 0.5}).digest,
        model.combine({"a": 0.5, "b": 0.6}).digest,
        model.combine({"a": 0.5, "b": 0.5}, rank=2).digest,
    }
    assert len(digests) == 3


def test_a_sum_can_be_swapped_and_trained(
    llamas: tuple[Any, Model], ids: Tensor, tmp_path: Path
) -> None:
    base = llamas[1]
    mix = loaded(base, tmp_path).combine({"a": 1.0, "b": 1.0})
    mix.adapters["mix"].trainable = True
    mix(ids).sum().backward()
    assert all(p.grad is not None for p in mix.adapter_parameters("mix").values())
    mix.adapters["mix"].trainable = False
    other = loaded(base, tmp_path).combine({"a": 1.0, "b": -2.0})
    mix.swap("mix", other.save_adapter("mix", tmp_path / "other"))
    assert torch.equal(mix(ids), other(ids))
