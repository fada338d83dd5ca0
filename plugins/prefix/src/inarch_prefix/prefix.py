"""Prefix tuning: learned keys and values that every query of a layer sees before the text's.

The positions of the text begin after them, as if tokens had been there. One tensor holds the
prefixes of all layers, as in PEFT's files: it is provided at the root of the tree, and each
attention takes its own part.

Source: Li and Liang 2021, "Prefix-Tuning: Optimizing Continuous Prompts for Generation".
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal

import msgspec
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from inarch.adapters import Adapter, SiteView
from inarch.adapters.placement import SUMMED, Placement, Split, Unplaceable
from inarch.tree import Edit, Identity, Parallel, Seq, Use
from inarch.weights import WeightsHeader
from inarch.weights.peft import write_folder
from inarch_prefix import peft_format
from inarch_prefix.attention import Attention, attention_of


class Options(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """What `inarch.adapter("prefix", ...)` takes for an adapter that is to be trained.

    Attributes:
        tokens: virtual tokens.
        projection: train embeddings and a network that makes keys and values of them, as in the
            paper; what it gives is saved.
        hidden: the width of that network; None is that of a layer's keys.
        start: keys and values drawn from a normal distribution, or all zero.
    """

    tokens: int = 20
    projection: bool = False
    hidden: int | None = None
    start: Literal["random", "zero"] = "random"

    def __post_init__(self) -> None:
        if min(self.tokens, 1 if self.hidden is None else self.hidden) < 1:
            raise ValueError("there is at least 1 virtual token, and a network at least 1 wide")
        if self.hidden is not None and not self.projection:
            raise ValueError("`hidden` is the width of a projection, and there is none")


class Prefix(nn.Module):
    """The keys and values of all layers.

    Args:
        tokens: virtual tokens.
        layers: of attention.
        width: of one layer's keys, all heads.
        start: see `Options`.
    """

    def __init__(self, tokens: int, layers: int, width: int, start: str = "random") -> None:
        super().__init__()
        self.layers, self.start = layers, start
        self.prompt_embeddings = nn.Parameter(torch.empty(tokens, layers * 2 * width))

    def placements(self, split: Split) -> Mapping[str, Placement]:
        """Whole in every process, which reads the part of its heads."""
        return dict.fromkeys((name for name, _ in self.named_parameters()), SUMMED)

    def placed(self, split: Split, site: nn.Module | None) -> None:
        pass

    def reset_parameters(self) -> None:
        if self.start == "zero":
            nn.init.zeros_(self.prompt_embeddings)
        else:
            nn.init.normal_(self.prompt_embeddings)

    def flat(self) -> Tensor:
        """As PEFT has them, [tokens, layers * 2 * width]."""
        return self.prompt_embeddings

    def forward(self, x: Tensor) -> Tensor:
        """[layers * 2, tokens, width]: keys and values in turn, whatever the text is."""
        return self.flat().unflatten(1, (self.layers * 2, -1)).transpose(0, 1)


class ProjectedPrefix(Prefix):
    """The same, made of embeddings by a network of two layers while it is trained.

    Args:
        tokens, layers, width, start: see `Prefix`.
        hidden: the width of the network.
    """

    def __init__(self, tokens: int, layers: int, width: int, hidden: int, start: str) -> None:
        super().__init__(0, layers, width, start)
        self.prompt_embeddings = None
        self.embedding = nn.Parameter(torch.empty(tokens, width))
        self.first = nn.Parameter(torch.empty(hidden, width))
        self.first_bias = nn.Parameter(torch.empty(hidden))
        self.second = nn.Parameter(torch.empty(layers * 2 * width, hidden))
        self.second_bias = nn.Parameter(torch.empty(layers * 2 * width))

    def reset_parameters(self) -> None:
        """As torch begins an embedding and linear layers, the last of them zero where asked."""
        nn.init.normal_(self.embedding)
        for weight, bias in ((self.first, self.first_bias), (self.second, self.second_bias)):
            bound = weight.shape[1] ** -0.5
            nn.init.uniform_(weight, -bound, bound)
            nn.init.uniform_(bias, -bound, bound)
        if self.start == "zero":
            nn.init.zeros_(self.second)
            nn.init.zeros_(self.second_bias)

    def flat(self) -> Tensor:
        hidden = F.linear(self.embedding, self.first, self.first_bias).tanh()
        return F.linear(hidden, self.second, self.second_bias)


class PrefixAt(nn.Module):
    """Puts one layer's keys and values before those of the text.

    Args:
        layer: which. A buffer holds it, so that all layers are one structure to a compiler.
    """

    rows: Tensor

    def __init__(self, layer: int) -> None:
        super().__init__()
        with torch.device("cpu"):
            rows = torch.tensor([2 * layer, 2 * layer + 1])
        self.register_buffer("rows", rows, persistent=False)
        self.part, self.parts = 0, 1

    def placements(self, split: Split) -> Mapping[str, Placement]:
        if split.kind in ("columns", "rows"):
            raise Unplaceable("keys and values are put before others where they meet queries")
        return {}

    def placed(self, split: Split, site: nn.Module | None) -> None:
        """Take from now on the part of this process's heads."""
        self.part, self.parts = split.part, split.parts

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, prefix: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """`attend`'s input with keys and values [batch, heads, tokens + keys, head_dim].

        The mask is left as it is: `inarch.nn.attend` lets every query see what it doesn't tell of.

        Args:
            query, key, value, mask: see `inarch.nn.attend`.
            prefix: of all layers, [layers * 2, tokens, width].
        """
        batch, heads = key.shape[:2]
        own = prefix.index_select(0, self.rows).to(key.dtype)
        if self.parts > 1:
            own = own.chunk(self.parts, dim=2)[self.part]
        own = own.unflatten(2, (heads, -1))
        own = own.transpose(1, 2)[:, None].expand(-1, batch, -1, -1, -1)
        return query, torch.cat((own[0], key), dim=2), torch.cat((own[1], value), dim=2), mask


def later(positions: Tensor, *, by: int = 0) -> Tensor:
    """Positions after so many virtual tokens, of the same shape."""
    return positions + by


class PrefixTuning(Adapter):
    """Learned keys and values in every layer of attention."""

    Options = Options
    options: Options
    for_training = Options.__struct_fields__
    by_header = True

    def edits(self, sites: SiteView, weights: WeightsHeader | None) -> Iterable[Edit]:
        attention = self._attention = attention_of(sites)
        layers, width = len(attention.sites), attention.width
        if weights is None:
            prefix, fills = self._fresh(layers, width), {}
        else:
            tokens = peft_format.tokens_of(weights, ("PREFIX_TUNING",), attention.settings)
            prefix = Prefix(tokens, layers, width)
            fills = {peft_format.KEY: peft_format.KEY}
        value = f"{self.name}_prefix"
        yield Edit(
            address=attention.sites[0].tree,
            kind="provide",
            names=(value,),
            step=prefix,
            adapter=self.name,
            fills=fills,
            label="prefix",
        )
        for layer, site in enumerate(attention.sites):
            given = Parallel(Identity(), Use(value))
            step = Seq(given, PrefixAt(layer))
            yield Edit.before(site.address, step, self.name, kin="prefix")
        tokens = prefix.flat().shape[0]
        for site in sites.find(["positions"]):
            yield Edit.after(site.address, partial(later, by=tokens), self.name, kin="later")

    def _fresh(self, layers: int, width: int) -> Prefix:
        options = self.options
        if not options.projection:
            return Prefix(options.tokens, layers, width, options.start)
        hidden = options.hidden or width
        return ProjectedPrefix(options.tokens, layers, width, hidden, options.start)

    def write(self, folder: Path, edges: Mapping[str, nn.Module], about: Mapping[str, str]) -> None:
        """Save as PEFT does; see `inarch_prefix.peft_format`."""
        [prefix] = [module for module in edges.values() if isinstance(module, Prefix)]
        with torch.no_grad():
            flat = prefix.flat()
        attention: Attention = self._attention
        settings: Any = {"prefix_projection": False, "encoder_hidden_size": attention.width}
        config = peft_format.config(
            "PREFIX_TUNING", len(flat), attention.settings, about, **settings
        )
        write_folder(folder, config, {peft_format.KEY: flat}, about)
