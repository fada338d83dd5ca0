"""A pipeline's checkpoint as the trees read it: a diffusers folder, or a `unet/` folder alone."""

from __future__ import annotations

import re
from functools import cached_property
from typing import Any

from inarch.weights import Checkpoint, PartsCheckpoint, RenamedCheckpoint, missing_part
from inarch_clip.checkpoint import ClipCheckpoint
from inarch_clip.tokens import ClipTokenizer, has_tokenizer
from inarch_stable_diffusion.config import TEXT_ENCODERS

PARTS = {
    "unet": "UNet",
    "vae": "autoencoder",
    "text_encoder": "text encoder",
    "text_encoder_2": "second text encoder",
}
# How attention in autoencoders was called before diffusers 0.15; published files still have it.
_OLD_ATTENTION = re.compile(r"(mid_block\.attentions\.\d+)\.(query|key|value|proj_attn)\.")
_NEW = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


class PipelineCheckpoint(PartsCheckpoint):
    """The parts of a pipeline that have trees, and its tokenizers."""

    @cached_property
    def tokenizers(self) -> dict[str, ClipTokenizer]:
        """For each text encoder its tokenizer, where the checkpoint has one."""
        found: dict[str, ClipTokenizer] = {}
        for name in TEXT_ENCODERS:
            folder = self.path / name.replace("text_encoder", "tokenizer")
            if name in self.parts and has_tokenizer(folder):
                found[name] = ClipTokenizer.from_folder(folder)
        return found


def reading(checkpoint: Checkpoint) -> Checkpoint:
    """A checkpoint as `StableDiffusion` reads it.

    Raises:
        InarchError: IA204 for a part that model_index.json lists and that is not there.
    """
    if not isinstance(checkpoint, PartsCheckpoint):
        if "unet" in checkpoint.config:
            return checkpoint
        return PipelineCheckpoint(checkpoint.path, {"unet": checkpoint}, {})
    if isinstance(checkpoint, PipelineCheckpoint):
        return checkpoint
    for name, words in PARTS.items():
        if name not in checkpoint.parts and (name in checkpoint.named or name == "unet"):
            raise missing_part(checkpoint, name, words)
    parts = {n: _read(n, part) for n, part in checkpoint.parts.items() if n in PARTS}
    config: dict[str, Any] = {n: v for n, v in checkpoint.config.items() if n not in parts}
    return PipelineCheckpoint(checkpoint.path, parts, config)


def _read(name: str, part: Checkpoint) -> Checkpoint:
    if name in TEXT_ENCODERS:
        part.config.setdefault("model_type", "clip_text_model")
        return ClipCheckpoint(part)
    return RenamedCheckpoint(part, modern) if name == "vae" else part


def modern(name: str) -> str:
    """The name that an autoencoder's tensor has today."""
    return _OLD_ATTENTION.sub(lambda found: f"{found[1]}.{_NEW[found[2]]}.", name)
