"""The same latents as diffusers' pipelines, over schedulers, models and settings."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from small_pipelines import pipeline, saved

import inarch

PROMPT = "a lighthouse in the storm"
SIZE = {"height": 16, "width": 24}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    pytest.importorskip("diffusers")
    pytest.importorskip("transformers")
    made: dict[str, Any] = {
        "sd1": {},
        "xl": {"xl": True},
        "v": {"scheduler": {"prediction_type": "v_prediction"}, "seed": 5},
        "inpainting": {"in_channels": 9},
        "xl inpainting": {"xl": True, "in_channels": 9},
        "refiner": {"refiner": True},
    }
    root = tmp_path_factory.mktemp("pipelines")
    return {name: saved(root / name, **settings) for name, settings in made.items()}


theirs_of = functools.cache(pipeline)
ours_of = functools.cache(inarch.load)


def loaded(folder: Path, task: str, scheduler: str | None = None) -> tuple[Any, Any]:
    """diffusers' pipeline with a scheduler of its own, whatever a test before gave it, and ours."""
    import diffusers

    theirs, model = theirs_of(folder, task), ours_of(folder)
    kind = diffusers.DDIMScheduler if scheduler is None else getattr(diffusers, scheduler)
    theirs.scheduler = kind.from_config(model.config.scheduler)
    return theirs, model


def both(
    folder: Path, task: str = "text_to_image", scheduler: str | None = None, **settings: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """diffusers' latents and ours, after ten steps."""
    theirs, model = loaded(folder, task, scheduler)
    names = {"guidance": "guidance_scale", "mask": "mask_image", "steps": "num_inference_steps"}
    settings = {"steps": 10, **SIZE, **settings}
    given = {names.get(name, name): value for name, value in settings.items() if name != "seed"}
    if task == "image_to_image":
        given = {n: v for n, v in given.items() if n not in SIZE}
    if "count" in given:
        given["num_images_per_prompt"] = given.pop("count")
    generator = torch.Generator().manual_seed(settings.get("seed", 3))
    expected = theirs(PROMPT, generator=generator, output_type="latent", **given).images
    settings.setdefault("seed", 3)
    actual = getattr(model, task)(PROMPT, scheduler=scheduler, output="latents", **settings)
    return expected, actual


def check(expected: torch.Tensor, actual: torch.Tensor) -> None:
    assert actual.shape == expected.shape
    assert torch.isfinite(expected).all()
    scale = max(1.0, float(expected.abs().max()))
    torch.testing.assert_close(actual / scale, expected / scale, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["sd1", "xl"])
@pytest.mark.parametrize(
    "scheduler",
    [
        None,
        "EulerDiscreteScheduler",
        "EulerAncestralDiscreteScheduler",
        "DPMSolverMultistepScheduler",
        "PNDMScheduler",
        "HeunDiscreteScheduler",
        "UniPCMultistepScheduler",
        "LCMScheduler",
    ],
)
def test_text_to_image_equals_diffusers(
    folders: dict[str, Path], name: str, scheduler: str | None
) -> None:
    check(*both(folders[name], scheduler=scheduler, guidance=4.0))


@pytest.mark.parametrize("scheduler", [None, "EulerDiscreteScheduler"])
def test_velocity_as_sd2_predicts_it_equals_diffusers(
    folders: dict[str, Path], scheduler: str | None
) -> None:
    check(*both(folders["v"], scheduler=scheduler))


@pytest.mark.parametrize("name", ["sd1", "xl"])
@pytest.mark.parametrize(
    "settings",
    [
        {"guidance": 1.0},
        {"negative_prompt": "ugly red boat"},
        {"negative_prompt": ""},
        {"clip_skip": 1},
        {"clip_skip": 1, "negative_prompt": "quiet sea"},
        {"seed": 11, "count": 2},
        {"guidance": 6.0, "guidance_rescale": 0.6},
        {"eta": 0.7},
    ],
    ids=lambda settings: "_".join(settings),
)
def test_settings_mean_what_they_mean_in_diffusers(
    folders: dict[str, Path], name: str, settings: dict[str, Any]
) -> None:
    check(*both(folders[name], **settings))


def pictures() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(1, 3, 16, 24, generator=generator)
    mask = torch.zeros(1, 1, 16, 24)
    mask[..., 4:12, 6:20] = 1.0
    return image, mask


@pytest.mark.parametrize("name", ["sd1", "xl"])
@pytest.mark.parametrize("strength", [1.0, 0.35])
@pytest.mark.parametrize("scheduler", [None, "EulerDiscreteScheduler"])
def test_image_to_image_equals_diffusers(
    folders: dict[str, Path], name: str, strength: float, scheduler: str | None
) -> None:
    image, _ = pictures()
    given = {"strength": strength, "guidance": 4.0, "image": image}
    check(*both(folders[name], "image_to_image", scheduler, **given))


def test_the_refiner_is_told_a_score_instead_of_a_size(folders: dict[str, Path]) -> None:
    image, _ = pictures()
    given = {"strength": 0.35, "guidance": 4.0, "image": image}
    check(*both(folders["refiner"], "image_to_image", "EulerDiscreteScheduler", **given))


@pytest.mark.parametrize("name", ["sd1", "xl", "inpainting", "xl inpainting"])
@pytest.mark.parametrize(("strength", "guidance"), [(1.0, 4.0), (0.6, 1.0), (0.6, 4.0)])
def test_inpainting_equals_diffusers(
    folders: dict[str, Path], name: str, strength: float, guidance: float
) -> None:
    image, mask = pictures()
    given = {"strength": strength, "guidance": guidance, "image": image, "mask": mask}
    check(*both(folders[name], "inpaint", **given))


@pytest.mark.parametrize("name", ["sd1", "xl"])
def test_decoded_images_equal_diffusers(folders: dict[str, Path], name: str) -> None:
    theirs, model = loaded(folders[name], "text_to_image")
    generator = torch.Generator().manual_seed(1)
    given = {"generator": generator, "num_inference_steps": 2, **SIZE, "guidance_scale": 3.0}
    expected = theirs(PROMPT, output_type="np", **given).images
    again = {"steps": 2, **SIZE, "guidance": 3.0, "seed": 1}
    actual = model.text_to_image(PROMPT, output="tensor", **again)
    torch.testing.assert_close(
        actual.permute(0, 2, 3, 1), torch.from_numpy(expected), rtol=1e-4, atol=1e-4
    )
    image = model.text_to_image(PROMPT, **again)
    assert image.size == (24, 16)
    shown = torch.tensor(list(image.convert("RGB").tobytes())).view(16, 24, 3)
    assert (shown - (actual[0].permute(1, 2, 0) * 255).round()).abs().max() == 0
