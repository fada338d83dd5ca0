"""Packed models beside plain ones: every family, and every kind of adapter that meets a pack."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import inarch
from inarch.testing import tiny_models
from inarch.testing.subject import assert_close, outputs, trained
from inarch.tree import Chain

SPECS = {
    "lora": inarch.adapter("lora", rank=2),
    "lora on one": inarch.adapter("lora", rank=2, targets=("attention.query",)),
    "lora on keys": inarch.adapter("lora", rank=2, targets=("attention.key", "attention.value")),
    "dora": inarch.adapter("lora", rank=2, use_dora=True),
    "ia3": inarch.adapter("ia3"),
    "prefix": inarch.adapter("prefix", tokens=3),
    "parallel": inarch.adapter("bottleneck", kind="parallel", attention=True),
    "steering": inarch.adapter("steering"),
}
LLAMAS = list(tiny_models(families=["llama"]))
IDS = torch.tensor([[1, 5, 2, 8, 3, 0, 4], [6, 2, 7, 7, 1, 4, 3]])
# In float32 the order of a sum's terms is the processor's choice, and a UNet makes much of it.
EXACT = torch.float64
WITHIN = 1e-12


class Products(TorchDispatchMode):
    """Counts matrix products."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default)
        return func(*args, **(kwargs or {}))


def packs(model: Any) -> Iterator[Any]:
    for tree in model.trees.values():
        yield from (p for chain in tree.modules() if isinstance(chain, Chain) for p in chain.packs)


def memory(*models: Any) -> int:
    """Bytes of all that the trees hold, each piece of memory once."""
    tensors = [
        t
        for model in models
        for tree in model.trees.values()
        for t in (*tree.parameters(), *tree.buffers())
    ]
    return sum(
        {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values()
    )


def same_bits(one: dict[str, Tensor], two: dict[str, Tensor]) -> bool:
    return list(one) == list(two) and all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("tiny", list(tiny_models()), ids=str)
def test_a_packed_model_gives_what_it_gave(tiny: Any) -> None:
    model = tiny.build(dtype=EXACT)
    expected, state = outputs(model), {k: t.clone() for k, t in model.state_dict().items()}
    one = model.packed()
    assert_close(outputs(one), expected, WITHIN)
    assert same_bits(one.state_dict(), state)
    assert same_bits(model.state_dict(), state)


@pytest.mark.parametrize("tiny", LLAMAS, ids=str)
def test_seven_products_of_a_layer_are_four(tiny: Any) -> None:
    model = tiny.build()
    one = model.packed()
    layers = model.config.num_hidden_layers
    counts: list[int] = []
    for either in (model, one):
        with Products() as products:
            either(IDS)
        counts.append(products.count)
    assert counts == [7 * layers + 1, 4 * layers + 1]
    assert {pack.sites for pack in packs(one)} == {
        ("q_proj", "k_proj", "v_proj"),
        ("gate_proj", "up_proj"),
    }


def test_attention_to_text_packs_keys_and_values_and_a_clip_s_encoder_all_three() -> None:
    model = next(tiny_models(families=["stable-diffusion"])).build().packed()
    unet, text = (
        {
            pack.sites
            for chain in model.trees[tree].modules()
            for pack in getattr(chain, "packs", ())
        }
        for tree in ("unet", "text_encoder")
    )
    assert unet == {("to_q", "to_k", "to_v"), ("to_k", "to_v")}
    assert text == {("q_proj", "k_proj", "v_proj")}


@pytest.mark.parametrize("tiny", LLAMAS, ids=str)
@pytest.mark.parametrize("kind", SPECS)
def test_an_adapter_of_a_packed_model_does_what_it_does(tiny: Any, kind: str) -> None:
    base = tiny.build(dtype=EXACT)
    plain = trained(base, SPECS[kind])
    expected = plain(IDS)
    one = trained(base.packed(), SPECS[kind])
    assert one.tree.form is plain.packed().tree.form
    assert_close([one(IDS)], [expected], WITHIN)
    assert_close([plain(IDS)], [expected], WITHIN)
    assert len(list(packs(one))) == 2 * base.config.num_hidden_layers
    assert one.without(SPECS[kind].name).tree.form is base.packed().tree.form


@pytest.mark.parametrize("kind", ["lora", "lora on one", "dora", "ia3"])
def test_gradients_are_those_of_the_plain_model(kind: str) -> None:
    base = LLAMAS[0].build(dtype=EXACT)
    plain = trained(base, SPECS[kind])
    grads = []
    for model in (plain, plain.packed()):
        [member] = model.adapters
        member.trainable = True
        model(IDS).square().sum().backward()
        grads.append({name: p.grad.clone() for name, p in member.parameters().items()})
        for parameter in member.parameters().values():
            parameter.grad = None
    assert_close(grads[1].values(), grads[0].values(), WITHIN)


@pytest.mark.parametrize("kind", ["lora on one", "dora", "ia3"])
def test_merging_into_a_packed_model_leaves_the_base_and_merges(kind: str) -> None:
    base = LLAMAS[0].build(dtype=EXACT)
    before = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    plain = trained(base, SPECS[kind]).merge()
    expected = plain(IDS)
    one = trained(base.packed(), SPECS[kind]).merge()
    assert_close([one(IDS)], [expected], WITHIN)
    assert same_bits(one.state_dict(), plain.state_dict())
    assert same_bits(base.state_dict(), before)
    assert one.tree.model.layers[0].self_attn.packs
    assert_close([base.packed()(IDS)], [base(IDS)], WITHIN)


def test_a_base_and_its_packed_models_hold_one_copy_of_the_weights() -> None:
    base = LLAMAS[0].build()
    once = memory(base)
    one = base.packed()
    adapted = trained(base.packed(), SPECS["steering"])
    assert memory(base, one) == once
    own = sum(p.nbytes for p in adapted.adapters[0].parameters().values())
    scales = sum({id(e.scale): e.scale.nbytes for e in adapted.adapters[0].edges}.values())
    assert memory(base, one, adapted) == once + own + scales


def test_generating_with_a_packed_model_gives_the_same_tokens() -> None:
    base = LLAMAS[0].build()
    options: dict[str, Any] = {"max_new_tokens": 8, "stop": frozenset()}
    expected = list(base.generate_ids([[1, 2, 3], [4]], **options))
    assert list(base.packed().generate_ids([[1, 2, 3], [4]], **options)) == expected


def test_a_model_is_loaded_packed_and_its_state_dict_saved_as_any(tmp_path: Path) -> None:
    import json

    tiny = LLAMAS[1]
    base = tiny.build(dtype=EXACT)
    (tmp_path / "config.json").write_text(json.dumps(tiny.config))
    state = {name: t.clone() for name, t in base.state_dict().items() if name != "lm_head.weight"}
    save_file(state, tmp_path / "model.safetensors")
    one = inarch.load(tmp_path, packed=True)
    assert next(packs(one)).sites == ("q_proj", "k_proj", "v_proj")
    assert_close([one(IDS)], [base(IDS)], WITHIN)
    again = {name: t for name, t in one.state_dict().items() if name != "lm_head.weight"}
    save_file(again, tmp_path / "again.safetensors")
    assert same_bits(
        dict(sorted(load_file(tmp_path / "again.safetensors").items())), dict(sorted(state.items()))
    )
