"""Small trees and small adapters' modules that many tests use."""

from __future__ import annotations

import functools

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from inarch.tree import Chain, Edit, Let, Parallel, Product, Residual, Seq, Use

SIZE = 8


def split_heads(x, *, heads=2):
    batch, time, size = x.shape
    return x.view(batch, time, heads, size // heads).transpose(1, 2)


def merge_heads(x):
    return x.transpose(1, 2).flatten(2)


def rotate(x, *, cos, sin):
    return x * cos + x.flip(-1) * sin


def attend(query, key, value, mask):
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask)


class Rotary(nn.Module):
    def forward(self, x, *, positions) -> tuple[Tensor, Tensor]:
        angle = positions.float()[:, None, :, None]
        return angle.cos().to(x.dtype), angle.sin().to(x.dtype)


def linear(inputs=SIZE, outputs=SIZE):
    return nn.Linear(inputs, outputs, bias=False)


def attention():
    return Chain(
        Parallel(
            query=Seq(q_proj=linear(), heads=split_heads, rotate=rotate),
            key=Seq(k_proj=linear(), heads=split_heads, rotate=rotate),
            value=Seq(v_proj=linear(), heads=split_heads),
            mask=Use("mask"),
        ),
        attend=attend,
        merge=merge_heads,
        o_proj=linear(),
    )


def mlp():
    return Chain(
        Product(gate=Seq(gate_proj=linear(SIZE, 16), act=F.silu), up_proj=linear(SIZE, 16)),
        down_proj=linear(16, SIZE),
    )


def block():
    return Chain(
        Residual(input_layernorm=nn.LayerNorm(SIZE), self_attn=attention()),
        Residual(post_attention_layernorm=nn.LayerNorm(SIZE), mlp=mlp()),
    )


def language_model(layers=2):
    return Chain(
        model=Chain(
            embed_tokens=nn.Embedding(11, SIZE),
            rotary=Let(("cos", "sin"), ("rotary_emb", Rotary())),
            layers=Chain(*(block() for _ in range(layers))),
            norm=nn.LayerNorm(SIZE),
        ),
        lm_head=linear(SIZE, 11),
        takes=("input_ids",),
        inputs=("positions", "mask"),
    ).tie("lm_head.weight", "model.embed_tokens.weight")


def inputs(batch=2, time=5):
    ids = torch.arange(batch * time).reshape(batch, time) % 11
    return (ids,), {"positions": torch.arange(time)[None], "mask": None}


def run(tree):
    args, named = inputs()
    return tree(*args, **named)


class LowRank(nn.Module):
    """A term that takes the sum so far, as LoRA's does."""

    def __init__(self, inputs=SIZE, outputs=SIZE, rank=2):
        super().__init__()
        self.a = linear(inputs, rank)
        self.b = linear(rank, outputs)

    def forward(self, x, *, plus=None):
        term = self.b(self.a(x))
        return term if plus is None else plus + term


class Together(LowRank):
    """A term that is computed with others of its rank: in other bits than one after another."""

    @property
    def joins(self):
        return self.a.out_features

    @classmethod
    def joined(cls, modules, onto):
        def call(x, *, plus):
            return plus + sum(module(x) for module in modules)

        call.modules = modules
        return call


class Factor(nn.Module):
    """A learnt vector, as IA3's is."""

    def __init__(self, size=SIZE):
        super().__init__()
        self.vector = nn.Parameter(torch.rand(size) + 0.5)

    def forward(self, x):
        return self.vector


def low_rank_edits(tree, adapter, pattern="model.layers.*.self_attn.{q,v}_proj"):
    return [Edit.add(found.address, LowRank(), adapter) for found in tree.select(pattern)]


def chains_of(tree):
    return {name: m for name, m in tree.named_modules() if isinstance(m, Chain)}


def same(a, b):
    """Bitwise equality of tensors, or of tuples of them."""
    if isinstance(a, tuple) or isinstance(b, tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a.dtype == b.dtype and torch.equal(a.nan_to_num(7.0), b.nan_to_num(7.0))


half = functools.partial(torch.mul, other=0.5)
