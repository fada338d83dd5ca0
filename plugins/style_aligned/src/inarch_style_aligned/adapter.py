"""StyleAligned as an adapter: one `before` at each self-attention.

Source: Hertz et al. 2023, "Style Aligned Image Generation via Shared Attention", section 3 and
equation 4; defaults as in its official code for SDXL.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

import msgspec
import torch
from torch import Tensor

from inarch.adapters import Adapter, Example, SiteView
from inarch.errors import InarchError
from inarch.nn import by_heads
from inarch.tree import Edit
from inarch.weights import WeightsHeader

_EPSILON = 1e-5


class Options(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """What `inarch.adapter("style-aligned", ...)` takes.

    Attributes:
        strength: a factor of the first picture's keys, as seen by the others.
        queries, keys, values: which of them take the first picture's mean and deviation.
    """

    strength: float = 1.0
    queries: bool = True
    keys: bool = True
    values: bool = False


class StyleAligned(Adapter):
    """Lets every picture of a batch attend to the first one as well."""

    Options = Options
    options: Options

    def edits(self, sites: SiteView, weights: WeightsHeader | None) -> Iterable[Edit]:
        if weights is not None:
            raise InarchError(
                "IA493",
                "StyleAligned has no weights",
                where=str(weights.path),
                remedy="leave them out",
            )
        o = self.options
        normed = (o.queries, o.keys, o.values)
        step = partial(share_style, strength=o.strength, normed=normed)
        for site in sites.find(["self_attention.attend"]):
            yield Edit.before(site.address, step, self.name, inputs=("halves",))

    def example_inputs(self, example: Example) -> dict[str, int]:
        return {"halves": 1}


@by_heads
def share_style(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    *,
    halves: int,
    strength: float = 1.0,
    normed: tuple[bool, bool, bool] = (True, True, False),
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Queries, keys and values of which every row also has the first row's.

    Args:
        query, key, value: [batch, heads, tokens, head_dim].
        mask: [.., tokens, tokens], True where a query may look, or None for everywhere.
        halves: how many parts of the batch there are, each with a first row of its own.
        strength: a factor of the first row's keys for the other rows.
        normed: whether queries, keys and values take the first row's statistics.
    """
    query, key, value = (
        _restyled(x, halves) if wanted else x
        for x, wanted in zip((query, key, value), normed, strict=True)
    )
    seen = _first(key, halves)
    if strength != 1.0:
        rows = torch.arange(len(key), device=key.device) % (len(key) // halves)
        factor = torch.where(rows == 0, 1.0, strength).to(key.dtype)
        seen = seen * factor.view(-1, 1, 1, 1)
    if mask is not None:
        mask = torch.cat([mask, torch.ones_like(mask)], dim=-1)
    key, value = torch.cat([key, seen], dim=2), torch.cat([value, _first(value, halves)], dim=2)
    return query, key, value, mask


def _first(x: Tensor, halves: int) -> Tensor:
    """The first row of each part in the place of every row of it."""
    parts = x.unflatten(0, (halves, -1))
    return parts[:, :1].expand_as(parts).flatten(0, 1)


def _restyled(x: Tensor, halves: int) -> Tensor:
    """Every row with the mean and the deviation over tokens of the first row of its part."""
    mean = x.mean(dim=-2, keepdim=True)
    deviation = (x.var(dim=-2, keepdim=True) + _EPSILON).sqrt()
    return (x - mean) / deviation * _first(deviation, halves) + _first(mean, halves)
