"""Image models over two gloo processes: their trees, gradients and files are those of one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from scenes import content, drawn_of, image_model, named
from starting import asked_of

DRAWN = [
    ("sd1", "lora", "tensor"),
    ("xl", "lora", "tensor"),
    ("sd1", "dora", "tensor"),
    ("sd1", "hadamard", "tensor"),
    ("sd1", "lora", "fsdp"),
    ("sd1", "lora", "replicate"),
]

pytestmark = pytest.mark.xdist_group("two processes")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("images")


@pytest.fixture(scope="module")
def found(folder: Path) -> list[dict[str, Any]]:
    return asked_of(2, [("drawn", *one) for one in DRAWN], folder)


def name_of(one: tuple[str, ...]) -> str:
    return "-".join(one)


def close(one: torch.Tensor, other: torch.Tensor) -> bool:
    return torch.allclose(one, other, rtol=1e-6, atol=1e-6 * max(1.0, other.abs().max().item()))


@pytest.mark.parametrize("scene", DRAWN, ids=name_of)
def test_two_processes_give_what_one_gives_and_its_gradients(
    scene: tuple[str, str, str], found: list[dict[str, Any]]
) -> None:
    label, stack, plan = scene
    model = image_model(label, stack)
    values, loss = drawn_of(model)
    loss.backward()
    expected = dict(named(model))
    norm = torch.nn.utils.get_total_norm([p.grad for p in expected.values() if p.grad is not None])
    ours = [one[f"drawn-{name_of(scene)}"] for one in found]
    for number, value in enumerate(values):
        given = [one["values"][number] for one in ours]
        assert close(given[0] if plan == "tensor" else torch.cat(given), value)
    for one in ours:
        assert (one["halves"] > 8) == (plan == "tensor")
        assert set(one["gradients"]) == set(expected)
        for name, parameter in expected.items():
            gradient = parameter.grad
            gradient = torch.zeros_like(parameter) if gradient is None else gradient
            assert close(one["gradients"][name], gradient), name
        assert one["norm"].item() == pytest.approx(norm.item(), rel=1e-5)


@pytest.mark.parametrize("scene", DRAWN, ids=name_of)
def test_what_two_save_is_what_one_saves_and_is_read_again(
    scene: tuple[str, str, str], found: list[dict[str, Any]], folder: Path, tmp_path: Path
) -> None:
    assert [one[f"drawn-{name_of(scene)}"]["same"] for one in found] == [True, True]
    model = image_model(*scene[:2])
    for member in model.adapters:
        model.save_adapter(member.name, tmp_path / member.name)
        theirs = folder / f"drawn-{name_of(scene)}" / member.name
        for file in (tmp_path / member.name).iterdir():
            assert content(theirs / file.name) == content(file), file.name
