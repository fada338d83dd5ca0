"""Whole pipelines with learned words, against diffusers: the same latents after ten steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import inarch

PROMPT, NEGATIVE = "a red <toy> in the <art> sea", "ugly <toy>"


def drawn(count: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 12, generator=generator) * 0.3


@pytest.fixture(params=[False, True], ids=["sd1", "xl"])
def pipelines(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Any, Any, list[Any]]:
    """diffusers' pipeline with two words, the model without, and the adapters that teach them."""
    pytest.importorskip("diffusers")
    import small_pipelines as small

    small.saved(tmp_path / "base", xl=request.param)
    pipe = small.pipeline(tmp_path / "base")
    specs: list[Any] = []
    for number, (name, count) in enumerate((("art", 2), ("toy", 3))):
        first, second = drawn(count, number), drawn(count, number + 5)
        path = tmp_path / f"{name}.safetensors"
        pipe.load_textual_inversion({f"<{name}>": first})
        if request.param:
            parts = {"text_encoder": pipe.text_encoder_2, "tokenizer": pipe.tokenizer_2}
            pipe.load_textual_inversion({f"<{name}>": second}, **parts)
            save_file({"clip_l": first, "clip_g": second}, path)
        else:
            save_file({f"<{name}>": first}, path)
        specs.append(inarch.adapter("textual-inversion", weights=path, name=name))
    return pipe, inarch.load(tmp_path / "base"), specs


def latents(model: Any, noise: Tensor, steps: int = 2) -> Tensor:
    return model.text_to_image(
        PROMPT,
        negative_prompt=NEGATIVE,
        steps=steps,
        guidance=5.0,
        latents=noise,
        height=16,
        width=16,
        output="latents",
        progress=False,
    )


def test_ten_steps_with_two_words_equal_diffusers(pipelines: tuple[Any, Any, list[Any]]) -> None:
    pipe, base, specs = pipelines
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(9))
    with torch.no_grad():
        expected = pipe(
            PROMPT,
            negative_prompt=NEGATIVE,
            num_inference_steps=10,
            guidance_scale=5.0,
            latents=noise.clone(),
            height=16,
            width=16,
            output_type="latent",
        ).images
    actual = latents(base.adapt(*specs), noise, 10)
    scale = float(expected.abs().max())
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5 * scale)
    assert (latents(base, noise, 10) - expected).abs().max() > 1e-3 * scale


def test_words_and_a_lora_of_the_text_encoder_are_one_model_in_every_order(
    pipelines: tuple[Any, Any, list[Any]],
) -> None:
    _, base, [art, toy] = pipelines
    targets = ["text_encoder.text_model.encoder.layers.*.self_attn.q_proj"]
    lora = inarch.adapter("lora", rank=2, targets=targets, name="tuned")
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(8))
    moved = base.adapt(lora)
    with torch.no_grad():
        for parameter in moved.adapters["tuned"].parameters().values():
            parameter.copy_(torch.ones_like(parameter) * 0.2)
    one, two = moved.adapt(art, toy), moved.adapt(toy).adapt(art)
    assert one.digest == two.digest
    assert torch.equal(latents(one, noise), latents(two, noise))
    assert not torch.equal(latents(one, noise), latents(base.adapt(art, toy), noise))
    assert torch.equal(latents(one.without("art", "toy"), noise), latents(moved, noise))


def test_a_learned_word_takes_a_weight_in_the_prompt(
    pipelines: tuple[Any, Any, list[Any]],
) -> None:
    from inarch_stable_diffusion.weighting import chunks

    _, base, specs = pipelines
    tokenizer = base.adapt(*specs).tokenizers["text_encoder"]
    [(ids, weights)] = chunks("a (<toy>:1.5)", tokenizer, 75)
    assert weights == [1.0, 1.5, 1.5, 1.5]
    assert ids[1:] == tokenizer.encode("<toy>", special=False)
