"""A distilled LoRA asks for its scheduler, guidance and steps, and the pipeline does as asked."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

import inarch

diffusers = pytest.importorskip("diffusers")

ROOT = Path(__file__).parents[3]
sys.path.insert(0, str(ROOT / "foundation_models" / "stable_diffusion" / "tests"))

from small_pipelines import pipeline, saved  # noqa: E402

ASKS: dict[str, Any] = {"scheduler": "lcm", "guidance": 1.0, "steps": 4}
PROMPT = "a lighthouse in the storm"
WISH: dict[str, Any] = {"height": 16, "width": 16, "seed": 3, "output": "latents"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("pipeline") / "sd1")


@pytest.fixture(scope="module")
def distilled(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA of ours, saved with what it asks for."""
    torch.manual_seed(0)
    spec = inarch.adapter("lora", targets=["attention.query", "mlp.*"], rank=2, asks=ASKS)
    adapted = inarch.load(folder).adapt(spec)
    for parameter in adapted.adapter_parameters("lora").values():
        parameter.data.normal_(std=0.2)
    return adapted.save_adapter("lora", tmp_path_factory.mktemp("lora"))


def test_the_file_keeps_what_it_asks_for(distilled: Path) -> None:
    [file] = distilled.glob("*.safetensors")
    with safe_open(file, "pt") as opened:
        assert opened.metadata()["inarch.asks"] == (
            '{"guidance": 1.0, "scheduler": "lcm", "steps": 4}'
        )


def test_the_latents_are_diffusers_own_with_those_settings(folder: Path, distilled: Path) -> None:
    model = inarch.load(folder).adapt(inarch.adapter("lora", weights=distilled))
    assert model.asks == ASKS
    found = model.text_to_image(PROMPT, **WISH)
    theirs = pipeline(folder)
    [file] = distilled.glob("*.safetensors")
    theirs.load_lora_weights(str(file))
    theirs.scheduler = diffusers.LCMScheduler.from_config(theirs.scheduler.config)
    expected = theirs(
        PROMPT,
        height=16,
        width=16,
        num_inference_steps=4,
        guidance_scale=1.0,
        generator=torch.Generator().manual_seed(3),
        output_type="latent",
    ).images
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_the_users_word_goes_first(folder: Path, distilled: Path) -> None:
    base = inarch.load(folder)
    asking = base.adapt(inarch.adapter("lora", weights=distilled))
    said = {"scheduler": "euler", "guidance": 3.0, "steps": 2}
    silent = base.adapt(inarch.adapter("lora", weights=distilled, asks={"steps": 2}))
    told = asking.text_to_image(PROMPT, **WISH, **said)
    assert torch.equal(told, silent.text_to_image(PROMPT, **WISH, **said))
    assert not torch.equal(told, asking.text_to_image(PROMPT, **WISH))


def test_a_setting_no_image_has_is_refused(folder: Path) -> None:
    spec = inarch.adapter("lora", targets=["attention.query"], asks={"temperature": 1.0})
    with pytest.raises(inarch.InarchError) as caught:
        inarch.load(folder).adapt(spec).text_to_image(PROMPT, **WISH)
    assert (caught.value.code, "temperature" in caught.value.what) == ("IA550", True)
