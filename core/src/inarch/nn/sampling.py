"""From logits to the next token. Order and results are those of transformers' processors."""

from __future__ import annotations

import numbers
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from inarch.errors import InarchError

_LEAST = sys.float_info.min


def _is(value: Any, least: float, most: float = sys.float_info.max, *, whole: bool = False) -> bool:
    """Whether a value is a number, or an integer, from `least` to `most`."""
    kind: Any = numbers.Integral if whole else numbers.Real
    return isinstance(value, kind) and type(value) is not bool and least <= value <= most


@dataclass(frozen=True, slots=True)
class Sampling:
    """How a token is chosen.

    Attributes:
        temperature: 0 takes the likeliest token; higher is more varied.
        top_k: keep the k likeliest.
        top_p: keep the likeliest whose probabilities reach p together (Holtzman et al. 2019).
        min_p: keep those at least min_p times as likely as the likeliest (Nguyen et al. 2024).
        repetition_penalty: above 1 makes tokens that occurred less likely (Keskar et al. 2019).
        seed: draws the same tokens again.

    Raises:
        InarchError: IA504 for a value outside of its range.
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    seed: int | None = None

    def __post_init__(self) -> None:
        ranges = (
            ("temperature", _is(self.temperature, 0), "a number, at least 0"),
            ("top_k", self.top_k is None or _is(self.top_k, 1, whole=True), "an integer, above 0"),
            ("top_p", self.top_p is None or _is(self.top_p, _LEAST, 1), "above 0, up to 1"),
            ("min_p", self.min_p is None or _is(self.min_p, 0, 1), "from 0 to 1"),
            (
                "repetition_penalty",
                self.repetition_penalty is None or _is(self.repetition_penalty, _LEAST),
                "a number above 0",
            ),
            (
                "seed",
                self.seed is None or _is(self.seed, -(2**63), 2**64 - 1, whole=True),
                "an integer of 64 bits",
            ),
        )
        for name, fine, wanted in ranges:
            if not fine:
                raise InarchError(
                    "IA504",
                    f"{name} must be {wanted}, not {getattr(self, name)!r}",
                    where=name,
                    remedy=f"leave {name} out for what is usual",
                )

    @property
    def penalises(self) -> bool:
        """Whether it matters which tokens occurred."""
        return self.repetition_penalty not in (None, 1.0)

    def generator(self, device: torch.device) -> torch.Generator | None:
        """A generator for the seed; None draws from torch's own."""
        if self.seed is None:
            return None
        return torch.Generator(device).manual_seed(self.seed)

    def next(
        self,
        logits: Tensor,
        seen: Tensor | None,
        generator: torch.Generator | Sequence[torch.Generator] | None,
    ) -> Tensor:
        """The next token of each row, [batch].

        Where a row's probabilities are no numbers, as a temperature near 0 or a broken adapter
        makes them, its likeliest token is taken, and the other rows are drawn as ever.

        Args:
            logits: [batch, vocabulary].
            seen: [batch, vocabulary], True for tokens that occurred; None without a penalty.
            generator: see `generator`; or one for each row, which then draws what it would alone.
        """
        scores = logits.float()
        if seen is not None and self.repetition_penalty is not None:
            scores = penalised(scores, seen, self.repetition_penalty)
        if self.temperature == 0:
            return scores.argmax(-1)
        likely = self.filtered(scores).softmax(-1)
        lost = likely[:, :1].isnan()  # all of a row is, or none
        drawn = _drawn(likely.masked_fill(lost, 1.0), generator)
        return torch.where(lost[:, 0], scores.argmax(-1), drawn)

    def filtered(self, scores: Tensor) -> Tensor:
        """The scores at the temperature, -inf where a token is not kept."""
        scores = scores / self.temperature
        if self.top_k is not None:
            scores = keep_top_k(scores, self.top_k)
        if self.top_p is not None and self.top_p < 1:
            scores = keep_top_p(scores, self.top_p)
        if self.min_p is not None:
            scores = keep_min_p(scores, self.min_p)
        return scores


def _drawn(likely: Tensor, generator: torch.Generator | Sequence[torch.Generator] | None) -> Tensor:
    """A token for each row, [batch], as likely as told."""
    if not isinstance(generator, Sequence):
        return torch.multinomial(likely, 1, generator=generator)[:, 0]
    rows = zip(likely.split(1), generator, strict=True)
    return torch.cat([torch.multinomial(row, 1, generator=own)[:, 0] for row, own in rows])


def penalised(scores: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """Scores of seen tokens divided by the penalty where positive, multiplied where negative."""
    less = torch.where(scores < 0, scores * penalty, scores / penalty)
    return torch.where(seen, less, scores)


def keep_top_k(scores: Tensor, k: int) -> Tensor:
    least = scores.topk(min(k, scores.shape[-1])).values[..., -1:]
    return scores.masked_fill(scores < least, float("-inf"))


def keep_top_p(scores: Tensor, p: float) -> Tensor:
    ascending, order = scores.sort(descending=False)
    drop = ascending.softmax(-1).cumsum(-1) <= 1 - p
    drop[..., -1:] = False
    return scores.masked_fill(drop.scatter(1, order, drop), float("-inf"))


def keep_min_p(scores: Tensor, p: float) -> Tensor:
    likely = scores.softmax(-1)
    drop = likely < p * likely.amax(-1, keepdim=True)
    best = scores.argmax(-1, keepdim=True)
    return scores.masked_fill(drop.scatter(1, best, False), float("-inf"))
