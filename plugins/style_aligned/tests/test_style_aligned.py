"""StyleAligned against its published equation, and in whole pictures."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from small_pipelines import saved
from torch.nn import functional as F

import inarch
from inarch_style_aligned.adapter import share_style

PROMPTS = ["a lighthouse in the storm", "a red boat", "the quiet sea"]


def published(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float
) -> torch.Tensor:
    """Equation 4 and the shared attention of the official code, row by row, in float64."""
    half = len(query) // 2
    rows = []
    for i in range(len(query)):
        first = 0 if i < half else half

        def adain(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            def deviation(z: torch.Tensor) -> torch.Tensor:
                return (z.var(-2, keepdim=True) + 1e-5).sqrt()

            centred = (x - x.mean(-2, keepdim=True)) / deviation(x)
            return centred * deviation(y) + y.mean(-2, keepdim=True)

        q, k = adain(query[i], query[first]), adain(key[i], key[first])
        reference = adain(key[first], key[first]) * (1.0 if i == first else scale)
        keys = torch.cat([k, reference], dim=-2)
        values = torch.cat([value[i], value[first]], dim=-2)
        scores = q @ keys.mT / q.shape[-1] ** 0.5
        rows.append(scores.softmax(-1) @ values)
    return torch.stack(rows)


@pytest.mark.parametrize("scale", [1.0, 0.7])
def test_shared_attention_equals_the_published_equation(scale: float) -> None:
    generator = torch.Generator().manual_seed(0)
    query, key, value = (
        torch.randn(6, 2, 9, 4, generator=generator, dtype=torch.float64) for _ in range(3)
    )
    given = share_style(query, key, value, None, halves=2, strength=scale)
    got = F.scaled_dot_product_attention(*given[:3])
    torch.testing.assert_close(got, published(query, key, value, scale))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("pipeline"), seed=2)


@pytest.mark.parametrize("guidance", [1.0, 5.0])
def test_the_first_picture_leads_and_the_others_follow(folder: Path, guidance: float) -> None:
    base = inarch.load(folder)
    model = base.adapt("style-aligned")
    noise = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    settings = {"steps": 2, "height": 16, "width": 16, "guidance": guidance, "output": "latents"}
    together = model.text_to_image(PROMPTS, latents=noise, **settings)
    alone = model.text_to_image(PROMPTS[0], latents=noise[:1], **settings)
    torch.testing.assert_close(together[:1], alone, atol=1e-4, rtol=1e-4)
    other = noise.clone()
    other[0] += 1.0
    changed = model.text_to_image(PROMPTS, latents=other, **settings)
    assert not torch.allclose(changed[1:], together[1:], atol=1e-3)
    plain = base.text_to_image(PROMPTS, latents=noise, **settings)
    assert not torch.allclose(plain[1:], together[1:], atol=1e-3)


def test_it_stands_beside_a_lora_on_the_same_attention(folder: Path) -> None:
    base = inarch.load(folder)
    specs = [inarch.adapter("style-aligned"), inarch.adapter("lora", name="style")]
    models = [base.adapt(*specs), base.adapt(*reversed(specs))]
    assert models[0].digest == models[1].digest
    settings = {"steps": 1, "height": 16, "width": 16, "seed": 1, "output": "latents"}
    assert torch.equal(*(m.text_to_image(PROMPTS, **settings) for m in models))
