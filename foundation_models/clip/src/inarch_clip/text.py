"""The text tower: token ids to hidden states, and to one vector for each text.

It is an image model's text encoder too, which reads hidden states before the last: see
`inarch_clip.states`.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from inarch.nn import LayerNorm
from inarch.tree import Chain, Distribute, Identity, Let, Parallel, Seq, Sum
from inarch_clip.config import TextConfig
from inarch_clip.encoder import layers


def text(c: TextConfig) -> Chain:
    """Token ids [batch, time] to hidden states [batch, time, width] and pooled states.

    The pooled states are [batch, width], or [batch, projection_dim] with the projection. Asks for
    `mask`, [batch or 1, 1, time, time] with True where a token may look; None is causal.
    """
    projection: dict[str, nn.Module | Distribute] = {}
    if c.projection_dim is not None:
        linear = nn.Linear(c.hidden_size, c.projection_dim, bias=False)
        projection["pooled"] = Distribute(hidden=Identity(), text_projection=linear)
    return Chain(text_model=text_model(c), **projection, takes=("input_ids",), inputs=("mask",))


def text_model(c: TextConfig) -> Chain:
    """Token ids to hidden states and, from the state at the end of each text, pooled states."""
    legacy = c.eos_token_id == 2
    return Chain(
        ("eos", Let("eos", highest if legacy else partial(first_of, token=c.eos_token_id))),
        ("embeddings", embeddings(c)),
        ("encoder.layers", layers(c, causal=True)),
        ("final_layer_norm", LayerNorm(c.hidden_size, eps=c.layer_norm_eps)),
        Parallel(hidden=Identity(), pooled=state_at),
        takes=("input_ids",),
    )


def embeddings(c: TextConfig) -> Chain:
    return Chain(
        Sum(
            token_embedding=nn.Embedding(c.vocab_size, c.hidden_size),
            positions=Seq(
                count=positions_of_ids,
                position_embedding=nn.Embedding(c.max_position_embeddings, c.hidden_size),
            ),
        ),
        takes=("input_ids",),
    )


def positions_of_ids(input_ids: Tensor) -> Tensor:
    """[batch, time] to the positions, [1, time]."""
    return torch.arange(input_ids.shape[1], device=input_ids.device)[None]


def first_of(input_ids: Tensor, *, token: int = 49407) -> Tensor:
    """Where each text first has the token, [batch]; 0 where it has none."""
    return (input_ids == token).int().argmax(dim=-1)


def highest(input_ids: Tensor) -> Tensor:
    """Where each text has its highest id, [batch]: its end, while no token was added."""
    return input_ids.int().argmax(dim=-1)


def state_at(x: Tensor, *, eos: Tensor) -> Tensor:
    """[batch, time, width] to the states at the positions `eos`, [batch, width]."""
    return x[torch.arange(len(x), device=x.device), eos]
