"""The transformer both towers are made of. Names are transformers'.

Source: Radford et al. 2021, arXiv:2103.00020, section 2.4.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from inarch.nn import LayerNorm, attend, merge_heads, split_heads
from inarch.tree import Chain, Parallel, Residual, Seq, Use, repeated
from inarch_clip.config import TextConfig, VisionConfig

Config = TextConfig | VisionConfig


def quick_gelu(x: Tensor) -> Tensor:
    """OpenAI's approximation of GELU, which its checkpoints were trained with."""
    return x * torch.sigmoid(1.702 * x)


def attend_everywhere(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attention in which each patch sees each, all [batch, heads, patches, head_dim]."""
    return F.scaled_dot_product_attention(query, key, value)


ACTIVATION = {
    "quick_gelu": quick_gelu,
    "gelu": F.gelu,
    "gelu_new": partial(F.gelu, approximate="tanh"),
    "gelu_pytorch_tanh": partial(F.gelu, approximate="tanh"),
    "relu": F.relu,
    "silu": F.silu,
}


def layers(c: Config, *, causal: bool) -> Chain:
    """[batch, time, width] to the same; causal asks for `mask`, as `inarch.nn.attend` has it."""
    return Chain(*(block(c, causal=causal) for _ in range(c.num_hidden_layers)))


@repeated
def block(c: Config, *, causal: bool) -> Chain:
    return Chain(
        after_attention=Residual(
            layer_norm1=LayerNorm(c.hidden_size, eps=c.layer_norm_eps),
            self_attn=attention(c, causal=causal),
        ),
        after_mlp=Residual(
            layer_norm2=LayerNorm(c.hidden_size, eps=c.layer_norm_eps),
            mlp=mlp(c),
        ),
    )


def attention(c: Config, *, causal: bool) -> Chain:
    width = c.hidden_size
    heads = partial(split_heads, head_dim=width // c.num_attention_heads)
    projections = {  # [batch, heads, time, head_dim]
        "query": Seq(q_proj=nn.Linear(width, width), heads=heads),
        "key": Seq(k_proj=nn.Linear(width, width), heads=heads),
        "value": Seq(v_proj=nn.Linear(width, width), heads=heads),
    }
    return Chain(
        Parallel(**projections, mask=Use("mask")) if causal else Parallel(**projections),
        attend=attend if causal else attend_everywhere,
        merge=merge_heads,
        out_proj=nn.Linear(width, width),
    )


def mlp(c: Config) -> Chain:
    return Chain(
        fc1=nn.Linear(c.hidden_size, c.intermediate_size),
        act=ACTIVATION[c.hidden_act],
        fc2=nn.Linear(c.intermediate_size, c.hidden_size),
    )
