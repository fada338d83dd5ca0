"""Which files of a checkpoint's folder hold its weights: one or shards, as transformers or
diffusers name them, plain or in a variant such as `model.fp16.safetensors`."""

from __future__ import annotations

import re
from pathlib import Path

from inarch.errors import InarchError
from inarch.weights.header import PICKLES, read_header

_STEMS = ("model", "diffusion_pytorch_model")
_SHARD = re.compile(r"-\d{5}-of-\d{5}$")


def weights_of(folder: Path) -> Path:
    """The safetensors file of a folder, or the index of its shards.

    Plain files go before variants, and an index before a single file.

    Raises:
        InarchError: IA203 where there are only pickles, IA204 where there is nothing, or several
            variants and nothing that says which.
    """
    for stem in _STEMS:
        for name in (f"{stem}.safetensors.index.json", f"{stem}.safetensors"):
            if (folder / name).is_file():
                return folder / name
    variants = _variants(folder)
    if len(variants) == 1:
        return next(iter(variants.values()))
    if variants:
        raise InarchError(
            "IA204",
            f"`{folder.name}` holds several variants of its weights",
            where=str(folder),
            why=f"they are: {', '.join(variants)}",
            remedy="keep the one that is meant",
        )
    pickles = sorted(p for p in folder.iterdir() if p.suffix in PICKLES)
    if pickles:
        read_header(pickles[0])
    raise InarchError(
        "IA204",
        f"`{folder.name}` holds no weights",
        where=str(folder),
        why="there is neither model.safetensors nor model.safetensors.index.json, and no "
        "diffusion_pytorch_model.safetensors either",
        remedy="put the safetensors files beside config.json",
    )


def _variants(folder: Path) -> dict[str, Path]:
    """Weights by the name of their variant, such as `fp16`."""
    found: dict[str, Path] = {}
    for stem in _STEMS:
        for path in sorted(folder.glob(f"{stem}.*.safetensors")):
            variant = path.name.removeprefix(f"{stem}.").removesuffix(".safetensors")
            if not _SHARD.search(variant):
                found[variant] = path
        for path in sorted(folder.glob(f"{stem}.*index*.json")):
            variant = path.name.removeprefix(f"{stem}.").removesuffix(".json")
            variant = variant.replace("safetensors", "").replace("index", "").strip(".")
            if "safetensors" in path.name:
                found[re.sub(r"\.+", ".", variant)] = path
    return found
