"""The tree of LLaMA, Mistral and SmolLM2. Names are the published checkpoints'.

Source: Touvron et al. 2023, arXiv:2302.13971; grouped queries and longer contexts as in
Llama 2 and 3 (arXiv:2307.09288, arXiv:2407.21783); Mistral: Jiang et al. 2023, arXiv:2310.06825.
"""

from __future__ import annotations

from functools import partial

from torch import nn
from torch.nn import functional as F

from inarch.nn import RMSNorm, Rotary, attend, merge_heads, rotate, split_heads
from inarch.tree import Chain, Identity, Let, Parallel, Product, Residual, Seq, Use, repeated
from inarch_llama.config import LlamaConfig

ACTIVATION = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_pytorch_tanh": partial(F.gelu, approximate="tanh"),
    "relu": F.relu,
}


def llama(c: LlamaConfig) -> Chain:
    """Token ids [batch, time] to logits [batch, time, vocabulary]."""
    tree = Chain(
        model=Chain(
            embed_tokens=nn.Embedding(c.vocab_size, c.hidden_size),
            rotary=Let(
                ("cos", "sin"),
                Seq(Parallel(Identity(), positions=Use("positions")), rotary_emb=rotary(c)),
            ),
            layers=Chain(*(block(c) for _ in range(c.num_hidden_layers))),
            norm=RMSNorm(c.hidden_size, eps=c.rms_norm_eps),
        ),
        lm_head=nn.Linear(c.hidden_size, c.vocab_size, bias=False),
        takes=("input_ids",),
        inputs=("positions", "mask"),
    )
    return (
        tree.tie("lm_head.weight", "model.embed_tokens.weight") if c.tie_word_embeddings else tree
    )


@repeated
def block(c: LlamaConfig) -> Chain:
    return Chain(
        after_attention=Residual(
            input_layernorm=RMSNorm(c.hidden_size, eps=c.rms_norm_eps),
            self_attn=attention(c),
        ),
        after_mlp=Residual(
            post_attention_layernorm=RMSNorm(c.hidden_size, eps=c.rms_norm_eps),
            mlp=swiglu(c),
        ),
    )


def attention(c: LlamaConfig) -> Chain:
    heads = partial(split_heads, head_dim=c.head_dim)
    wide, narrow = c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim
    linear = partial(nn.Linear, bias=c.attention_bias)
    return Chain(
        Parallel(  # [batch, heads, time, head_dim]
            query=Seq(q_proj=linear(c.hidden_size, wide), heads=heads, rotate=rotate),
            key=Seq(k_proj=linear(c.hidden_size, narrow), heads=heads, rotate=rotate),
            value=Seq(v_proj=linear(c.hidden_size, narrow), heads=heads),
            mask=Use("mask"),
        ),
        attend=partial(attend, window=c.sliding_window) if c.sliding_window else attend,
        merge=merge_heads,
        o_proj=linear(wide, c.hidden_size),
    )


def swiglu(c: LlamaConfig) -> Chain:
    linear = partial(nn.Linear, bias=c.mlp_bias)
    return Chain(
        Product(
            gate=Seq(
                gate_proj=linear(c.hidden_size, c.intermediate_size),
                act=ACTIVATION[c.hidden_act],
            ),
            up_proj=linear(c.hidden_size, c.intermediate_size),
        ),
        down_proj=linear(c.intermediate_size, c.hidden_size),
    )


def rotary(c: LlamaConfig) -> Rotary:
    return Rotary(c.head_dim, c.rope_theta, c.max_position_embeddings, c.rope_scaling)
