"""A tiny language model, so that core needs no package: bytes in, bytes out, random weights."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace

import pytest
import torch
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, pre_tokenizers
from tokenizers.models import BPE
from torch import nn

from inarch.nn import (
    LanguageModel,
    RMSNorm,
    Rotary,
    Tokenizer,
    attend,
    merge_heads,
    rotate,
    split_heads,
)
from inarch.tree import Chain, Identity, Let, Parallel, Residual, Seq, Use

WIDTH, HEADS, GROUPS, HEAD = 16, 4, 2, 4
ROLES = {"attention.attend": "model.*.self_attn.attend", "head": "lm_head"}
CHATML = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}\n"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def bytes_tokenizer(template: str | None = CHATML) -> Tokenizer:
    """One token for each byte, then `<s>`, `</s>` and `<pad>`."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Backend(BPE({letter: i for i, letter in enumerate(alphabet)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<s>", "</s>", "<pad>"])
    return Tokenizer(
        backend, bos_token="<s>", eos_token="</s>", pad_token="<pad>", chat_template=template
    )


def attention() -> Chain:
    heads = partial(split_heads, head_dim=HEAD)
    return Chain(
        Parallel(
            query=Seq(q_proj=nn.Linear(WIDTH, HEADS * HEAD), heads=heads, rotate=rotate),
            key=Seq(k_proj=nn.Linear(WIDTH, GROUPS * HEAD), heads=heads, rotate=rotate),
            value=Seq(v_proj=nn.Linear(WIDTH, GROUPS * HEAD), heads=heads),
            mask=Use("mask"),
        ),
        attend=attend,
        merge=merge_heads,
        o_proj=nn.Linear(HEADS * HEAD, WIDTH),
    )


def language_model(seed: int = 0, window: int | None = None) -> LanguageModel:
    torch.manual_seed(seed)
    tree = Chain(
        model=Chain(
            embed=nn.Embedding(259, WIDTH),
            rotary=Let(
                ("cos", "sin"),
                Seq(
                    Parallel(Identity(), positions=Use("positions")),
                    rotary_emb=Rotary(HEAD, 10000.0, 64),
                ),
            ),
            first=Chain(Residual(norm=RMSNorm(WIDTH, 1e-6), self_attn=attention())),
            second=Chain(Residual(norm=RMSNorm(WIDTH, 1e-6), self_attn=attention())),
        ),
        lm_head=nn.Linear(WIDTH, 259, bias=False),
        takes=("input_ids",),
        inputs=("positions", "mask"),
    )
    with torch.no_grad():
        for parameter in tree.parameters():
            parameter.copy_(torch.randn_like(parameter))
    tree.requires_grad_(False).eval()
    config = SimpleNamespace(sliding_window=window, vocab_size=259)
    return LanguageModel({"": tree}, config, roles=ROLES, tokenizer=bytes_tokenizer())


@pytest.fixture
def model() -> LanguageModel:
    return language_model()


@pytest.fixture
def windowed() -> LanguageModel:
    return language_model(window=4)


@pytest.fixture
def tokenizer() -> Tokenizer:
    return bytes_tokenizer()


@pytest.fixture(scope="session")
def shared_tokenizer() -> Tokenizer:
    """For tests that change nothing of it."""
    return bytes_tokenizer()


@pytest.fixture
def bare_tokenizer() -> Tokenizer:
    return bytes_tokenizer(template=None)
