"""What a run tells, takes and leaves alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from small_pipelines import saved
from torch import Tensor

import inarch
from inarch.errors import InarchError
from inarch.tree import Edit, Use

BLACK = torch.zeros(3, 16, 24)
SIZE = {"height": 16, "width": 24, "steps": 4}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    pytest.importorskip("diffusers")
    pytest.importorskip("transformers")
    return inarch.load(saved(tmp_path_factory.mktemp("small")))


@pytest.fixture(scope="module")
def xl(tmp_path_factory: pytest.TempPathFactory) -> Any:
    pytest.importorskip("diffusers")
    pytest.importorskip("transformers")
    return inarch.load(saved(tmp_path_factory.mktemp("small"), xl=True))


def latents(model: Any, prompt: Any = "a red boat", **settings: Any) -> Tensor:
    usual = {**SIZE, "seed": 1, "output": "latents"}
    return model.text_to_image(prompt, **{**usual, **settings})


def edited(model: Any, edits: list[Edit]) -> Any:
    """The model with edits in its UNet, as an adapter's would be."""
    copy = type(model)(
        {**model.trees, "unet": model.trees["unet"].edit(edits)},
        model.config,
        roles=model.roles,
        checkpoint=model.checkpoint,
        family=model.family,
    )
    return copy


def test_a_callback_is_told_of_every_step(model: Any) -> None:
    steps: list[Any] = []
    result = latents(model, callback=steps.append)
    assert [step.index for step in steps] == [0, 1, 2, 3]
    assert {step.steps for step in steps} == {4}
    times = [int(step.timestep) for step in steps]
    assert times == sorted(times, reverse=True)
    assert torch.equal(steps[-1].latents, result)


def test_a_callback_that_gives_false_ends_the_run_there(model: Any) -> None:
    whole: list[Any] = []
    latents(model, callback=whole.append)
    stopped = latents(model, callback=lambda step: step.index < 1)
    assert torch.equal(stopped, whole[1].latents)


def test_a_run_that_is_interrupted_leaves_the_model_as_it_was(model: Any) -> None:
    before = latents(model)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    def interrupt(step: Any) -> None:
        if step.index == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        latents(model, callback=interrupt)
    assert all(torch.equal(t, state[name]) for name, t in model.state_dict().items())
    assert torch.equal(latents(model), before)


def test_a_preview_is_a_small_image_of_every_step(model: Any) -> None:
    seen: list[Any] = []
    before = latents(model)
    after = latents(model, preview=lambda image, index: seen.append((index, image.size)))
    assert seen == [(i, (24, 16)) for i in range(4)]
    assert torch.equal(after, before)
    large: list[Any] = []
    settings = {"height": 16, "width": 160, "steps": 1}
    latents(model, preview=lambda image, index: large.append(image.size), **settings)
    assert large == [(64, 6)]


def test_the_progress_bar_shows_steps_a_second(
    model: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    latents(model, progress=True)
    shown = capsys.readouterr().err
    assert "4/4" in shown
    assert "it/s" in shown or "s/it" in shown
    latents(model, progress=False)
    assert capsys.readouterr().err == ""


def test_the_loop_gives_what_changes_to_edits_that_ask_for_it(model: Any) -> None:
    seen: list[tuple[int, float, int]] = []

    def watch(x: Tensor, *, step: Tensor, progress: Tensor, timestep: Tensor) -> Tensor:
        seen.append((int(step), round(float(progress), 6), int(timestep)))
        return x

    asked = ("step", "progress", "timestep")
    watched = edited(model, [Edit.after("conv_in", watch, "watcher", inputs=asked)])
    assert {"step", "progress"} <= set(watched.inputs)
    assert torch.equal(latents(watched), latents(model))
    assert [(step, share) for step, share, _ in seen] == [(0, 0.0), (1, 0.25), (2, 0.5), (3, 0.75)]
    assert [time for _, _, time in seen] == sorted((t for _, _, t in seen), reverse=True)


def test_an_input_that_nobody_gives_is_named_with_who_asks(model: Any) -> None:
    hungry = edited(model, [Edit.add("mid_block", Use("canny"), "canny", inputs=("canny",))])
    with pytest.raises(InarchError) as error:
        latents(hungry)
    assert error.value.code == "IA507"
    assert "`canny`" in error.value.what
    assert "mid_block" in error.value.where


def test_an_input_that_nothing_asks_for_is_refused(model: Any) -> None:
    with pytest.raises(InarchError) as error:
        latents(model, canny_image="edges.png")
    assert (error.value.code, "canny_image" in error.value.what) == ("IA508", True)


@pytest.mark.parametrize("name", ["model", "xl"])
def test_a_batch_of_prompts_equals_each_alone(name: str, request: pytest.FixtureRequest) -> None:
    own = request.getfixturevalue(name)
    prompts = ["a red boat", "the quiet sea in the storm"]
    together = latents(own, prompts, seed=[1, 2], negative_prompt=["ugly", ""])
    for i, prompt in enumerate(prompts):
        negative = ["ugly", ""][i]
        alone = latents(own, prompt, seed=i + 1, negative_prompt=negative)
        torch.testing.assert_close(together[i : i + 1], alone, rtol=1e-4, atol=1e-4)


def test_several_images_of_a_prompt_begin_with_other_noise(model: Any) -> None:
    both = latents(model, count=2)
    assert both.shape[0] == 2
    assert not torch.allclose(both[0], both[1])
    images = model.text_to_image("a boat", count=2, **SIZE, seed=1)
    assert isinstance(images, list)
    assert len(images) == 2


def test_the_users_noise_is_what_a_seed_would_draw(model: Any) -> None:
    noise = torch.randn(1, 4, 8, 12, generator=torch.Generator().manual_seed(1))
    assert torch.equal(latents(model, seed=None, latents=noise), latents(model, seed=1))


def test_xl_is_told_of_sizes_and_crops(xl: Any) -> None:
    plain = latents(xl)
    assert torch.equal(latents(xl, original_size=(16, 24), target_size=(16, 24)), plain)
    for told in ({"original_size": (64, 64)}, {"crop": (4, 0)}, {"target_size": (8, 8)}):
        assert not torch.allclose(latents(xl, **told), plain)


@pytest.mark.parametrize(
    "name", ["dpm++ 2m karras", "euler a", "ddim", "Euler", "dpmsolvermultistep"]
)
def test_schedulers_are_known_by_the_names_that_users_know(model: Any, name: str) -> None:
    assert torch.isfinite(latents(model, scheduler=name)).all()


def test_a_scheduler_of_the_users_own_is_left_as_it_is(model: Any) -> None:
    import diffusers

    own = diffusers.EulerDiscreteScheduler.from_config(model.config.scheduler)
    before = own.timesteps.clone()
    assert torch.equal(latents(model, scheduler=own), latents(model, scheduler="euler"))
    assert torch.equal(own.timesteps, before)


@pytest.mark.parametrize(
    ("settings", "code", "named"),
    [
        ({"height": 15}, "IA550", "multiples of 2"),
        ({"steps": 0}, "IA550", "at least one step"),
        ({"output": "picture"}, "IA550", "picture"),
        ({"guidance": float("nan")}, "IA550", "guidance"),
        ({"clip_skip": -1}, "IA550", "clip_skip"),
        ({"clip_skip": 9}, "IA541", "9 layers early"),
        ({"scheduler": "eulr"}, "IA551", "Euler"),
        ({"latents": torch.zeros(1, 4, 8, 8)}, "IA505", "[1, 4, 8, 12]"),
        ({"seed": [1, 2]}, "IA550", "2 seeds"),
        ({"negative_prompt": ["a", "b"]}, "IA505", "2 negative prompts"),
        ({"prompt": 7}, "IA505", "prompt"),
        ({"prompt": []}, "IA505", "prompt"),
    ],
    ids=str,
)
def test_what_makes_no_image_is_refused_before_anything_runs(
    model: Any, settings: dict[str, Any], code: str, named: str
) -> None:
    steps: list[Any] = []
    given = {"prompt": "a boat", **settings}
    with pytest.raises(InarchError) as error:
        latents(model, callback=steps.append, **given)
    assert error.value.code == code
    assert named in str(error.value)
    assert steps == []


@pytest.mark.parametrize(
    ("task", "given", "code", "named"),
    [
        ("image_to_image", {"image": "nowhere.png"}, "IA505", "nowhere.png"),
        ("image_to_image", {"image": BLACK, "strength": 0.01}, "IA550", "none"),
        ("image_to_image", {"image": BLACK, "strength": 1.5}, "IA550", "strength"),
        ("image_to_image", {"image": BLACK + 7}, "IA505", "7"),
        ("inpaint", {"image": BLACK, "mask": BLACK}, "IA505", "mask"),
    ],
    ids=str,
)
def test_images_that_can_not_be_used_are_refused(
    model: Any, task: str, given: dict[str, Any], code: str, named: str
) -> None:
    with pytest.raises(InarchError) as error:
        getattr(model, task)("a boat", steps=4, height=16, width=24, **given)
    assert error.value.code == code
    assert named in str(error.value)


def test_a_model_for_inpainting_says_so(tmp_path: Path) -> None:
    model = inarch.load(saved(tmp_path, in_channels=9))
    with pytest.raises(InarchError) as error:
        latents(model)
    assert error.value.code == "IA506"
    assert "inpaint" in error.value.remedy
