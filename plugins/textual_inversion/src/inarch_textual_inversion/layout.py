"""The layouts that textual inversions are published in, read from a file's header alone.

Source: `diffusers/loaders/textual_inversion.py` 0.42, stable-diffusion-webui's embeddings, and
kohya-ss' `train_textual_inversion.py` and its XL sibling.
"""

from __future__ import annotations

from dataclasses import dataclass

from inarch.errors import InarchError
from inarch.weights import WeightsHeader

NAMELESS = "emb_params"
"""The one key of files of the web interface and kohya-ss, which hold no token."""

PAIRS = (("clip_l", "clip_g"), ("text_encoders_0", "text_encoders_1"))
"""The keys of files for two text encoders, the first encoder's first."""

TOKEN = "inarch.token"
"""In a file's metadata: the token, where no key is it."""


@dataclass(frozen=True, slots=True)
class Layout:
    """What a file holds.

    Attributes:
        token: the text that it was learned for, where the file says so.
        keys: of the tensors, [vectors, width] or [width], one for each text encoder.
        paired: whether they are for encoders by their place, not by their width.
    """

    token: str | None
    keys: tuple[str, ...]
    paired: bool


def layout(weights: WeightsHeader) -> Layout:
    """The layout of a file.

    Raises:
        InarchError: IA471 for a file that is none of them.
    """
    keys = set(weights.keys())
    told = weights.metadata.get(TOKEN)
    found: Layout | None = None
    for pair in PAIRS:
        present = tuple(key for key in pair if key in keys)
        if present and keys == set(present):
            found = Layout(told, present, paired=len(present) > 1)
    if found is None and len(keys) == 1:
        [key] = keys
        found = Layout(told if key == NAMELESS else key, (key,), paired=False)
    if found is None:
        raise _no_layout(weights, f"its tensors are: {', '.join(sorted(keys)[:6])}")
    for key in found.keys:
        shape = weights.shape(key)
        if len(shape) not in (1, 2) or 0 in shape or not weights.dtype(key).is_floating_point:
            raise _no_layout(weights, f"`{key}` is {weights.dtype(key)} {list(shape)}")
    counts = {count(weights.shape(key)) for key in found.keys}
    if len(counts) > 1:
        raise _no_layout(weights, f"its encoders have {sorted(counts)} vectors")
    return found


def count(shape: tuple[int, ...]) -> int:
    """How many vectors a tensor of this shape is."""
    return shape[0] if len(shape) == 2 else 1


def _no_layout(weights: WeightsHeader, why: str) -> InarchError:
    return InarchError(
        "IA471",
        f"`{weights.path.name}` is no textual inversion",
        where=str(weights.path),
        why=why,
        remedy="pass a file of one word: [vectors, width] under its token, or `emb_params`, or "
        "`clip_l` and `clip_g`",
    )
