"""Every scene of the examples on a GPU, with `--device cuda` the only change, and its numbers.

The noise is drawn on the CPU from a seed, so both devices begin with the same; what they end with
is the same up to the order of additions, once convolutions are told to keep all of float32.
"""

from __future__ import annotations

import runpy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import inarch

sys.path.insert(0, str(Path(__file__).parent))
from small_scenes import NAMES, scenes_in

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]

STEPS = 3
SEVERAL: dict[str, tuple[list[inarch.AdapterSpec | str], dict[str, Any]]] = {
    "sag": (["sag", "freeu"], {"scheduler": "ddim"}),
    "style-aligned": (["style-aligned", "freeu"], {"prompt": ["a boat", "a sea"], "seed": [1, 2]}),
    "reference": (
        [inarch.adapter("reference", reference_adain=True)],
        {"reference_image": torch.linspace(0, 1, 16).expand(1, 3, 16, 16)},
    ),
    "multidiffusion": (
        [inarch.adapter("multidiffusion", window=8, stride=4, circular=True)],
        {"width": 32},
    ),
    "untrained": (
        [
            inarch.adapter("controlnet", name="canny", guess_mode=True, widths=(2, 3)),
            inarch.adapter("t2i-adapter", name="sketch", layers=1, downscale=2),
            inarch.adapter("lora", rank=2),
        ],
        {"canny_image": torch.full((1, 3, 16, 16), 0.3), "sketch_image": torch.ones(1, 3, 16, 16)},
    ),
    "ancestral": ([], {"scheduler": "euler a"}),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return scenes_in(tmp_path_factory.mktemp("scenes"))


@pytest.fixture(autouse=True)
def whole_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def run_scene(
    place: Path, name: str, options: list[str], monkeypatch: pytest.MonkeyPatch
) -> tuple[Any, Tensor]:
    """The model that a scene's script makes with these options, and its last latents."""
    from inarch_stable_diffusion.model import StableDiffusion

    monkeypatch.chdir(place)
    monkeypatch.syspath_prepend(str(place))
    monkeypatch.setattr(sys, "argv", [f"{name}.py", "--steps", str(STEPS), *options])
    seen: list[Any] = []
    plain = StableDiffusion.text_to_image

    def watched(self: Any, *args: Any, **settings: Any) -> Any:
        return plain(self, *args, **settings, callback=seen.append)

    with monkeypatch.context() as patched:
        patched.setattr(StableDiffusion, "text_to_image", watched)
        ran = runpy.run_path(f"{name}.py")
    return ran["model"], seen[-1].latents


@pytest.mark.parametrize("name", NAMES)
def test_a_scene_on_a_gpu_has_the_latents_it_has_on_the_cpu(
    place: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, expected = run_scene(place, name, [], monkeypatch)
    model, latents = run_scene(place, name, ["--device", "cuda"], monkeypatch)
    assert latents.device.type == "cuda"
    assert {tensor.device.type for tensor in model.state_dict().values()} == {"cuda"}
    assert {m.scale.device.type for one in model.adapters for m in one.edges} <= {"cuda"}
    torch.testing.assert_close(latents.cpu(), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", NAMES)
def test_a_scene_in_half_precision_on_a_gpu_stays_near_the_cpu(
    place: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # In half precision there too: some versions of torch draw other noise for another dtype.
    options = ["--dtype", "float16"]
    _, expected = run_scene(place, name, options, monkeypatch)
    _, latents = run_scene(place, name, ["--device", "cuda", *options], monkeypatch)
    assert latents.dtype is expected.dtype is torch.float16
    spread = float(expected.float().std())
    assert float((latents.cpu() - expected).float().abs().mean()) < 0.05 * spread


@pytest.mark.parametrize("which", SEVERAL)
def test_adapters_without_files_do_on_a_gpu_what_they_do_on_the_cpu(
    place: Path, which: str
) -> None:
    adapters, given = SEVERAL[which]
    settings = {"prompt": "a boat", "seed": 1, "steps": STEPS, "output": "latents", **given}
    checkpoint = place / "models" / "stable-diffusion-v1-5"
    found: list[Tensor] = []
    for device in ("cpu", "cuda"):
        torch.manual_seed(0)  # for what begins at random
        model = inarch.load(checkpoint).adapt(*adapters)
        trained = _trained(model, place / f"{which}-files")
        model = inarch.load(checkpoint, device=device).adapt(*(trained or adapters))
        found.append(model.text_to_image(**settings).cpu())
    torch.testing.assert_close(found[1], found[0], rtol=1e-3, atol=1e-3)


def _trained(model: Any, folder: Path) -> list[inarch.AdapterSpec]:
    """The adapters of a model with random weights, saved; the others as they are."""
    specs: list[inarch.AdapterSpec] = []
    for member in model.adapters:
        path, fitting = (
            folder / member.name,
            {"guess_mode": True} if member.kind == "controlnet" else {},
        )
        if not member.trainable:
            specs.append(member.spec)
            continue
        generator = torch.Generator().manual_seed(len(member.name))
        for parameter in member.parameters().values():
            parameter.data = torch.randn(parameter.shape, generator=generator) / 8
        model.save_adapter(member.name, path)
        specs.append(inarch.adapter(member.kind, name=member.name, weights=path, **fitting))
    return specs


def test_image_to_image_and_inpainting_on_a_gpu_have_the_latents_of_the_cpu(place: Path) -> None:
    checkpoint = place / "models" / "stable-diffusion-v1-5"
    picture = place / "pictures" / "edges.png"
    mask = torch.zeros(1, 1, 48, 48)
    mask[..., 8:32, 16:40] = 1.0
    settings: dict[str, Any] = {"seed": 2, "steps": STEPS, "output": "latents", "image": picture}
    here, there = inarch.load(checkpoint), inarch.load(checkpoint, device="cuda")
    for run in (
        lambda model: model.image_to_image("a boat", strength=0.7, **settings),
        lambda model: model.inpaint("a boat", mask=mask, **settings),
    ):
        torch.testing.assert_close(run(there).cpu(), run(here), rtol=1e-3, atol=1e-3)
