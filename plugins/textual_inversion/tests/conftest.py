"""Small text encoders with a tokenizer, in transformers and in inarch, of equal weights."""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import inarch
from inarch.adapters import Model
from inarch.nn import Tokenizer

sys.path.insert(0, str(Path(__file__).parents[3] / "foundation_models/stable_diffusion/tests"))

WORDS = ("cat", "dog", "photo", "shelf")


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a CLIP tokenizer that knows bytes and a few words."""
    from tokenizers.pre_tokenizers import ByteLevel

    folder = tmp_path_factory.mktemp("tokenizer")
    letters = sorted(ByteLevel.alphabet())
    merges: dict[tuple[str, str], None] = {}
    for word in WORDS:
        parts = [*word[:-1], word[-1] + "</w>"]
        while len(parts) > 1:
            merges[parts[0], parts[1]] = None
            parts = ["".join(parts[:2]), *parts[2:]]
    tokens = [*letters, *(f"{x}</w>" for x in letters), *dict.fromkeys(map("".join, merges))]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({t: i for i, t in enumerate(tokens)}), "utf-8")
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges), ""]
    (folder / "merges.txt").write_text("\n".join(lines), "utf-8")
    settings = {"model_max_length": 77, "tokenizer_class": "CLIPTokenizer"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


@pytest.fixture
def encoders(vocabulary: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A function that makes transformers' tokenizer and encoder, and the model inarch loads."""
    transformers = pytest.importorskip("transformers")

    def build(seed: int = 0, *, width: int = 16, projected: bool = False) -> tuple[Any, Any, Any]:
        tokenizer = transformers.CLIPTokenizer.from_pretrained(vocabulary)
        torch.manual_seed(seed)
        config = transformers.CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=2,
            projection_dim=10,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
        kind = "CLIPTextModelWithProjection" if projected else "CLIPTextModel"
        theirs = getattr(transformers, kind)(config).eval()
        with torch.no_grad():
            for parameter in theirs.parameters():
                parameter.copy_(torch.randn_like(parameter) * 0.3)
        folder = tmp_path_factory.mktemp("encoder")
        theirs.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return tokenizer, theirs, inarch.load(folder)

    return build


class Pair(Model):
    """Two text encoders in one model, as an image model has them."""

    def own_tokenizers(self) -> dict[str, Tokenizer]:
        return dict(self.config)


@pytest.fixture
def pair(encoders: Any) -> Any:
    """transformers' two tokenizers and encoders, and a model of both trees."""
    one, two = encoders(1), encoders(2, width=20, projected=True)
    names = ("text_encoder", "text_encoder_2")
    trees = {name: made[2].tree for name, made in zip(names, (one, two), strict=True)}
    tokenizers = {n: made[2].tokenizer for n, made in zip(names, (one, two), strict=True)}
    role = "{text_encoder,text_encoder_2}.text_model.embeddings.token_embedding"
    model = Pair(trees, tokenizers, roles={"embedding.tokens": role})
    return (one[0], copy.deepcopy(two[0])), (one[1], two[1]), model


@pytest.fixture
def ids() -> Any:
    """A function from a tokenizer of ours and a text to [1, 77], filled up."""

    def make(tokenizer: Any, text: str) -> Tensor:
        return tokenizer.rows([tokenizer.encode(text)], 77)

    return make
