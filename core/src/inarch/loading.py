"""`inarch.load`: from a checkpoint to the model it is, found by its own configuration."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from inarch.errors import InarchError
from inarch.plugins import index, load_object, locate_checkpoint
from inarch.weights import blank, check_names, files_of, fill, open_checkpoint, read_ahead
from inarch.weights.channels import lay_channels_last
from inarch.weights.device import device_of

if TYPE_CHECKING:
    from inarch.adapters.model import Model
    from inarch.weights import Checkpoint

_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")


def load(
    source: str | Path,
    *,
    device: str | torch.device = "cpu",
    dtype: str | torch.dtype | None = None,
    packed: bool = False,
    channels_last: bool = False,
) -> Model:
    """Load a foundation model: frozen, in evaluation mode, placed once and for all.

    The weights are mapped from the file where their dtype is kept. Every model adapted from this
    one shares them: adapting copies none, and moving or casting them in one would in all.

    Args:
        source: a folder of transformers or diffusers, a file of an installed format, the id of a
            checkpoint that a package ships (`inarch models` lists them), or `owner/name` on the
            hub with the extra `hub` installed.
        device: as torch names it.
        dtype: of the weights, such as "bfloat16"; None keeps the file's own, or the one of its
            own that its configuration names where it has several.
        packed: see `Model.packed`.
        channels_last: lay out convolutions of images channels last, as a GPU's tensor cores work
            on them in half precision.

    Raises:
        InarchError: 2xx for a checkpoint that can't be read or doesn't fit, 3xx where no package
            for it is installed.
    """
    place, kind = device_of(device), _dtype(dtype)
    path = _located(source)
    checkpoint = open_checkpoint(path)
    entry = index().model_for(checkpoint.config, str(path))
    family: type[Model] = load_object("inarch.models", entry.id)
    checkpoint = family.reading(checkpoint)
    config = family.parse_config(checkpoint.config)
    if place.type != "meta":
        read_ahead(files_of(checkpoint))
    with blank():
        trees = family.build(config)
    check_names(checkpoint, trees, family.ignored)
    for name, tree in trees.items():
        prefix = f"{name}." if name else ""
        stored = _stored(checkpoint, prefix)
        wanted = family.dtype_of(config, name, kind or _common(stored, checkpoint.config))
        asked = None if kind is None and stored <= {wanted} else wanted
        fill(tree, checkpoint, asked, place, ignored=family.ignored, prefix=prefix)
        tree.requires_grad_(False).eval()
        if channels_last:
            lay_channels_last(tree)
    model = family(
        trees,
        config,
        roles=entry.roles,
        checkpoint=checkpoint,
        tokenizer=checkpoint.tokenizer(),
        family=entry.id,
    )
    return model.packed() if packed else model


def _stored(checkpoint: Checkpoint, prefix: str) -> set[torch.dtype]:
    """The floating-point dtypes of a tree's tensors in its file."""
    infos = (i for n, i in checkpoint.tensors.items() if n.startswith(prefix))
    return {i.dtype for i in infos if i.dtype.is_floating_point}


def _common(stored: set[torch.dtype], config: Mapping[str, Any]) -> torch.dtype:
    """The one dtype that a tree runs in.

    Of several it is the configuration's, as transformers has it, or the one that holds them all.
    Eight bits are for storing; bfloat16 has all their values.
    """
    kinds = {kind for kind in stored if kind.itemsize > 1}
    if len(kinds) > 1:
        told = getattr(torch, str(config.get("dtype") or config.get("torch_dtype")), None)
        kinds = {told} if told in kinds else {functools.reduce(torch.promote_types, kinds)}
    return next(iter(kinds), torch.bfloat16 if stored else torch.float32)


def _located(source: str | Path) -> Path:
    """The path of a source: itself where it exists, a package's file, or the hub's snapshot."""
    path = Path(source)
    if path.exists():
        return path
    name = str(source)
    if name in index().checkpoints:
        return locate_checkpoint(name)
    if _REPOSITORY.fullmatch(name) and not name.startswith("."):
        return _from_hub(name)
    known = ", ".join(index().checkpoints) or "none"
    raise InarchError(
        "IA201",
        f"there is no checkpoint `{name}`",
        where=name,
        why=f"no such path exists, and the checkpoints that packages ship are: {known}",
        remedy="inarch models",
    )


def _from_hub(name: str) -> Path:
    try:
        import huggingface_hub as hub
    except ImportError:
        raise InarchError(
            "IA208",
            f"`{name}` is no path here, and reading it from the hub needs an extra",
            where=name,
            remedy="pip install 'inarch[hub]'",
        ) from None
    patterns = ["*.json", "*.safetensors", "*.jinja", "*.model"]
    try:
        return Path(hub.snapshot_download(name, allow_patterns=patterns))
    except Exception as error:  # the hub's client raises its own kinds, all saying it wasn't had
        raise InarchError(
            "IA208",
            f"`{name}` can't be had from the hub",
            where=name,
            why=f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}",
            remedy="check the name and the connection, or pass a local folder",
        ) from error


def _dtype(dtype: str | torch.dtype | None) -> torch.dtype | None:
    found: Any = (
        getattr(torch, dtype.removeprefix("torch."), None) if isinstance(dtype, str) else dtype
    )
    if found is None and dtype is None:
        return None
    if not isinstance(found, torch.dtype) or not found.is_floating_point or found.itemsize < 2:
        raise InarchError(
            "IA209",
            f"`{dtype}` is no dtype of weights",
            why="weights are float32, bfloat16, float16 or float64",
            remedy='dtype="bfloat16"',
        )
    return found
