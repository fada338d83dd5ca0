"""From what an encoder says of pictures to tokens for attention; names are the files'.

Embeddings are [batch, pictures, width], or [batch, pictures, patches, width] for the kinds that
read every patch; tokens are [batch, pictures, tokens, context].

Source: Ye et al. 2023, arXiv:2308.06721; the resampler is Flamingo's (arXiv:2204.14198).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from inarch.errors import InarchError
from inarch.tree import Chain, Concat, Let, Parallel, Residual, Seq, Use
from inarch.weights import WeightsHeader

Kind = Literal["plain", "full", "plus", "faceid", "faceid_plus"]
PREFIX = "image_proj."
RESAMPLER = "perceiver_resampler."
HEAD = 64


@dataclass(frozen=True, slots=True)
class Projection:
    """The sizes of a projection.

    Attributes:
        kind: which one.
        embedding: the width of what it reads.
        context: the width of a token.
        tokens: of each picture; 0 where every patch gives one.
        hidden: the width within.
        layers: of a resampler.
        heads: of its attention.
        rise: the width of a feed-forward layer.
        patches: for FaceID Plus, the width of the patches it reads beside the face.
    """

    kind: Kind
    embedding: int
    context: int
    tokens: int = 4
    hidden: int = 0
    layers: int = 0
    heads: int = 0
    rise: int = 0
    patches: int = 0

    @property
    def of_patches(self) -> bool:
        """Whether it reads every patch's state, and not one vector of a picture."""
        return self.kind in ("full", "plus")


def projection_of(weights: WeightsHeader) -> Projection:
    """The projection of a file, by its keys in the order that tells the kinds apart.

    Raises:
        InarchError: IA461 for a file without one.
    """
    keys = [key for key in weights.keys() if key.startswith(PREFIX)]  # noqa: SIM118 (no mapping)
    shapes = {key.removeprefix(PREFIX): weights.shape(key) for key in keys}
    try:
        return _projection(shapes)
    except (KeyError, IndexError, StopIteration) as error:
        raise InarchError(
            "IA461",
            "the file is no IP-Adapter's",
            where=str(weights.path),
            why=f"it has no {PREFIX}{error.args[0]}" if error.args else "no projection is in it",
            remedy="pass the file of an IP-Adapter",
        ) from None


def _projection(shapes: dict[str, tuple[int, ...]]) -> Projection:
    if "proj.weight" in shapes:
        out, embedding = shapes["proj.weight"]
        context = shapes["norm.weight"][0]
        return Projection("plain", embedding, context, out // context)
    if "proj.3.weight" in shapes:
        context = shapes["proj.3.weight"][0]
        hidden, embedding = shapes["proj.0.weight"]
        return Projection("full", embedding, context, 0, hidden)
    if f"{RESAMPLER}proj_in.weight" in shapes:
        hidden, patches = shapes[f"{RESAMPLER}proj_in.weight"]
        context, embedding = shapes[f"{RESAMPLER}proj_out.weight"][0], shapes["proj.0.weight"][1]
        tokens, rise = shapes["proj.2.weight"][0] // hidden, shapes["proj.0.weight"][0]
        layers, heads = _layers(shapes, RESAMPLER)
        return Projection(
            "faceid_plus", embedding, context, tokens, hidden, layers, heads, rise, patches
        )
    if "norm.weight" in shapes:
        context = shapes["norm.weight"][0]
        hidden, embedding = shapes["proj.0.weight"]
        return Projection(
            "faceid", embedding, context, shapes["proj.2.weight"][0] // context, hidden
        )
    _, tokens, hidden = shapes["latents"]
    context, embedding = shapes["proj_out.weight"][0], shapes["proj_in.weight"][1]
    return Projection("plus", embedding, context, tokens, hidden, *_layers(shapes, ""))


def _layers(shapes: dict[str, tuple[int, ...]], prefix: str) -> tuple[int, int]:
    start = f"{prefix}layers."
    numbers = {k.removeprefix(start).split(".")[0] for k in shapes if k.startswith(start)}
    return len(numbers), shapes[f"{start}0.0.to_q.weight"][0] // HEAD


def projection(c: Projection, name: str, *, shortcut: bool) -> Chain:
    """The projection's tree.

    Args:
        c: its sizes.
        name: the adapter's; FaceID Plus reads `NAME_patches` beside.
        shortcut: add the face's tokens to what the resampler makes of them, as its second version.
    """
    split = partial(in_tokens, count=c.tokens)
    if c.kind == "plain":
        wide = nn.Linear(c.embedding, c.tokens * c.context)
        return Chain(("proj", wide), split, ("norm", nn.LayerNorm(c.context)))
    if c.kind == "full":
        out = nn.Linear(c.hidden, c.context)
        return Chain(*_rise(c, out), ("proj.3", nn.LayerNorm(c.context)))
    if c.kind == "faceid":
        out = nn.Linear(c.hidden, c.tokens * c.context)
        return Chain(*_rise(c, out), split, ("norm", nn.LayerNorm(c.context)))
    if c.kind == "plus":
        begin = partial(from_latents)
        latents = nn.Parameter(torch.empty(1, c.tokens, c.hidden))
        patches = Let("patches", ("proj_in", nn.Linear(c.embedding, c.hidden)))
        return Chain(patches, ("latents", latents), ("queries", begin), *_resampler(c))
    first = nn.Linear(c.embedding, c.rise)
    second = nn.Linear(c.rise, c.tokens * c.hidden)
    sampler = Chain(
        Let("patches", Seq(Use(f"{name}_patches"), ("proj_in", nn.Linear(c.patches, c.hidden)))),
        *_resampler(c),
    )
    resampled = ("perceiver_resampler", sampler)
    return Chain(
        ("proj.0", first),
        F.gelu,
        ("proj.2", second),
        split,
        ("norm", nn.LayerNorm(c.hidden)),
        Residual(resampled) if shortcut else resampled,
    )


def _rise(c: Projection, out: nn.Linear) -> list[object]:
    return [("proj.0", nn.Linear(c.embedding, c.hidden)), F.gelu, ("proj.2", out)]


def _resampler(c: Projection) -> list[object]:
    """Layers in which the tokens gather from the patches, and their way out."""
    return [
        *((f"layers.{i}", resampler_layer(c)) for i in range(c.layers)),
        ("proj_out", nn.Linear(c.hidden, c.context)),
        ("norm_out", nn.LayerNorm(c.context)),
    ]


def resampler_layer(c: Projection) -> Chain:
    width = c.heads * HEAD
    seen = Seq(Use("patches"), ("norm1", nn.LayerNorm(c.hidden)))
    attention = Chain(
        Let("asking", ("norm2", nn.LayerNorm(c.hidden))),
        Parallel(
            query=Seq(Use("asking"), ("to_q", nn.Linear(c.hidden, width, bias=False))),
            key_value=Seq(
                Concat(seen, Use("asking"), dim=-2),
                ("to_kv", nn.Linear(c.hidden, 2 * width, bias=False)),
            ),
        ),
        ("attend", partial(gather, heads=c.heads)),
        ("to_out", nn.Linear(width, c.hidden, bias=False)),
    )
    rise = nn.Linear(c.hidden, 4 * c.hidden, bias=False)
    fall = nn.Linear(4 * c.hidden, c.hidden, bias=False)
    feed = Chain(("0", nn.LayerNorm(c.hidden)), ("1", rise), F.gelu, ("3", fall))
    return Chain(Residual(("0", attention)), Residual(("1", feed)))


def in_tokens(x: Tensor, *, count: int = 4) -> Tensor:
    """[..., tokens * width] to [..., tokens, width]."""
    return x.unflatten(-1, (count, -1))


def from_latents(x: Tensor, *, latents: Tensor) -> Tensor:
    """Learned tokens for each picture of [batch, pictures, patches, width]."""
    return latents.expand(*x.shape[:-2], -1, -1)


def gather(query: Tensor, key_value: Tensor, *, heads: int = 1) -> Tensor:
    """Attention of [..., tokens, width] to [..., tokens + patches, 2 * width]."""
    parts = (query, *key_value.chunk(2, dim=-1))
    q, k, v = (part.unflatten(-1, (heads, -1)).transpose(-3, -2) for part in parts)
    return F.scaled_dot_product_attention(q, k, v).transpose(-3, -2).flatten(-2)
