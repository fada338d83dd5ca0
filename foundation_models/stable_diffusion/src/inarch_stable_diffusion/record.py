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

    from inarch.adapters import Member
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
    return {
        "inarch": inarch.__version__,
        "model": str(Path(source).resolve()) if Path(source).exists() else source,
        "fingerprint": model.fingerprint(),
        "adapter": [_adapter(member) for member in model.adapters],
        "digest": model.digest,
        "task": task,
        "settings": {name: _from_anywhere(value) for name, value in settings.items()},
    }


def _from_anywhere(value: Any) -> Any:
    """Settings with the paths of files whole, so that they are found from other folders too."""
    if isinstance(value, Mapping):
        return {name: _from_anywhere(one) for name, one in value.items()}
    is_file = isinstance(value, str | Path) and len(str(value)) < 1024 and Path(value).is_file()
    return str(Path(value).resolve()) if is_file else value


def _adapter(member: Member) -> dict[str, Any]:
    """A member as it ran, with the adapters in the tree that it brings."""
    told = msgspec.to_builtins(member.spec)
    told |= {"options": member.adapter.with_whole_paths(member.spec.options)}
    own = ("where", "folder")
    kept = {n: v for n, v in told.items() if n not in own and v not in (None, {}, "", [], ())}
    if member.spec.weights is not None:
        kept["weights"] = str(Path(member.spec.weights).resolve())
    inner = [] if member.inner is None else [_adapter(one) for one in member.inner.adapters]
    return {**kept, "scale": member.scale, **({"adapters": inner} if inner else {})}


def changed(told: Mapping[str, Any], model: StableDiffusion) -> list[str]:
    """What of a record's model and stack is not as it was, one clause each."""
    found: list[str] = []
    if told.get("fingerprint", model.fingerprint()) != model.fingerprint():
        found.append("the base has other weights than the picture was made with")
    if told.get("digest", model.digest) != model.digest:
        found.append("the stack is another than the picture was made with")
    return found


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
