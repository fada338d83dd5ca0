"""Pictures in all the forms users have them in, as one tensor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from inarch.errors import InarchError
from inarch.nn.picture import pictures

Image = pytest.importorskip("PIL.Image")


def drawn(height: int, width: int, mode: str = "RGB") -> Any:
    generator = torch.Generator().manual_seed(height)
    pixels = torch.randint(0, 256, (height, width, 3), dtype=torch.uint8, generator=generator)
    return Image.frombytes("RGB", (width, height), bytes(pixels.flatten().tolist())).convert(mode)


def test_a_file_an_image_and_a_tensor_of_one_picture_are_equal(tmp_path: Path) -> None:
    image = drawn(6, 9)
    image.save(tmp_path / "it.png")
    expected = pictures(image, 6, 9, name="it")
    assert expected.shape == (1, 3, 6, 9)
    assert torch.equal(pictures(tmp_path / "it.png", 6, 9, name="it"), expected)
    assert torch.equal(pictures([image, image], 6, 9, name="it"), torch.cat([expected, expected]))
    assert torch.equal(pictures(expected, 6, 9, name="it"), expected)
    assert torch.equal(pictures([expected[0]], 6, 9, name="it"), expected)
    assert round(float(expected[0, 1, 2, 3]) * 255) == image.getpixel((3, 2))[1]


def test_pictures_of_another_size_are_resized_as_diffusers_does() -> None:
    processors = pytest.importorskip("diffusers.image_processor")
    processor = processors.VaeImageProcessor(do_convert_rgb=True, do_normalize=False)
    for mode in ("RGB", "L"):
        image = drawn(17, 23, mode)
        theirs = processor.preprocess(image, height=16, width=24)
        assert torch.equal(pictures(image, 16, 24, name="it"), theirs)


def test_a_grey_picture_has_one_channel() -> None:
    assert pictures(drawn(4, 5), 4, 5, channels=1, name="it").shape == (1, 1, 4, 5)


@pytest.mark.parametrize(
    ("value", "why"),
    [
        (torch.rand(3, 4, 5), "[3, 4, 5]"),
        (torch.zeros(3, 4, 4, dtype=torch.uint8), "divide by 255"),
        (torch.full((3, 4, 4), -1.0), "-1"),
        (torch.full((3, 4, 4), float("nan")), "nan"),
        ("nowhere.png", "nowhere.png"),
        ([], "empty"),
        (3, "int"),
    ],
)
def test_what_is_no_picture_is_refused(value: Any, why: str) -> None:
    with pytest.raises(InarchError) as raised:
        pictures(value, 4, 4, name="canny_image")
    assert raised.value.code == "IA505"
    assert why in raised.value.why
