"""Image models over two gloo processes: their trees, gradients and files are those of one."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from scenes import content, drawn_of, image_model, named, painter, picture_of
from starting import asked_of, said_of

from inarch.cli.main import main

sys.path.append(str(Path(__file__).parents[2] / "foundation_models/stable_diffusion/tests"))

from small_pipelines import saved

DRAWN = [
    ("sd1", "lora", "tensor"),
    ("xl", "lora", "tensor"),
    ("sd1", "dora", "tensor"),
    ("sd1", "hadamard", "tensor"),
    ("sd1", "lora", "fsdp"),
    ("sd1", "lora", "replicate"),
]

PICTURED = [
    ("control", "tensor"),
    ("control", "replicate"),
    ("reference", "tensor"),
    ("style", "fsdp"),
]
FAST = ("--steps", "2", "--height", "16", "--width", "24")

pytestmark = pytest.mark.xdist_group("two processes")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("images")


@pytest.fixture(scope="module")
def found(folder: Path, pipelines: dict[bool, Path]) -> list[dict[str, Any]]:
    pictured = [("pictured", str(pipelines[xl]), *one) for xl in (False, True) for one in PICTURED]
    return asked_of(2, [*(("drawn", *one) for one in DRAWN), *pictured], folder)


@pytest.fixture(scope="module")
def pipelines(folder: Path) -> dict[bool, Path]:
    """A small random pipeline of Stable Diffusion 1, and one of XL."""
    pytest.importorskip("diffusers")
    pytest.importorskip("transformers")
    return {xl: saved(folder / f"xl {xl}", xl=xl) for xl in (False, True)}


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


@pytest.mark.parametrize(("stack", "plan"), PICTURED)
@pytest.mark.parametrize("xl", [False, True])
def test_two_processes_make_the_picture_of_one_with_and_without_an_adapter(
    stack: str, plan: str, xl: bool, found: list[dict[str, Any]], pipelines: dict[bool, Path]
) -> None:
    model = painter(str(pipelines[xl]), stack)
    picture = picture_of(model)
    model.adapters["style"].scale = 0.0
    plain = picture_of(model)
    assert (picture - plain).abs().max() > 1e-3
    for one in found:
        ours = one[f"pictured-{pipelines[xl]}-{stack}-{plan}"]
        torch.testing.assert_close(ours["picture"], picture, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(ours["plain"], plain, atol=1e-4, rtol=1e-4)


def test_inarch_run_shares_out_images_and_splits_the_layers_for_one(
    pipelines: dict[bool, Path], tmp_path: Path
) -> None:
    def making(out: str, *more: str) -> list[str]:
        command = ["run", str(pipelines[False]), "--prompt", "a boat", *FAST, "--json"]
        return [*command, "--out", str(tmp_path / out), *more]

    seeds, wrong = ("--seeds", "4-6"), ("--with", "nowhere")
    commands = [making("grid.png", *seeds), making("one.png"), making("no.png", *wrong)]
    found = said_of(commands, tmp_path)
    assert [[code for code, *_ in one[:2]] for one in found] == [[0, 0], [0, 0]], found
    assert [said for _, said, _ in found[1][:2]] == ["", ""]
    drawn = json.loads(found[0][1][1])["data"]["seeds"][0]
    for name, chosen in (("grid.png", seeds), ("one.png", ("--seed", str(drawn)))):
        with pytest.raises(SystemExit):
            main(making(f"alone-{name}", *chosen))
        with Image.open(tmp_path / name) as ours, Image.open(tmp_path / f"alone-{name}") as theirs:
            one, other = (torch.tensor(list(i.convert("RGB").tobytes())) for i in (ours, theirs))
            assert ours.info == theirs.info
        assert (one.int() - other.int()).abs().max() <= (0 if name == "grid.png" else 1)
    assert [code != 0 for code, *_ in (one[2] for one in found)] == [True, True]
    assert sum("IA406" in out + err for _, out, err in (one[2] for one in found)) == 1
