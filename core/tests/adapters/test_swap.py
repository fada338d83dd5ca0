"""Swapping puts other weights into an adapter in place, all of them or nothing."""

from __future__ import annotations

import copy
import io
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from swapping import WEIGHTS, made_of, refusal, saved
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import inarch
from inarch.adapters import Model
from inarch.errors import InarchError


class Copies(TorchDispatchMode):
    """Counts what writes, and how many bytes."""

    def __init__(self) -> None:
        super().__init__()
        self.made: list[tuple[str, int]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket.__name__.endswith("_"):
            written = args[0] if isinstance(args[0], list) else [args[0]]
            self.made.append((func.overloadpacket.__name__, sum(t.nbytes for t in written)))
        return func(*args, **(kwargs or {}))


def test_after_a_swap_the_model_is_the_one_that_the_other_file_makes(
    base: Model, x: Tensor, files: list[Path]
) -> None:
    model = made_of(base, files[0])
    first = model.tree(x)
    memory = {n: p.data_ptr() for n, p in model.adapter_parameters("lowrank").items()}
    for file in (files[1], files[2], files[0]):
        model.swap("lowrank", file)
        fresh = made_of(base, file)
        assert torch.equal(model.tree(x), fresh.tree(x))
        assert model.digest == fresh.digest
        assert model.adapters["lowrank"].spec == fresh.adapters["lowrank"].spec
    assert torch.equal(model.tree(x), first)
    assert memory == {n: p.data_ptr() for n, p in model.adapter_parameters("lowrank").items()}


def test_every_model_that_has_the_adapter_follows(
    base: Model, x: Tensor, files: list[Path], tmp_path: Path
) -> None:
    model = made_of(base, files[0])
    more = model.adapt(inarch.adapter("factor", after="lowrank"))
    less = more.without("factor")
    more.swap("lowrank", files[1])
    for one in (model, less):
        assert torch.equal(one.tree(x), made_of(base, files[1]).tree(x))
        assert one.digest == made_of(base, files[1]).digest
        again = load_file(one.save_adapter("lowrank", tmp_path / "again") / WEIGHTS)
        assert all(torch.equal(again[k], v) for k, v in load_file(files[1] / WEIGHTS).items())


def test_a_swap_is_one_copy_of_the_adapters_bytes(base: Model, files: list[Path]) -> None:
    model = made_of(base, files[0])
    filling = model.prepare("lowrank", files[1])
    with Copies() as copies:
        model.swap("lowrank", filling)
    assert copies.made == [("copy_", filling.bytes)]
    parameters = model.adapter_parameters("lowrank").values()
    assert filling.bytes <= sum(-(-p.nbytes // 64) * 64 for p in parameters)


def test_scale_training_and_name_are_as_they_were(base: Model, files: list[Path]) -> None:
    model = base.adapt(inarch.adapter("lowrank", weights=files[0], scale=0.3, name="slot"))
    member = model.adapters["slot"]
    member.trainable = True
    model.swap("slot", files[1])
    assert (member.scale, member.trainable, member.name) == (0.3, True, "slot")
    assert member.spec.scale == 0.3
    member.trainable = False


def test_an_untrained_adapter_takes_a_file(base: Model, x: Tensor, files: list[Path]) -> None:
    model = base.adapt("lowrank")
    assert model.adapters["lowrank"].header is None
    model.swap("lowrank", files[0])
    assert torch.equal(model.tree(x), made_of(base, files[0]).tree(x))
    assert model.digest == made_of(base, files[0]).digest


def test_a_swap_between_forward_and_backward_is_noticed(
    base: Model, x: Tensor, files: list[Path]
) -> None:
    model = made_of(base, files[0])
    model.adapters["lowrank"].trainable = True
    loss = model.tree(x).sum()
    model.swap("lowrank", files[1])
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("how", ["moved", "copied", "assigned"])
def test_parameters_that_lie_elsewhere_are_filled_one_by_one(
    base: Model, x: Tensor, files: list[Path], how: str
) -> None:
    model = made_of(base, files[0])
    if how == "moved":
        model.tree.double().float()
    elif how == "copied":
        model = copy.deepcopy(model)
    else:
        model.tree.load_state_dict(
            {k: v.clone() for k, v in model.tree.state_dict().items()}, assign=True
        )
    model.swap("lowrank", files[1])
    assert torch.equal(model.tree(x), made_of(base, files[1]).tree(x))


def test_another_rank_is_refused_and_nothing_is_changed(
    base: Model, x: Tensor, files: list[Path], tmp_path: Path
) -> None:
    model = made_of(base, files[0])
    expected, digest = model.tree(x), model.digest
    error = refusal(model, saved(base, tmp_path / "wide", 7, rank=3))
    assert error.code == "IA498"
    assert "layers.0.fc: down is [3, 6], and the adapter's is [2, 6]" in error.why
    assert torch.equal(model.tree(x), expected)
    assert model.digest == digest


def test_a_file_for_other_layers_is_refused(base: Model, files: list[Path], tmp_path: Path) -> None:
    tensors = load_file(files[1] / WEIGHTS)
    half = {k: v for k, v in tensors.items() if k.startswith("layers.0")}
    save_file(half, tmp_path / "half.safetensors")
    one = base.adapt(inarch.adapter("lowrank", targets=["layers.0.fc"], name="one"))
    error = refusal(one, files[1], "one")
    assert error.code in ("IA498", "IA411")
    assert "layers.1.fc" in str(error)
    error = refusal(made_of(base, files[0]), tmp_path / "half.safetensors")
    assert "layers.1.fc" in str(error)


def test_a_file_for_another_base_is_refused_as_adapting_refuses_it(
    base: Model, files: list[Path], tmp_path: Path
) -> None:
    save_file(
        load_file(files[1] / WEIGHTS),
        tmp_path / "other.safetensors",
        {"inarch.base_fingerprint": "inarch1:" + "0" * 64},
    )
    assert refusal(made_of(base, files[0]), tmp_path / "other.safetensors").code == "IA410"


def test_a_file_that_is_cut_off_changes_nothing(base: Model, x: Tensor, files: list[Path]) -> None:
    model = made_of(base, files[0])
    expected = model.tree(x)
    file = files[1] / WEIGHTS
    file.write_bytes(file.read_bytes()[:-8])
    assert refusal(model, files[1]).code == "IA202"
    assert torch.equal(model.tree(x), expected)


def swapped(model: Model, files: list[Path]) -> None:
    model.swap("lowrank", files[1])


def trained(model: Model, files: list[Path]) -> None:
    with torch.no_grad():
        for parameter in model.adapter_parameters("lowrank").values():
            parameter.add_(1.0)


def rescaled(model: Model, files: list[Path]) -> None:
    model.adapters["lowrank"].scale = 0.25


@pytest.mark.parametrize("change", [swapped, trained, rescaled])
def test_a_merged_model_keeps_what_it_was_merged_with(
    base: Model, x: Tensor, files: list[Path], tmp_path: Path, change: Any
) -> None:
    model = made_of(base, files[0])
    heavier, factor = model.merge(), inarch.adapter("factor", after="lowrank")
    error = refusal(heavier, files[1])
    assert (error.code, "merged" in error.why) == ("IA498", True)
    more = heavier.adapt(factor)
    digests, kept = [heavier.digest, more.digest], [heavier.tree(x), more.tree(x)]
    change(model, files)

    assert [heavier.digest, more.digest] == digests
    assert heavier.adapters["lowrank"].scale == 1.0
    again = [more.without("factor"), heavier.adapt(factor), heavier.packed()]
    again.append(copy.deepcopy(more).without("factor"))
    for found, expected in zip(again, [*kept, kept[0], kept[0]], strict=True):
        assert torch.equal(found.tree(x), expected)
    with pytest.raises(InarchError, match="this model was merged") as caught:
        more.merge()
    assert caught.value.code == "IA409"
    if change is not rescaled:  # which no file holds
        with pytest.raises(InarchError, match=f"{change.__name__} since") as caught:
            heavier.save_adapter("lowrank", tmp_path / "again")
        assert caught.value.code == "IA408"
    torch.testing.assert_close(model.merge().tree(x), model.tree(x), rtol=1e-5, atol=1e-6)
    assert torch.equal(more.without("factor", "lowrank").tree(x), base.tree(x))


def test_what_was_prepared_for_one_adapter_is_not_put_into_another(
    base: Model, files: list[Path]
) -> None:
    model = base.adapt(
        inarch.adapter("lowrank", weights=files[0], name="a"),
        inarch.adapter("lowrank", weights=files[0], name="b"),
    )
    assert refusal(model, model.prepare("a", files[1]), "b").code == "IA498"


def test_what_is_no_weights_is_not_swapped_in(base: Model, files: list[Path]) -> None:
    model = base.adapt(inarch.adapter("lowrank", weights=files[0], name="a"))
    assert refusal(model, {"weights": files[1]}, "a").code == "IA401"


def test_files_that_ask_for_settings_another_adapter_forbids_are_refused(
    base: Model, files: list[Path]
) -> None:
    asking = []
    for i, steps in enumerate((4, 8)):
        tensors = load_file(files[i] / WEIGHTS)
        save_file(tensors, files[i] / WEIGHTS, {"inarch.asks": json.dumps({"steps": steps})})
        asking.append(inarch.adapter("lowrank", weights=files[i], name="ab"[i]))
    model = base.adapt(asking[0], inarch.adapter("lowrank", weights=files[2], name="b"))
    assert model.asks == {"steps": 4}
    assert refusal(model, files[1], "b").code == "IA420"
    model.swap("a", files[1])
    assert model.asks == {"steps": 8}


# The memory it lies in


@pytest.mark.parametrize(("how", "code"), [("gone", "IA201"), ("another", "IA202")])
def test_a_digest_is_of_the_file_that_was_read(
    base: Model, x: Tensor, files: list[Path], tmp_path: Path, how: str, code: str
) -> None:
    model, known = made_of(base, files[0]), made_of(base, files[0])
    digest, expected = known.digest, model.tree(x)
    files[0].rename(tmp_path / "elsewhere")
    if how == "another":
        files[1].rename(files[0])
    with pytest.raises(InarchError) as caught:
        _ = model.digest
    assert (caught.value.code, known.digest) == (code, digest)
    model.swap("lowrank", tmp_path / "elsewhere")
    assert (model.digest, torch.equal(model.tree(x), expected)) == (digest, True)


def test_a_digest_stays_where_an_adapter_is_saved_over_its_own_file(
    base: Model, files: list[Path]
) -> None:
    model, digest = made_of(base, files[0]), made_of(base, files[0]).digest
    trained(model, files)
    model.save_adapter("lowrank", files[0])
    assert model.digest == digest


def test_a_file_that_asks_for_what_is_no_object_is_refused(base: Model, files: list[Path]) -> None:
    model = made_of(base, files[0])
    save_file(load_file(files[1] / WEIGHTS), files[1] / WEIGHTS, {"inarch.asks": "[4]"})
    assert refusal(model, files[1]).code == "IA411"
    assert model.asks == {}


def test_an_adapters_parameters_lie_in_one_allocation_each_a_tensor_of_its_own(
    base: Model, files: list[Path]
) -> None:
    model = made_of(base, files[0])
    [flat] = model.adapters["lowrank"].slot.flats
    parameters = list(model.adapter_parameters("lowrank").values())
    begin, end = flat.whole.data_ptr(), flat.whole.data_ptr() + flat.whole.nbytes
    assert all(begin <= p.data_ptr() < end for p in parameters)
    assert all((p.data_ptr() - begin) % 64 == 0 for p in parameters)
    assert all(p.untyped_storage().nbytes() == p.nbytes for p in parameters)
    assert all(not p._is_view() for p in parameters)
    parameters[0].data.add_(1)
    assert {p._version for p in parameters[1:]} == {0}


def test_pickling_writes_each_parameter_once(base: Model, files: list[Path], x: Tensor) -> None:
    model = made_of(base, files[0])
    parameters = list(model.adapter_parameters("lowrank").values())
    for parameter in parameters:
        buffer = io.BytesIO()
        torch.save(parameter, buffer)
        assert len(buffer.getvalue()) < parameter.nbytes + 2000
    alone = sum(len(pickle.dumps(p.clone())) for p in parameters)
    assert len(pickle.dumps(parameters)) < alone + 1000
    tree = pickle.loads(pickle.dumps(model.tree))
    assert torch.equal(tree(x), model.tree(x))


def test_an_adapter_of_a_file_is_drawn_from_nothing_and_each_tensor_is_copied_once(
    base: Model, files: list[Path]
) -> None:
    with Copies() as copies:
        model = made_of(base, files[0])
    parameters = model.adapter_parameters("lowrank")
    written = [size for name, size in copies.made if name == "copy_"]
    assert sorted(written) == sorted(p.nbytes for p in parameters.values())
    assert not [name for name, _ in copies.made if name in ("uniform_", "normal_", "zero_")]


def test_two_dtypes_of_a_base_are_two_allocations(twin_trees: Model) -> None:
    twin_trees.trees["left"].to(torch.bfloat16)
    model = twin_trees.adapt(inarch.adapter("lowrank", targets=["mlp.*", "left"]))
    flats = model.adapters["lowrank"].slot.flats
    assert {f.whole.dtype for f in flats} == {torch.bfloat16, torch.float32}
    assert model.adapters["lowrank"].modules["left.fc"].up.dtype == torch.bfloat16
