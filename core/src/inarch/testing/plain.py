"""The kit's own language model, for an adapter whose package needs no foundation model."""

from __future__ import annotations

from functools import partial
from typing import Any, ClassVar

import msgspec
from torch import nn
from torch.nn import functional as F

from inarch.nn import LanguageModel, attend, merge_heads, split_heads
from inarch.tree import Chain, Parallel, Residual, Seq, Sum, Use

PLAIN = "plain"


class Config(msgspec.Struct, frozen=True):
    """The sizes of the model."""

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    head_dim: int


class Plain(LanguageModel):
    """A small decoder with learned positions, of 64 at most, and layer norms."""

    config: Config
    own_roles: ClassVar[dict[str, str]] = {
        "embedding.tokens": "embed_tokens",
        "block": "layers.*",
        "norm.attention": "layers.*.norm_1",
        "attention.query": "layers.*.attn.q_proj",
        "attention.key": "layers.*.attn.k_proj",
        "attention.value": "layers.*.attn.v_proj",
        "attention.attend": "layers.*.attn.attend",
        "attention.output": "layers.*.attn.o_proj",
        "norm.mlp": "layers.*.norm_2",
        "mlp.up": "layers.*.mlp.up_proj",
        "mlp.down": "layers.*.mlp.down_proj",
        "norm.final": "norm",
        "head": "lm_head",
    }

    @classmethod
    def parse_config(cls, config: dict[str, Any]) -> Config:
        return msgspec.convert(config, Config)

    @classmethod
    def build(cls, config: Config) -> dict[str, Chain]:
        tree = Chain(
            Sum(
                embed_tokens=nn.Embedding(config.vocab_size, config.hidden_size),
                at=Seq(Use("positions"), embed_positions=nn.Embedding(64, config.hidden_size)),
            ),
            layers=Chain(*(_block(config) for _ in range(config.num_hidden_layers))),
            norm=nn.LayerNorm(config.hidden_size),
            lm_head=nn.Linear(config.hidden_size, config.vocab_size),
            takes=("input_ids",),
            inputs=("positions", "mask"),
        )
        return {"": tree}

    @classmethod
    def tiny_configs(cls) -> dict[str, dict[str, Any]]:
        sizes = {"vocab_size": 31, "hidden_size": 16, "num_hidden_layers": 2, "head_dim": 8}
        return {"decoder": sizes}


def _block(c: Config) -> Chain:
    linear = partial(nn.Linear, c.hidden_size, c.hidden_size)
    heads = partial(split_heads, head_dim=c.head_dim)
    attention = Chain(
        Parallel(
            query=Seq(q_proj=linear(), heads=heads),
            key=Seq(k_proj=linear(), heads=heads),
            value=Seq(v_proj=linear(), heads=heads),
            mask=Use("mask"),
        ),
        attend=attend,
        merge=merge_heads,
        o_proj=linear(),
    )
    mlp = Chain(
        up_proj=nn.Linear(c.hidden_size, 2 * c.hidden_size),
        act=F.gelu,
        down_proj=nn.Linear(2 * c.hidden_size, c.hidden_size),
    )
    return Chain(
        Residual(norm_1=nn.LayerNorm(c.hidden_size), attn=attention),
        Residual(norm_2=nn.LayerNorm(c.hidden_size), mlp=mlp),
    )
