"""The scenes of the examples, with small random files under the names that they ask for."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import inarch

ROOT = Path(__file__).parent.parent
SCENES = ROOT / "examples" / "scenes"
sys.path.insert(0, str(ROOT / "foundation_models" / "stable_diffusion" / "tests"))

NAMES = sorted(path.stem for path in SCENES.glob("*.toml"))
PICTURES = ("edges", "depth", "face", "pose", "sketch")
# As XL's own: nothing attends at the first of three resolutions.
THREE_LEVELS = {
    "block_out_channels": (8, 16, 16),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
}
# What an untrained adapter of a kind is asked for with; what it is trained to be is in the file.
FRESH: dict[str, dict[str, Any]] = {
    "controlnet": {"widths": (2, 3)},
    "t2i-adapter": {"layers": 1, "kind": "full_xl", "downscale": 4},
    "ip-adapter": {"embedding": 10},
    "lora": {"rank": 2},
    "textual-inversion": {"vectors": 2, "token": "<coat>"},
}


def scenes_in(folder: Path) -> Path:
    """A copy of the scenes, with pictures and models beside it."""
    pytest.importorskip("diffusers")
    from PIL import Image
    from small_pipelines import saved

    place = folder / "scenes"
    shutil.copytree(SCENES, place)
    (place / "pictures").mkdir()
    generator = torch.Generator().manual_seed(0)
    for name in PICTURES:
        pixels = torch.randint(0, 256, (48, 48, 3), generator=generator, dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(place / "pictures" / f"{name}.png")
    saved(place / "models" / "stable-diffusion-v1-5", seed=1)
    saved(place / "models" / "stable-diffusion-xl", xl=True, seed=2, **THREE_LEVELS)
    _image_encoder(place / "models" / "image-encoder")
    for name in NAMES:
        _adapters(place, name)
    return place


def _image_encoder(folder: Path) -> None:
    import transformers

    config = transformers.CLIPVisionConfig(
        hidden_size=12,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=16,
        patch_size=8,
        projection_dim=10,
    )
    torch.manual_seed(3)
    transformers.CLIPVisionModelWithProjection(config).save_pretrained(folder)


def _adapters(place: Path, name: str) -> None:
    """A random file for each adapter of a scene that has one, in the adapter's own format."""
    stack = inarch.load_stack(place / f"{name}.toml")
    base = inarch.load(stack.model or "")
    for spec in stack.specs:
        if spec.weights is None or Path(spec.weights).exists():
            continue
        options = dict(FRESH[spec.use])
        model = base.adapt(inarch.adapter(spec.use, name=spec.name, **options))
        generator = torch.Generator().manual_seed(len(spec.name))
        for parameter in model.adapter_parameters(spec.name).values():
            parameter.data = torch.randn(parameter.shape, generator=generator) / 8
        model.save_adapter(spec.name, spec.weights)
