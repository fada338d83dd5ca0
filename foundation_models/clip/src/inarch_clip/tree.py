"""CLIP whole: both towers, and how alike what they see is.

Source: Radford et al. 2021, "Learning Transferable Visual Models From Natural Language
Supervision", arXiv:2103.00020, section 2.3. Names are transformers'.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from inarch.tree import Chain, Distribute, Identity, Seq
from inarch_clip.config import ClipConfig, TextConfig, VisionConfig
from inarch_clip.text import text, text_model
from inarch_clip.vision import vision, vision_model


def clip(c: ClipConfig) -> Chain:
    """The tree of a checkpoint: both towers, or the one it has."""
    if c.text is not None and c.vision is not None:
        return both(c.text, c.vision)
    if c.text is not None:
        return text(c.text)
    return vision(c.vision)  # the parser leaves at least one


def both(c: TextConfig, v: VisionConfig) -> Chain:
    """Token ids and images to logits, [images, texts]: how well each text suits each image."""
    texts = nn.Linear(c.hidden_size, c.projection_dim or 0, bias=False)
    images = nn.Linear(v.hidden_size, v.projection_dim or 0, bias=False)
    return Chain(
        Distribute(
            text=Seq(
                tower=Seq(
                    text_model=text_model(c),
                    pooled=Distribute(hidden=Identity(), text_projection=texts),
                ),
                embeds=pooled_of,
            ),
            image=Seq(
                tower=Seq(
                    vision_model=vision_model(v),
                    pooled=Distribute(hidden=Identity(), visual_projection=images),
                ),
                embeds=pooled_of,
            ),
        ),
        logit_scale=nn.Parameter(torch.tensor(2.6592)),
        similarity=similarity,
        takes=("input_ids", "pixel_values"),
        inputs=("mask",),
    )


def pooled_of(_states: Tensor, pooled: Tensor) -> Tensor:
    """The second of a tower's two outputs."""
    return pooled


def similarity(text: Tensor, image: Tensor, *, logit_scale: Tensor) -> Tensor:
    """Cosines of [texts, width] and [images, width], scaled as logits: [images, texts]."""
    return logit_scale.exp() * F.normalize(image, dim=-1) @ F.normalize(text, dim=-1).T
