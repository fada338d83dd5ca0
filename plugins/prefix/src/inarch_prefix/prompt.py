"""Prompt tuning: learned embeddings of virtual tokens, which stand before the text.

They enter once, in the first forward of a sequence: a cache holds them afterwards. What the tree
gives is of the text alone. The user's positions and mask stay those of the text.

Source: Lester et al. 2021, "The Power of Scale for Parameter-Efficient Prompt Tuning".
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal

import msgspec
import torch
from torch import Tensor, nn

from inarch.adapters import Adapter, Example, SiteView, TargetSite
from inarch.errors import InarchError
from inarch.nn.decoder import BEGINS
from inarch.tree import Edit
from inarch.weights import WeightsHeader
from inarch.weights.peft import write_folder
from inarch_prefix import peft_format

_KINDS = ("PROMPT_TUNING", "P_TUNING")


class Options(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """What `inarch.adapter("prompt-tuning", ...)` takes for an adapter that is to be trained.

    Attributes:
        tokens: virtual tokens.
        start: embeddings drawn from a normal distribution, or copied from tokens drawn from the
            vocabulary.
    """

    tokens: int = 20
    start: Literal["random", "vocabulary"] = "random"

    def __post_init__(self) -> None:
        if self.tokens < 1:
            raise ValueError("there is at least 1 virtual token")


class VirtualTokens(nn.Module):
    """Embeddings before those of the text.

    Args:
        tokens: virtual tokens.
        width: of an embedding.
    """

    def __init__(self, tokens: int, width: int) -> None:
        super().__init__()
        self.prompt_embeddings = nn.Parameter(torch.empty(tokens, width))

    def reset_parameters(self) -> None:
        nn.init.normal_(self.prompt_embeddings)

    def forward(self, x: Tensor, *, begins: bool) -> Tensor:
        """[batch, time, width] to [batch, tokens + time, width], in a sequence's first forward."""
        if not begins:
            return x
        prompt = self.prompt_embeddings.to(x.dtype).expand(len(x), -1, -1)
        return torch.cat((prompt, x), dim=1)


class SampledTokens(VirtualTokens):
    """The same, begun as copies of tokens drawn from the vocabulary."""

    def settle(self, site: nn.Module | None, *, loaded: bool) -> None:
        """Copy the embeddings of tokens, the site being their table."""
        if not isinstance(site, nn.Embedding) or self.prompt_embeddings.is_meta:
            return
        drawn = torch.randint(0, site.num_embeddings, (len(self.prompt_embeddings),))
        with torch.no_grad():
            self.prompt_embeddings.copy_(site.weight[drawn.to(site.weight.device)])


def lead(positions: Tensor, *, begins: bool, virtual: int = 0) -> Tensor:
    """The text's positions after those of the virtual tokens, which come with them at first."""
    later = positions + virtual
    if not begins:
        return later
    first = torch.arange(virtual, device=positions.device, dtype=positions.dtype)
    return torch.cat((first.expand(len(positions), -1), later), dim=1)


def text(x: Tensor, *, begins: bool, virtual: int = 0) -> Tensor:
    """What is of the text, without the virtual tokens, [batch, time, width]."""
    return x[:, virtual:] if begins else x


class PromptTuning(Adapter):
    """Learned embeddings of virtual tokens before the text."""

    Options = Options
    options: Options
    for_training = Options.__struct_fields__
    by_header = True

    def edits(self, sites: SiteView, weights: WeightsHeader | None) -> Iterable[Edit]:
        embedding, positions, final = (
            _one(sites, role) for role in ("embedding.tokens", "positions", "norm.final")
        )
        self.width = _width(embedding)
        more: dict[str, Any] = {"inputs": (BEGINS,)}
        fills: dict[str, str] = {}
        copies = self.options.start == "vocabulary" and weights is None
        if weights is None:
            tokens = self.options.tokens
        else:
            tokens = peft_format.tokens_of(weights, _KINDS, {"token_dim": self.width})
            fills = {peft_format.KEY: peft_format.KEY}
        step = (SampledTokens if copies else VirtualTokens)(tokens, self.width)
        reads = (embedding.address,) if copies else ()
        yield Edit.after(embedding.address, step, self.name, fills=fills, reads=reads, **more)
        yield Edit.after(positions.address, partial(lead, virtual=tokens), self.name, **more)
        yield Edit.before(final.address, partial(text, virtual=tokens), self.name, **more)

    def example_inputs(self, example: Example) -> Mapping[str, Any]:
        return {BEGINS: True}

    def write(self, folder: Path, edges: Mapping[str, nn.Module], about: Mapping[str, str]) -> None:
        """Save as PEFT does; see `inarch_prefix.peft_format`."""
        [virtual] = [m for m in edges.values() if isinstance(m, VirtualTokens)]
        tensor = virtual.prompt_embeddings
        model = {"token_dim": self.width}
        config = peft_format.config(
            "PROMPT_TUNING", len(tensor), model, about, prompt_tuning_init="RANDOM"
        )
        write_folder(folder, config, {peft_format.KEY: tensor}, about)


def _one(sites: SiteView, role: str) -> TargetSite:
    found = sites.find([role])
    if len(found) != 1:
        raise InarchError(
            "IA440",
            f"this model has {len(found)} sites of the role `{role}`",
            where=found[0].address,
            why="virtual tokens enter at one place and leave at one",
            remedy="use another adapter, such as prefix",
        )
    return found[0]


def _width(embedding: TargetSite) -> int:
    if isinstance(embedding.module, nn.Embedding):
        return embedding.module.embedding_dim
    raise InarchError(
        "IA440",
        "this model's tokens are not embedded by a table",
        where=embedding.address,
        why=f"a {type(embedding.module).__name__} stands there",
        remedy="use another adapter, such as prefix",
    )
