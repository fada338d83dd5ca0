"""Images as CLIP sees them: resized, cropped, scaled as preprocessor_config.json says.

Source: `CLIPImageProcessor` of transformers, with Pillow.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from inarch.errors import InarchError
from inarch.weights.checkpoint import read_json

Picture = str | Path | Image.Image | np.ndarray | Tensor


class ImageProcessor(msgspec.Struct, frozen=True, kw_only=True):
    """What is done to an image before the vision tower.

    Attributes:
        size: the shorter edge after resizing, or height and width.
        crop_size: height and width of what is cut from the middle.
        resample: Pillow's number of a filter; 3 is bicubic.
        rescale_factor: of the bytes.
        image_mean, image_std: per channel, after rescaling.
    """

    size: int | tuple[int, int] = 224
    crop_size: tuple[int, int] = (224, 224)
    resample: int = 3
    rescale_factor: float = 1 / 255
    image_mean: tuple[float, ...] = (0.48145466, 0.4578275, 0.40821073)
    image_std: tuple[float, ...] = (0.26862954, 0.26130258, 0.27577711)
    do_resize: bool = True
    do_center_crop: bool = True
    do_rescale: bool = True
    do_normalize: bool = True

    @classmethod
    def from_folder(cls, path: Path | None, image_size: int) -> ImageProcessor:
        """The settings of a folder; the published CLIP's where it says nothing.

        Args:
            path: may hold preprocessor_config.json, or processor_config.json as transformers 5.
            image_size: of the vision tower.

        Raises:
            InarchError: IA205 for a file that can't be read or whose settings are unknown.
        """
        given, where = _found(path)
        settings: dict[str, Any] = {"size": image_size, "crop_size": (image_size, image_size)}
        for name in cls.__struct_fields__:
            if given.get(name) is not None:
                settings[name] = given[name]
        settings["size"] = _edges(settings["size"], square=False)
        settings["crop_size"] = _edges(settings["crop_size"], square=True)
        try:
            return msgspec.convert(settings, cls)
        except msgspec.ValidationError as error:
            raise InarchError(
                "IA205",
                "these settings of images are unknown",
                where=where,
                why=str(error),
                remedy="put the preprocessor_config.json there that was published",
            ) from None

    def __call__(self, images: Sequence[Picture]) -> Tensor:
        """Images as one tensor, [images, channels, height, width], float32.

        Raises:
            InarchError: IA542 for what is no image, or images of several sizes where the settings
                don't make them equal.
        """
        made = [self._one(image, number) for number, image in enumerate(images)]
        sizes = {tuple(image.shape) for image in made}
        if len(sizes) > 1:
            raise _no_image(
                f"{len(made)} images", f"they come out as {sorted(sizes)}", "pass one size"
            )
        return torch.stack(made)

    def _one(self, given: Picture, number: int) -> Tensor:
        image = opened(given, f"image {number}")
        if self.do_resize:
            image = image.resize(self._resized(image), Image.Resampling(self.resample))
        if self.do_center_crop:
            image = cropped(image, *self.crop_size)
        values = np.asarray(image, dtype=np.float32)
        if self.do_rescale:
            values = values * np.float32(self.rescale_factor)
        if self.do_normalize:
            values = (values - np.float32(self.image_mean)) / np.float32(self.image_std)
        return torch.from_numpy(np.ascontiguousarray(values.transpose(2, 0, 1)))

    def _resized(self, image: Image.Image) -> tuple[int, int]:
        """Width and height after resizing; the longer edge is rounded down."""
        if not isinstance(self.size, int):
            return self.size[1], self.size[0]
        shorter = min(image.size)
        width, height = (
            self.size if side == shorter else int(self.size * side / shorter) for side in image.size
        )
        return width, height


def opened(given: Picture, where: str) -> Image.Image:
    """An image as Pillow has it, in RGB.

    Args:
        given: a path; an image of Pillow; an array or tensor of bytes, or of numbers in 0..1, with
            its 1, 3 or 4 channels first or last, or of two dimensions.
        where: named in an error.

    Raises:
        InarchError: IA542.
    """
    if isinstance(given, str | Path):
        try:
            with Image.open(given) as file:
                return ImageOps.exif_transpose(file).convert("RGB")
        except (OSError, ValueError, Image.DecompressionBombError) as error:
            raise _no_image(str(given), str(error), "pass the path of an image") from None
    if isinstance(given, Image.Image):
        return given.convert("RGB")
    if isinstance(given, Tensor):
        given = given.detach().cpu().float().numpy() if given.is_floating_point() else given.numpy()
    if isinstance(given, np.ndarray):
        return Image.fromarray(_bytes(given, where)).convert("RGB")
    kind = type(given).__name__
    raise _no_image(where, f"it is a {kind}", "pass a path, an image of Pillow, an array or tensor")


def cropped(image: Image.Image, height: int, width: int) -> Image.Image:
    """The middle of an image; black around one that is smaller, as the processor pads."""
    across, down = image.size
    left, top = (across - width) // 2, (down - height) // 2
    return image.crop((left, top, left + width, top + height))


def _bytes(values: np.ndarray, where: str) -> np.ndarray:
    """An array as [height, width] or [height, width, channels] of bytes."""
    if values.ndim == 3 and values.shape[-1] not in (1, 3, 4) and values.shape[0] in (1, 3, 4):
        values = np.moveaxis(values, 0, -1)
    if values.ndim == 3 and values.shape[-1] == 1:
        values = values[..., 0]
    if values.size == 0 or values.ndim not in (2, 3) or (values.ndim, values.shape[-1]) == (3, 1):
        raise _no_image(where, f"its shape is {list(values.shape)}", "pass [height, width, 3]")
    if values.ndim == 3 and values.shape[-1] not in (3, 4):
        raise _no_image(where, f"its shape is {list(values.shape)}", "pass [height, width, 3]")
    if values.dtype == np.uint8:
        return np.ascontiguousarray(values)
    if np.issubdtype(values.dtype, np.floating):
        if not (np.isfinite(values).all() and values.min() >= 0.0 and values.max() <= 1.0):
            raise _no_image(where, "its numbers are not in 0..1", "scale it, or pass bytes")
        return np.ascontiguousarray(np.rint(values * 255).astype(np.uint8))
    raise _no_image(where, f"its numbers are {values.dtype}", "pass bytes, or floats in 0..1")


def _found(path: Path | None) -> tuple[Mapping[str, Any], str]:
    for name in ("preprocessor_config.json", "processor_config.json"):
        file = None if path is None else path / name
        if file is not None and file.is_file():
            settings = read_json(file)
            return settings.get("image_processor", settings), str(file)
    return {}, ""


def _edges(value: Any, *, square: bool) -> Any:
    """One number, or height and width, from what the settings may hold."""
    if isinstance(value, Mapping):
        if "shortest_edge" in value:
            return value["shortest_edge"]
        return (value.get("height"), value.get("width"))
    return (value, value) if square and isinstance(value, int) else value


def _no_image(where: str, why: str, remedy: str) -> InarchError:
    return InarchError("IA542", "this is no image", where=where, why=why, remedy=remedy)
