"""A LoRA with a capacity holds files of any rank up to it, and compiled code never notices."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import inarch
from inarch.adapters import Model
from inarch.errors import InarchError
from inarch.nn import TransposedLinear
from inarch.tree import Chain

RANKS = ((2, 4.0), (3, 3.0), (16, 8.0), (8, 2.0), (5, 40.0), (11, 1.0))


def trained(base: Model, seed: int, **options: Any) -> Model:
    model = base.adapt(inarch.adapter("lora", **options))
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.adapter_parameters("lora").values():
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return model


def saved(base: Model, folder: Path, seed: int = 0, **options: Any) -> Path:
    return trained(base, seed, **options).save_adapter("lora", folder)


@pytest.fixture
def files(llamas: tuple[Any, Model], tmp_path: Path) -> list[Path]:
    base = llamas[1]
    return [
        saved(base, tmp_path / f"r{rank}", rank, rank=rank, alpha=alpha) for rank, alpha in RANKS
    ]


def header(folder: Path) -> dict[str, Any]:
    data = (folder / "adapter_model.safetensors").read_bytes()
    return json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])


def test_twenty_swaps_among_ranks_and_alphas_compile_once_and_give_each_files_outputs(
    llamas: tuple[Any, Model], files: list[Path], ids: Tensor
) -> None:
    from torch._dynamo.testing import CompileCounter

    base = llamas[1]
    model = base.adapt(inarch.adapter("lora", weights=files[0], capacity=16))
    counter = CompileCounter()
    torch._dynamo.reset()
    compiled = torch.compile(model.tree, backend=counter, fullgraph=True)
    given = {"positions": torch.arange(9)[None], "mask": None}
    for i in range(20):
        file = files[i * 7 % len(files)]
        model.swap("lora", file)
        expected = base.adapt(inarch.adapter("lora", weights=file))(ids)
        torch.testing.assert_close(model(ids), expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(compiled(ids, **given), expected, rtol=1e-4, atol=1e-4)
    assert counter.frame_count == 1


def test_what_is_computed_together_with_other_adapters_follows_a_swap(
    llamas: tuple[Any, Model], files: list[Path], ids: Tensor
) -> None:
    from torch._dynamo.testing import CompileCounter

    base = llamas[1]
    other = inarch.adapter("lora", weights=files[3], name="other", scale=0.5)
    model = base.adapt(other, inarch.adapter("lora", weights=files[0], capacity=16))
    counter = CompileCounter()
    torch._dynamo.reset()
    compiled = torch.compile(model.tree, backend=counter, fullgraph=True)
    for file in (files[1], files[2], files[0], files[4]):
        with torch.inference_mode():
            model.swap("lora", file)
            expected = base.adapt(other, inarch.adapter("lora", weights=file))(ids)
            torch.testing.assert_close(model(ids), expected, rtol=1e-5, atol=1e-5)
        found = compiled(ids, positions=torch.arange(9)[None], mask=None)
        torch.testing.assert_close(found, expected.clone(), rtol=1e-4, atol=1e-4)
    assert counter.frame_count == 1


def test_a_slot_is_to_the_bit_what_its_file_makes_in_a_new_one(
    llamas: tuple[Any, Model], files: list[Path], ids: Tensor
) -> None:
    base = llamas[1]
    model = base.adapt(inarch.adapter("lora", weights=files[0], capacity=16))
    first = model(ids)
    for file in (*files[1:], files[0]):
        model.swap("lora", file)
        fresh = base.adapt(inarch.adapter("lora", weights=file, capacity=16))
        assert torch.equal(model(ids), fresh(ids))
        assert model.digest == fresh.digest
    assert torch.equal(model(ids), first)


def test_what_a_slot_holds_is_saved_at_its_own_rank_and_alpha(
    llamas: tuple[Any, Model], files: list[Path], tmp_path: Path
) -> None:
    base = llamas[1]
    model = base.adapt(inarch.adapter("lora", weights=files[0], capacity=16))
    for file in files:
        model.swap("lora", file)
        again = model.save_adapter("lora", tmp_path / "again")
        assert header(again) == header(file)
        name = "adapter_config.json"
        assert (again / name).read_text() == (file / name).read_text()
        for key, tensor in load_file(file / "adapter_model.safetensors").items():
            assert torch.equal(load_file(again / "adapter_model.safetensors")[key], tensor)


def test_a_slot_is_merged_to_the_bits_that_its_file_is(
    llamas: tuple[Any, Model], files: list[Path], ids: Tensor
) -> None:
    base = llamas[1]
    slot = base.adapt(inarch.adapter("lora", weights=files[0], capacity=16))
    plain = base.adapt(inarch.adapter("lora", weights=files[0]))
    assert torch.equal(slot.merge()(ids), plain.merge()(ids))


def test_training_in_a_slot_leaves_the_padding_zero_and_learns_what_it_would_without(
    llamas: tuple[Any, Model], files: list[Path], ids: Tensor
) -> None:
    base = llamas[1]
    slot = base.adapt(inarch.adapter("lora", weights=files[1], capacity=16))
    plain = base.adapt(inarch.adapter("lora", weights=files[1]))
    for model in (slot, plain):
        model.adapters["lora"].trainable = True
        optimizer = torch.optim.AdamW(
            model.adapter_parameters("lora").values(), lr=1e-2, weight_decay=0.1
        )
        for _ in range(3):
            model(ids).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
    for address, edge in slot.adapters["lora"].modules.items():
        own = plain.adapters["lora"].modules[address]
        assert (edge.rank, edge.lora_A.shape[0]) == (3, 16)
        assert not edge.lora_A[3:].any()
        assert not edge.lora_B[:, 3:].any()
        torch.testing.assert_close(edge.lora_A[:3], own.lora_A, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(edge.lora_B[:, :3], own.lora_B, rtol=1e-3, atol=1e-4)


def test_a_fresh_slot_begins_as_the_adapter_without_room_does(llamas: tuple[Any, Model]) -> None:
    drawn = []
    for options in ({}, {"capacity": 16}):
        torch.manual_seed(5)
        model = llamas[1].adapt(inarch.adapter("lora", rank=4, **options))
        drawn.append(model.adapters["lora"].modules)
    for address, edge in drawn[0].items():
        assert torch.equal(drawn[1][address].own("lora_A", drawn[1][address].lora_A), edge.lora_A)
        assert not drawn[1][address].lora_B.any()


def test_a_fresh_slot_takes_files(
    llamas: tuple[Any, Model], files: list[Path], ids: Tensor
) -> None:
    base = llamas[1]
    slot = base.adapt(inarch.adapter("lora", rank=4, capacity=16, dropout=0.1))
    slot.swap("lora", files[2])
    fresh = base.adapt(inarch.adapter("lora", weights=files[2], capacity=16))
    slot.adapters["lora"].trainable = False
    assert torch.equal(slot(ids), fresh(ids))
    assert slot.digest == fresh.digest


def test_layers_a_file_lacks_are_empty_and_layers_a_slot_lacks_are_named(
    llamas: tuple[Any, Model], files: list[Path], ids: Tensor, tmp_path: Path
) -> None:
    base = llamas[1]
    query = saved(base, tmp_path / "query", 3, rank=4, targets=["attention.query"])
    slot = base.adapt(inarch.adapter("lora", weights=files[0], capacity=16))
    slot.swap("lora", query)
    expected = base.adapt(inarch.adapter("lora", weights=query))(ids)
    torch.testing.assert_close(slot(ids), expected, rtol=1e-5, atol=1e-5)
    again = slot.save_adapter("lora", tmp_path / "again")
    assert header(again) == header(query)

    small = base.adapt(inarch.adapter("lora", weights=query, capacity=16))
    before = small(ids)
    with pytest.raises(InarchError) as caught:
        small.swap("lora", files[0])
    assert caught.value.code == "IA498"
    assert "model.layers.0.self_attn.k_proj" in caught.value.why
    assert "covers=" in caught.value.remedy
    assert torch.equal(small(ids), before)

    covering = inarch.adapter("lora", weights=query, capacity=16, covers=["attention.*", "mlp.*"])
    wide = base.adapt(covering)
    torch.testing.assert_close(wide(ids), before, rtol=1e-5, atol=1e-5)
    wide.swap("lora", files[0])
    expected = base.adapt(inarch.adapter("lora", weights=files[0]))(ids)
    torch.testing.assert_close(wide(ids), expected, rtol=1e-5, atol=1e-5)


KINDS: dict[str, dict[str, Any]] = {
    "plain": {"rank": 2},
    "wide": {"rank": 70},
    "query": {"rank": 2, "targets": ["attention.query"]},
    "dora": {"rank": 2, "use_dora": True},
    "bias": {"rank": 2, "bias": "all"},
    "pissa": {"rank": 2, "start": "pissa"},
    "loha": {"rank": 2, "algorithm": "loha"},
    "loha of another alpha": {"rank": 2, "alpha": 5, "algorithm": "loha"},
}


@pytest.mark.parametrize(
    ("first", "second", "room"),
    [
        ("plain", "wide", {"capacity": 1024}),
        ("plain", "query", {"capacity": 64}),
        ("query", "plain", {"capacity": 64, "covers": ["attention.*", "mlp.*"]}),
        ("query", "dora", None),
        ("bias", "query", None),
        ("plain", "pissa", None),
        ("loha", "loha of another alpha", None),
    ],
)
def test_room_is_advised_only_where_it_would_be_enough(
    llamas: tuple[Any, Model], tmp_path: Path, first: str, second: str, room: Any
) -> None:
    base = llamas[1]
    files = [saved(base, tmp_path / kind, **KINDS[kind]) for kind in (first, second)]
    model = base.adapt(inarch.adapter("lora", weights=files[0]))
    with pytest.raises(InarchError) as caught:
        model.swap("lora", files[1])
    assert caught.value.code == "IA498"
    told = ", ".join(f"{n}={v if n == 'capacity' else '[...]'}" for n, v in (room or {}).items())
    assert ("capacity" in caught.value.remedy) is bool(room)
    assert told in caught.value.remedy
    if room:
        base.adapt(inarch.adapter("lora", weights=files[0], **room)).swap("lora", files[1])


def test_a_rank_above_the_capacity_is_refused_with_the_capacity_it_needs(
    llamas: tuple[Any, Model], files: list[Path]
) -> None:
    slot = llamas[1].adapt(inarch.adapter("lora", weights=files[0], capacity=8))
    with pytest.raises(InarchError) as caught:
        slot.swap("lora", files[2])
    assert (caught.value.code, caught.value.remedy) == ("IA497", "capacity=16")


def test_without_a_capacity_another_rank_is_refused_and_another_alpha_is_not(
    llamas: tuple[Any, Model], files: list[Path], ids: Tensor, tmp_path: Path
) -> None:
    base = llamas[1]
    model = base.adapt(inarch.adapter("lora", weights=files[0]))
    with pytest.raises(InarchError) as caught:
        model.swap("lora", files[1])
    assert (caught.value.code, "capacity=" in caught.value.remedy) == ("IA498", True)
    other = saved(base, tmp_path / "other", 8, rank=2, alpha=0.5)
    model.swap("lora", other)
    assert torch.equal(model(ids), base.adapt(inarch.adapter("lora", weights=other))(ids))


@pytest.mark.parametrize(
    "options", [{"use_dora": True}, {"bias": "lora_only"}, {"lora_bias": True}]
)
def test_magnitudes_and_biases_are_swapped_with_the_product(
    llamas: tuple[Any, Model], ids: Tensor, tmp_path: Path, options: dict[str, Any]
) -> None:
    from torch._dynamo.testing import CompileCounter

    base = llamas[1]
    files = [
        saved(base, tmp_path / f"{rank}", rank, rank=rank, alpha=2 * rank + 1, **options)
        for rank in (2, 6)
    ]
    model = base.adapt(inarch.adapter("lora", weights=files[0], capacity=6))
    counter = CompileCounter()
    torch._dynamo.reset()
    compiled = torch.compile(model.tree, backend=counter, fullgraph=True)
    for file in (*files, files[0]):
        model.swap("lora", file)
        expected = base.adapt(inarch.adapter("lora", weights=file))(ids)
        torch.testing.assert_close(model(ids), expected, rtol=1e-4, atol=1e-4)
        found = compiled(ids, positions=torch.arange(9)[None], mask=None)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert counter.frame_count == 1


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (lambda: TransposedLinear(6, 6), (4, 6)),
        (lambda: nn.Embedding(9, 6), None),
        (lambda: nn.Conv1d(4, 6, 3, padding=1), (2, 4, 7)),
        (lambda: nn.Conv2d(4, 6, (3, 2), stride=2), (2, 4, 7, 8)),
    ],
)
def test_every_kind_of_layer_has_room(layer: Any, shape: Any, tmp_path: Path) -> None:
    torch.manual_seed(3)
    chain = Chain(layer=layer()).requires_grad_(False).eval()
    base = Model({"": chain}, roles={"mlp.up": "layer"})
    x = torch.randint(0, 9, (3, 5)) if shape is None else torch.randn(shape)
    files = [
        saved(base, tmp_path / f"{rank}", rank, rank=rank, alpha=3, targets=["layer"])
        for rank in (2, 4)
    ]
    model = base.adapt(inarch.adapter("lora", weights=files[0], capacity=4))
    for file in (*files, files[0]):
        model.swap("lora", file)
        plain = base.adapt(inarch.adapter("lora", weights=file))
        torch.testing.assert_close(model.tree(x), plain.tree(x), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(model.merge().tree(x), plain.tree(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "facts"),
    [
        ({"capacity": 0}, "at least 1"),
        ({"capacity": 4, "algorithm": "loha"}, "plain LoRA"),
        ({"capacity": 4, "start": "pissa"}, "plain LoRA"),
        ({"covers": ["mlp.*"]}, "capacity"),
    ],
)
def test_a_capacity_that_can_t_be_is_refused(
    llamas: tuple[Any, Model], options: dict[str, Any], facts: str
) -> None:
    with pytest.raises(InarchError) as caught:
        llamas[1].adapt(inarch.adapter("lora", **options))
    assert (caught.value.code, facts in caught.value.why) == ("IA401", True)


def test_a_file_of_another_algorithm_has_no_room_in_a_capacity(
    llamas: tuple[Any, Model], tmp_path: Path
) -> None:
    file = saved(llamas[1], tmp_path / "loha", rank=2, algorithm="loha")
    with pytest.raises(InarchError) as caught:
        llamas[1].adapt(inarch.adapter("lora", weights=file, capacity=8))
    assert (caught.value.code, "loha" in caught.value.why) == ("IA497", True)


@pytest.mark.parametrize("options", [{}, {"use_dora": True}, {"bias": "lora_only"}])
def test_files_of_equal_headers_are_each_what_a_new_adapter_is(
    llamas: tuple[Any, Model], ids: Tensor, tmp_path: Path, options: dict[str, Any]
) -> None:
    base = llamas[1]
    files = [
        saved(base, tmp_path / f"{seed}", seed, rank=rank, alpha=3.0, **options)
        for seed, rank in enumerate((2, 6, 2, 6))
    ]
    model = base.adapt(inarch.adapter("lora", weights=files[0], capacity=6))
    for file in (*files, *files):
        model.swap("lora", file)
        fresh = base.adapt(inarch.adapter("lora", weights=file, capacity=6))
        assert torch.equal(model(ids), fresh(ids))
        assert model.digest == fresh.digest
        assert model.adapters["lora"].scale == 1.0
    # A bias in a file is the layer's whole one, from which the base's is taken away.
    known = model.adapters["lora"].slot.patterns
    assert len(known) == (0 if "bias" in options else 2)


def test_a_value_that_decides_something_is_compared_with_the_header(
    llamas: tuple[Any, Model], ids: Tensor, tmp_path: Path
) -> None:
    base = llamas[1]
    files = []
    for seed, alpha in enumerate((2.0, 2.0, 4.0)):
        folder = saved(base, tmp_path / f"{seed}", seed, rank=2, alpha=alpha, format="kohya")
        files.append(next(folder.glob("*.safetensors")))
    heads = [file.read_bytes()[:8] for file in files]
    assert heads[0] == heads[2]
    model = base.adapt(inarch.adapter("lora", weights=files[0], format="kohya"))
    for file in (*files, *files):
        model.swap("lora", file)
        fresh = base.adapt(inarch.adapter("lora", weights=file, format="kohya"))
        assert torch.equal(model(ids), fresh(ids))
    assert len(model.adapters["lora"].slot.patterns) == 2
