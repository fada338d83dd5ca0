"""Image models whose rows have adapters of their own, asked as a user asks them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import inarch
from inarch.errors import InarchError
from inarch.testing import tiny_models
from inarch.testing.subject import trained

PIPELINES = Path(__file__).parent.parent / "foundation_models" / "stable_diffusion" / "tests"
SPECS = {
    "image": inarch.adapter("lora", name="image", rank=2, targets=["attention.*", "resnet.conv"]),
    "text": inarch.adapter("lora", name="text", rank=2, targets=["text.attention.query"]),
}
PROMPTS = ["a cat", "a dog"]
ASKED: dict[str, Any] = {"steps": 2, "seed": 1, "height": 16, "width": 16, "output": "latents"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    pytest.importorskip("diffusers")
    sys.path.insert(0, str(PIPELINES))
    from small_pipelines import saved

    base = inarch.load(saved(tmp_path_factory.mktemp("pipeline"), seed=1), dtype="float64")
    return base._with([m for spec in SPECS.values() for m in trained(base, spec).adapters])


@pytest.mark.parametrize("name", SPECS)
def test_pictures_of_a_batch_are_those_of_their_rows_alone(model: Any, name: str) -> None:
    got = model.rows([name, None]).text_to_image(PROMPTS, guidance=1.0, **ASKED)
    with_it = model.without(*(SPECS.keys() - {name}))
    bare = model.without(*SPECS)
    expected = [one.text_to_image(PROMPTS, guidance=1.0, **ASKED) for one in (with_it, bare)]
    torch.testing.assert_close(got[0], expected[0][0], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(got[1], expected[1][1], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize(
    ("prompt", "guidance", "word"),
    [("a cat", 5.0, "guided"), ("a cat", 1.0, "1 came"), ([*PROMPTS, "a cow"], 1.0, "3 came")],
)
def test_pictures_that_other_rows_would_meet_are_refused(
    model: Any, name: str, prompt: Any, guidance: float, word: str
) -> None:
    """One prompt with guidance is two rows as well, neither of which was told."""
    with pytest.raises(InarchError, match=word) as caught:
        model.rows([name, None]).text_to_image(prompt, guidance=guidance, **ASKED)
    assert caught.value.code == "IA513"


def test_texts_and_images_that_are_no_rows_are_refused_where_rows_have_adapters() -> None:
    clip = next(iter(tiny_models(families=["clip"]))).build()
    spec = inarch.adapter(
        "lora", name="a", rank=2, targets=["vision_model.encoder.layers.*.self_attn.q_proj"]
    )
    model: Any = trained(clip, spec)
    mixed = model.rows(["a", None])
    size = clip.config.vision.image_size
    ids, pixels = torch.tensor([[1, 2, 3]]), torch.rand(2, 3, size, size)
    with torch.no_grad():
        got = mixed(ids, pixels)  # one text, which no adapter meets, and two images
        expected = [model(ids, pixels[:1]), clip(ids, pixels[1:])]
    torch.testing.assert_close(got, torch.cat(expected), rtol=1e-5, atol=1e-5)
    for ask in (lambda: mixed(ids, pixels[:1]), lambda: mixed.embed_image(pixels[0])):
        with pytest.raises(InarchError, match="1 came") as caught:
            ask()
        assert caught.value.code == "IA513"
