"""The vision tower: an image to the states of its patches, and to one vector."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from inarch.nn import LayerNorm
from inarch.tree import Chain, Distribute, Identity, Parallel, Seq, Sum
from inarch_clip.config import VisionConfig
from inarch_clip.encoder import layers


def vision(c: VisionConfig) -> Chain:
    """Images [batch, channels, size, size] to states of patches and a pooled state.

    The states are [batch, 1 + patches, width], the first one's place being the class's; pooled is
    [batch, width], or [batch, projection_dim] with the projection.
    """
    projection: dict[str, Distribute] = {}
    if c.projection_dim is not None:
        linear = nn.Linear(c.hidden_size, c.projection_dim, bias=False)
        projection["pooled"] = Distribute(hidden=Identity(), visual_projection=linear)
    return Chain(vision_model=vision_model(c), **projection, takes=("pixel_values",), inputs=())


def vision_model(c: VisionConfig) -> Chain:
    """Images to states of patches, unnormed, and the class's state, normed."""
    norm = LayerNorm(c.hidden_size, eps=c.layer_norm_eps)
    return Chain(
        ("embeddings", embeddings(c)),
        ("pre_layrnorm", LayerNorm(c.hidden_size, eps=c.layer_norm_eps)),
        ("encoder.layers", layers(c, causal=False)),
        Parallel(hidden=Identity(), pooled=Seq(first=first_state, post_layernorm=norm)),
        takes=("pixel_values",),
    )


def embeddings(c: VisionConfig) -> Chain:
    side = c.patch_size
    patches = (c.image_size // side) ** 2
    return Chain(
        class_embedding=nn.Parameter(torch.randn(c.hidden_size) * c.hidden_size**-0.5),
        patch_embedding=nn.Conv2d(c.num_channels, c.hidden_size, side, stride=side, bias=False),
        patches=in_a_row,
        with_class=class_first,
        embed=Sum(
            patches_and_class=Identity(),
            positions=Seq(
                count=positions_of_states,
                position_embedding=nn.Embedding(1 + patches, c.hidden_size),
            ),
        ),
        takes=("pixel_values",),
    )


def in_a_row(x: Tensor) -> Tensor:
    """[batch, width, rows, columns] to [batch, rows * columns, width]."""
    return x.flatten(2).transpose(1, 2)


def class_first(x: Tensor, *, class_embedding: Tensor) -> Tensor:
    """[batch, patches, width] to [batch, 1 + patches, width]."""
    return torch.cat((class_embedding.expand(len(x), 1, -1), x), dim=1)


def positions_of_states(x: Tensor) -> Tensor:
    """[batch, states, width] to the positions, [1, states]."""
    return torch.arange(x.shape[1], device=x.device)[None]


def first_state(x: Tensor) -> Tensor:
    """[batch, states, width] to the class's state, [batch, width]."""
    return x[:, 0]
