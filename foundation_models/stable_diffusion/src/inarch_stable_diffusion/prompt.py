"""Prompts to what the UNet reads of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from inarch.errors import InarchError
from inarch_stable_diffusion.weighting import TextEncoder, count_chunks, encode_prompts

if TYPE_CHECKING:
    from inarch_clip.tokens import ClipTokenizer
    from inarch_stable_diffusion.model import StableDiffusion


@dataclass(frozen=True, slots=True)
class Encoded:
    """What is read of some prompts.

    Attributes:
        text: [prompts, tokens, width], for cross attention.
        pooled: [prompts, width], for XL.
    """

    text: Tensor
    pooled: Tensor | None = None

    def zeros(self) -> Encoded:
        pooled = None if self.pooled is None else torch.zeros_like(self.pooled)
        return Encoded(torch.zeros_like(self.text), pooled)

    def repeated(self, count: int) -> Encoded:
        """Each prompt so many times, one after another."""
        pooled = None if self.pooled is None else self.pooled.repeat_interleave(count, dim=0)
        return Encoded(self.text.repeat_interleave(count, dim=0), pooled)


def encode(
    model: StableDiffusion,
    prompts: Sequence[str],
    negative: Sequence[str] | None,
    *,
    clip_skip: int | None = None,
    zeros: bool = False,
    inputs: Mapping[str, Any] | None = None,
) -> tuple[Encoded, Encoded | None]:
    """Prompts, and what is to be avoided, of equal length.

    Args:
        model: whose text encoders read them, with the adapters in it.
        prompts: one for each row.
        negative: likewise, or None where there is no guidance.
        zeros: what is to be avoided is zeros, whatever `negative` says.
        clip_skip: how many of the last layers of the text encoders are left out of the prompts'
            reading, as diffusers counts: 1 is what other tools call 2. XL's leave one out anyway.
        inputs: of adapters in the text encoders.

    Raises:
        InarchError: IA506 without text encoders or their tokenizers, IA541 where they have fewer
            layers.
    """
    read = [list(prompts), *([] if negative is None or zeros else [list(negative)])]
    encoders = text_encoders(model)
    least = max(count_chunks(texts, encoders) for texts in read)
    wanted = _read(model, prompts, clip_skip or 0, least, inputs or {})
    if negative is None:
        return wanted, None
    if zeros:
        return wanted, wanted.zeros()
    return wanted, _read(model, negative, 0, least, inputs or {})


def _read(
    model: StableDiffusion,
    prompts: Sequence[str],
    early: int,
    least: int,
    inputs: Mapping[str, Any],
) -> Encoded:
    """All encoders' readings side by side, and for XL the last one's pooled state."""
    xl = model.config.unet.added is not None
    encoders = text_encoders(model)
    text, pooled = encode_prompts(
        prompts, encoders, early=early + xl, normed=not xl, least=least, inputs=inputs
    )
    return Encoded(text, pooled if xl else None)


def text_encoders(model: StableDiffusion) -> list[TextEncoder]:
    """The text encoders, each with its tokenizer.

    Raises:
        InarchError: IA506 where there is none, or a tokenizer is missing.
    """
    return [TextEncoder(_tokenizer(model, name), model.trees[name]) for name in _encoders(model)]


def _encoders(model: StableDiffusion) -> Sequence[str]:
    names = model.config.text_encoders
    if not names:
        raise InarchError(
            "IA506",
            "this model has no text encoder",
            where="" if model.checkpoint is None else str(model.checkpoint.path),
            why=f"its trees are: {', '.join(model.trees)}",
            remedy="load the folder of a whole pipeline",
        )
    return names


def _tokenizer(model: StableDiffusion, name: str) -> ClipTokenizer:
    found = model.tokenizers.get(name)
    if found is None:
        folder = name.replace("text_encoder", "tokenizer")
        raise InarchError(
            "IA506",
            f"this model has no tokenizer for its `{name}`",
            where="" if model.checkpoint is None else str(model.checkpoint.path / folder),
            why=f"there is no folder `{folder}` with tokenizer.json, or vocab.json and merges.txt",
            remedy="download or save the checkpoint again, with all its folders",
        )
    return found
