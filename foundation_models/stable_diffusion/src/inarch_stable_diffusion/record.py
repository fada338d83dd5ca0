"""What an image's file says of how it was made, so that it can be made again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

import inarch
from inarch.errors import InarchError

if TYPE_CHECKING:
    from PIL.Image import Image

    from inarch_stable_diffusion.model import StableDiffusion

KEY = "inarch"


def record(
    model: StableDiffusion, source: str, task: str, settings: Mapping[str, Any]
) -> dict[str, Any]:
    """What made some images: the model, the stack and the settings.

    Args:
        model: adapted, as it ran.
        source: what `inarch.load` was given.
        task: the method's name.
        settings: its parameters, as JSON can hold them.
    """
    adapters = [
        {**_without_empty(msgspec.to_builtins(m.spec)), "scale": m.scale} for m in model.adapters
    ]
    return {
        "inarch": inarch.__version__,
        "model": source,
        "fingerprint": model.fingerprint(),
        "adapter": adapters,
        "digest": model.digest,
        "task": task,
        "settings": dict(settings),
    }


def _without_empty(spec: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in spec.items() if value not in (None, {}, "", [], ())}


def save(image: Image, path: Path, told: Mapping[str, Any]) -> None:
    """Save an image, in a PNG with the record as a text chunk `inarch`."""
    if path.suffix.lower() != ".png":
        image.save(path)
        return
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_text(KEY, json.dumps(told, ensure_ascii=False, default=str))
    image.save(path, pnginfo=info)


def recorded(path: Path) -> dict[str, Any]:
    """The record in an image's file.

    Raises:
        InarchError: IA553 for an image without one.
    """
    from PIL import Image

    try:
        with Image.open(path) as file:
            text = file.info.get(KEY)
        told = json.loads(text) if text else None
    except (OSError, ValueError) as error:
        raise _no_record(path, str(error)) from None
    if not isinstance(told, dict) or not {"model", "task", "settings"} <= set(told):
        raise _no_record(path, f"it has no text `{KEY}`")
    return told


def _no_record(path: Path, why: str) -> InarchError:
    return InarchError(
        "IA553",
        f"`{path.name}` does not say how it was made",
        where=str(path),
        why=why,
        remedy="pass a PNG that `inarch run ... --out` wrote, as it wrote it",
    )
