"""Primitives that several foundation models share."""

from inarch.nn.attention import attend, causal_mask, merge_heads, positions_of, split_heads
from inarch.nn.language_model import LanguageModel
from inarch.nn.linear import TransposedLinear
from inarch.nn.norm import GroupNorm, LayerNorm, RMSNorm
from inarch.nn.pieces import by_heads, of_pieces
from inarch.nn.rotary import Rotary, rotate
from inarch.nn.sampling import Sampling
from inarch.nn.tokenizer import Tokenizer

__all__ = [
    "GroupNorm",
    "LanguageModel",
    "LayerNorm",
    "RMSNorm",
    "Rotary",
    "Sampling",
    "Tokenizer",
    "TransposedLinear",
    "attend",
    "by_heads",
    "causal_mask",
    "merge_heads",
    "of_pieces",
    "positions_of",
    "rotate",
    "split_heads",
]
