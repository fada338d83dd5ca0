"""`inarch run` for images: files in, files out, grids, and images that say how they were made."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from small_pipelines import saved

import inarch
from inarch.cli.main import main
from inarch_stable_diffusion.record import recorded

FAST = ("--steps", "2", "--height", "16", "--width", "24")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("diffusers")
    pytest.importorskip("transformers")
    return saved(tmp_path_factory.mktemp("small"))


def run(*args: Any) -> int:
    with pytest.raises(SystemExit) as stop:
        main(["run", *(str(arg) for arg in args)])
    return int(stop.value.code or 0)


def pixels(path: Path) -> bytes:
    with Image.open(path) as image:
        return image.convert("RGB").tobytes()


def test_an_image_is_written_and_says_how_it_was_made(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "boat.png"
    assert run(folder, "--prompt", "a red boat", *FAST, "--seed", 3, "--out", out) == 0
    expected = inarch.load(folder).text_to_image("a red boat", steps=2, height=16, width=24, seed=3)
    assert pixels(out) == expected.tobytes()
    told = recorded(out)
    assert told["model"] == str(folder)
    assert told["fingerprint"] == inarch.load(folder).fingerprint()
    assert told["settings"]["prompt"] == "a red boat"
    assert (told["task"], told["settings"]["seed"]) == ("text_to_image", 3)


def test_the_image_is_made_again_from_what_it_says(folder: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "first.png", tmp_path / "second.png"
    assert (
        run(folder, "--prompt", "the (quiet:1.4) sea", *FAST, "--guidance", 3, "--out", first) == 0
    )
    assert run(folder, "--again", first, "--out", second) == 0
    assert pixels(first) == pixels(second)
    assert recorded(first)["settings"] == recorded(second)["settings"]


def test_the_envelope_holds_timings_the_digest_and_the_seed(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "boat.png"
    assert run(folder, "--prompt", "a boat", *FAST, "--out", out, "--json") == 0
    data = json.loads(capsys.readouterr().out)["data"]
    assert set(data["seconds"]) == {"load", "sample", "per_step"}
    assert data["digest"] == inarch.load(folder).digest
    assert recorded(out)["settings"]["seed"] == data["seeds"][0]


def test_images_and_masks_come_in_as_files(folder: Path, tmp_path: Path) -> None:
    image, mask, out = (tmp_path / name for name in ("in.png", "mask.png", "out.png"))
    Image.effect_noise((24, 16), 90).convert("RGB").save(image)
    Image.new("L", (24, 16), 255).save(mask)
    given = ("--prompt", "a boat", "--steps", 4, "--seed", 1, "--image", image, "--out", out)
    assert run(folder, *given, "--strength", "0.5") == 0
    again = inarch.load(folder).image_to_image(
        "a boat", image=str(image), steps=4, seed=1, strength=0.5
    )
    assert pixels(out) == again.tobytes()
    assert run(folder, *given, "--mask", mask) == 0
    assert recorded(out)["task"] == "inpaint"


def test_a_picture_is_made_again_from_another_folder(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Image.effect_noise((24, 16), 90).convert("RGB").save("in.png")
    given = ("--prompt", "a boat", "--steps", 2, "--image", "in.png", "--out", "out.png")
    assert run(folder, *given) == 0
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert run("../out.png", "--out", "again.png") == 0
    assert pixels(tmp_path / "out.png") == pixels(Path("again.png"))


def test_a_grid_has_a_column_for_each_seed_and_a_row_for_each_scale(
    folder: Path, tmp_path: Path
) -> None:
    at = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    weights = {
        f"{at}.lora_A.weight": torch.randn(2, 16) * 3,
        f"{at}.lora_B.weight": torch.randn(16, 2) * 3,
    }
    save_file(weights, tmp_path / "style.safetensors")
    scene = tmp_path / "scene.toml"
    scene.write_text(
        f'model = "{folder}"\n\n[[adapter]]\nuse = "lora"\nname = "style"\n'
        'weights = "style.safetensors"\n'
    )
    out = tmp_path / "grid.png"
    asked = ("--prompt", "a boat", *FAST, "--seeds", "4-6", "--scales", "style=0,8", "--out", out)
    assert run(scene, *asked) == 0
    with Image.open(out) as sheet:
        assert sheet.size == (3 * 24, 2 * 16)
        parts = [
            [sheet.crop((24 * x, 16 * y, 24 * x + 24, 16 * y + 16)).tobytes() for x in range(3)]
            for y in range(2)
        ]
    base = inarch.load(folder)
    for x, seed in enumerate((4, 5, 6)):
        plain = base.text_to_image("a boat", steps=2, height=16, width=24, seed=seed)
        assert parts[0][x] == plain.tobytes()
        assert parts[1][x] != parts[0][x]
    assert recorded(out)["settings"]["seeds"] == [4, 5, 6]


def test_a_picture_is_a_stack_of_its_own_and_is_made_again_without_any_other_file(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    at = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    weights = {
        f"{at}.lora_A.weight": torch.randn(2, 16) * 3,
        f"{at}.lora_B.weight": torch.randn(16, 2) * 3,
    }
    save_file(weights, tmp_path / "style.safetensors")
    scene = tmp_path / "scene.toml"
    table = (
        '[[adapter]]\nuse = "lora"\nname = "style"\nweights = "style.safetensors"\nscale = 2.0\n'
    )
    scene.write_text(f'model = "{folder}"\n\n{table}')
    grid, again, one = (tmp_path / f"{name}.png" for name in ("grid", "again", "one"))
    asked = ("--prompt", "a boat", *FAST, "--seeds", "4,5", "--scales", "style=1,8")
    assert run(scene, *asked, "--out", grid) == 0
    assert run(scene, "--prompt", "a boat", *FAST, "--seed", 4, "--out", one) == 0
    scene.unlink()
    capsys.readouterr()
    for picture in (grid, one):
        assert run(picture, "--out", again) == 0
        assert pixels(again) == pixels(picture)
    assert "note" not in capsys.readouterr().err
    assert run(one, "--steps", 3, "--seed", 9, "--out", again) == 0
    assert pixels(again) != pixels(one)
    assert recorded(again)["settings"]["prompt"] == "a boat"
    save_file({key: tensor + 1 for key, tensor in weights.items()}, tmp_path / "style.safetensors")
    assert run(one, "--out", again) == 0
    assert "another than the picture was made with" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stop:
        main(["plan", str(one)])
    assert not stop.value.code


def test_a_picture_that_holds_no_stack_is_none(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "plain.png")
    for command in ("plan", "tree"):
        with pytest.raises(SystemExit) as stop:
            main([command, str(tmp_path / "plain.png")])
        assert stop.value.code
        assert "IA405" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["check", "plan", "tree"])
def test_a_scene_is_looked_at_before_it_runs(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    at = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    weights = {f"{at}.lora_A.weight": torch.zeros(2, 16), f"{at}.lora_B.weight": torch.ones(16, 2)}
    save_file(weights, tmp_path / "style.safetensors")
    scene = tmp_path / "scene.toml"
    told = 'use = "lora"\nname = "style"\nweights = "style.safetensors"\n'
    scene.write_text(f'model = "{folder}"\n\n[[adapter]]\n{told}')
    with pytest.raises(SystemExit) as stop:
        main([command, str(scene)])
    assert int(stop.value.code or 0) == 0
    assert "style" in capsys.readouterr().out


def test_adapters_are_listed_for_a_pipelines_folder(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in (folder, folder / "unet"):
        with pytest.raises(SystemExit) as stop:
            main(["adapters", "--for", str(path)])
        assert int(stop.value.code or 0) == 0
        assert "lora" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("args", "code", "told"),
    [
        (("--prompt", "a boat"), 2, "--out"),
        (("--prompt", "a boat", "--out", "x.png", "--mask", "m.png"), 2, "--image"),
        (("--prompt", "a boat", "--out", "x.png", "--seeds", "x"), 2, "--seeds"),
        (("--prompt", "a boat", "--out", "x.png", "--input", "canny"), 2, "canny_image"),
        (("--prompt", "a", "--out", "x.png", *FAST, "--input", "no_image=x.png"), 1, "IA508"),
        (("--prompt", "a", "--out", "x.png", "--height", "7", "--width", "8"), 1, "IA550"),
        (("--prompt", "a", "--out", "x.png", "--scheduler", "eulr"), 1, "IA551"),
        (("--prompt", "a", "--out", "x.png", "--scales", "style=1"), 1, "IA403"),
    ],
)
def test_what_can_not_be_made_is_refused(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    args: tuple[str, ...],
    code: int,
    told: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(folder, *args) == code
    assert told in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_an_image_that_says_nothing_is_refused(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "plain.png")
    assert run(folder, "--again", tmp_path / "plain.png") == 1
    assert "IA553" in capsys.readouterr().err


def test_a_model_is_packed_and_laid_out_as_the_options_say(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[Any] = []
    load = inarch.loading.load

    def noted(*args: Any, **options: Any) -> Any:
        loaded.append(load(*args, **options))
        return loaded[-1]

    monkeypatch.setattr(inarch.loading, "load", noted)
    given = (folder, "--prompt", "a boat", *FAST, "--seed", 2)
    assert run(*given, "--out", tmp_path / "plain.png") == 0
    assert run(*given, "--packed", "--channels-last", "--out", tmp_path / "fast.png") == 0
    for model, fast in zip(loaded, (False, True), strict=True):
        unet = model.trees["unet"]
        assert unet.conv_in.weight.is_contiguous(memory_format=torch.channels_last) is fast
        attention = unet.down_blocks[0].attentions[0].transformer_blocks[0].attn1
        assert ("self.qkv(" in attention.source) is fast
    pairs = zip(pixels(tmp_path / "plain.png"), pixels(tmp_path / "fast.png"), strict=True)
    assert max(abs(a - b) for a, b in pairs) <= 1
