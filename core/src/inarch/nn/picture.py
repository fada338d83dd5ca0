"""Pictures as tensors, from what users have: paths, Pillow's images, tensors."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from inarch.errors import InarchError

if TYPE_CHECKING:
    from inarch.adapters import Request


def pictures(value: Any, height: int, width: int, *, channels: int = 3, name: str) -> Tensor:
    """Pictures of one size as floats.

    Args:
        value: a path, an image of Pillow, or several of them, resized where they are of another
            size (Lanczos); or a tensor [batch, channels, height, width] or one picture of it,
            which must be of the size.
        height, width: in pixels.
        channels: 3, red, green and blue; or 1, grey.
        name: of the input, for errors.

    Returns:
        [batch, channels, height, width], float32 in 0..1, on the CPU unless a tensor came from
        elsewhere.

    Raises:
        InarchError: IA505 for what is no picture, IA509 where Pillow is not installed.
    """
    if isinstance(value, Tensor):
        return _checked(value, height, width, channels, name)
    several = isinstance(value, Sequence) and not isinstance(value, (str, bytes))
    items: list[Any] = list(cast("Sequence[Any]", value)) if several else [value]
    if items and all(isinstance(item, Tensor) for item in items):
        return torch.cat([_checked(item, height, width, channels, name) for item in items])
    if not items:
        raise _no_picture(name, channels, "the list is empty")
    return torch.stack([_read(item, height, width, channels, name) for item in items])


def rows_of_pictures(value: Any, request: Request, *, channels: int = 3, name: str) -> Tensor:
    """A picture for each row of a request, or one for all of them, where it will run.

    Args:
        value: as `pictures` takes it: one picture, or as many as there are results.
        request: of a task; where it is guided, several pictures are repeated for the second half.

    Returns:
        [1, channels, height, width], or [batch, ...], or [2 * batch, ...] where it is guided.

    Raises:
        InarchError: as `pictures`, and IA505 for another number of them.
    """
    rows = pictures(value, request.height, request.width, channels=channels, name=name)
    if len(rows) not in (1, request.batch):
        raise InarchError(
            "IA505",
            f"`{name}` holds {len(rows)} pictures for {request.batch} results",
            where=name,
            remedy="pass one picture for all, or one for each",
        )
    rows = rows.to(request.device, request.dtype)
    return torch.cat([rows, rows]) if request.guided and len(rows) > 1 else rows


def _checked(value: Tensor, height: int, width: int, channels: int, name: str) -> Tensor:
    rows = value[None] if value.dim() == 3 else value
    if rows.dim() != 4 or tuple(rows.shape[1:]) != (channels, height, width):
        why = f"it has the shape {list(value.shape)}, and [{channels}, {height}, {width}] is needed"
        raise _no_picture(name, channels, why)
    if not rows.is_floating_point():
        raise _no_picture(name, channels, f"it holds {value.dtype}; divide by 255")
    low, high = (float(x) for x in torch.aminmax(rows.detach()))
    if not (low >= 0.0 and high <= 1.0):
        raise _no_picture(name, channels, f"its values reach from {low:.3g} to {high:.3g}")
    return rows.float()


def _read(item: Any, height: int, width: int, channels: int, name: str) -> Tensor:
    try:
        from PIL import Image
    except ImportError:
        raise InarchError(
            "IA509", "reading pictures needs Pillow", where=name, remedy="pip install pillow"
        ) from None
    if isinstance(item, (str, Path)):
        try:
            with Image.open(item) as file:
                file.load()
                item = file.copy()
        except (OSError, ValueError) as error:
            raise _no_picture(name, channels, f"{item}: {error}") from None
    if not isinstance(item, Image.Image):
        raise _no_picture(name, channels, f"it is a {type(item).__name__}")
    return _tensor(item, height, width, "L" if channels == 1 else "RGB")


def _tensor(image: Any, height: int, width: int, mode: str) -> Tensor:
    from PIL.Image import Resampling

    if image.mode not in ("RGB", "L"):
        image = image.convert(mode)
    if image.size != (width, height):
        image = image.resize((width, height), Resampling.LANCZOS)
    image = image.convert(mode)
    flat = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    return flat.reshape(height, width, len(mode)).permute(2, 0, 1).float() / 255


def _no_picture(name: str, channels: int, why: str) -> InarchError:
    return InarchError(
        "IA505",
        f"`{name}` is not a picture that can be used",
        where=name,
        why=why,
        remedy=f"pass a path, an image, or a tensor [batch, {channels}, height, width] in 0..1",
    )
