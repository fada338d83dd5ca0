"""Rotary positions: the kinds of scaling that published checkpoints use, in one module.

Source: Su et al. 2021, arXiv:2104.09864. Scalings: linear (Chen et al. 2023, arXiv:2306.15595),
dynamic NTK, YaRN (Peng et al. 2023, arXiv:2309.00071), Llama 3; settings are named and read as
in transformers' `rope_parameters`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Self

import torch
from torch import Tensor, nn

from inarch.errors import InarchError

Frequencies = tuple[Tensor, float]
"""Inverse frequencies [head_dim / 2], and what cosine and sine are multiplied by."""


class Rotary(nn.Module):
    """Cosine and sine of every position.

    The frequencies are made in float32 on the CPU even while a tree is built on the meta device,
    stay float32 whatever the tree is cast to, and are in no checkpoint.

    Args:
        head_dim: even.
        theta: the base of the frequencies.
        max_positions: the length the checkpoint was made for.
        scaling: `rope_type` and the settings of that type; None for plain rotary positions.

    Raises:
        InarchError: IA511 for an unknown type or a setting that is missing.
    """

    inverse_frequencies: Tensor

    def __init__(
        self,
        head_dim: int,
        theta: float,
        max_positions: int,
        scaling: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.head_dim, self.theta, self.max_positions = head_dim, theta, max_positions
        self.scaling = dict(scaling or {"rope_type": "default"})
        kind = str(self.scaling.get("rope_type", self.scaling.get("type", "default")))
        if kind not in _KINDS:
            raise InarchError(
                "IA511",
                f"rotary positions of type `{kind}` are not known",
                where="rope_parameters.rope_type",
                why=f"known are: {', '.join(_KINDS)}",
                remedy="use a checkpoint with one of them",
            )
        self.dynamic = kind == "dynamic"
        try:
            with torch.device("cpu"):
                frequencies, self.factor = _KINDS[kind](self, self.scaling)
        except KeyError as error:
            raise InarchError(
                "IA511",
                f"rotary positions of type `{kind}` need the setting {error}",
                where="rope_parameters",
                why=f"the checkpoint says: {self.scaling}",
                remedy="download config.json again",
            ) from None
        self.register_buffer("inverse_frequencies", frequencies, persistent=False)

    def forward(self, x: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Cosine and sine in the dtype of `x`, [batch, 1, time, head_dim] each.

        Args:
            x: only its dtype is used.
            positions: [batch, time].
        """
        frequencies = self.inverse_frequencies
        if self.dynamic:
            frequencies = self._stretched(positions)
        angles = positions[:, None, :, None].float() * frequencies
        angles = torch.cat((angles, angles), dim=-1)
        cos, sin = angles.cos(), angles.sin()
        if self.factor != 1.0:
            cos, sin = cos * self.factor, sin * self.factor
        return cos.to(x.dtype), sin.to(x.dtype)

    def _stretched(self, positions: Tensor) -> Tensor:
        """The frequencies for the length of each row, as a tensor throughout: [rows, 1, 1, half].

        A row's own length, not the batch's as in transformers, where a text turns with the longest
        that happens to run beside it.
        """
        factor = float(self.scaling["factor"])
        length = (positions.amax(-1) + 1).clamp(min=self.max_positions).float()[:, None, None, None]
        stretch = factor * length / self.max_positions - (factor - 1)
        theta = self.theta * stretch ** (self.head_dim / (self.head_dim - 2))
        exponents = torch.arange(0, self.head_dim, 2, device=positions.device).float()
        return 1.0 / theta ** (exponents / self.head_dim)

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Self:
        """Move with the tree, but keep float32: rounded frequencies turn far positions wrongly."""
        kept = self.inverse_frequencies
        super()._apply(fn, recurse)
        device = self.inverse_frequencies.device
        self.inverse_frequencies = kept if device.type == "meta" else kept.to(device)
        return self

    def extra_repr(self) -> str:
        return f"head_dim={self.head_dim}, theta={self.theta:g}, {self.scaling['rope_type']}"


def rotate(x: Tensor, *, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn each pair (i, i + head_dim / 2) of `x`, [batch, heads, time, head_dim], by its angle."""
    half = x.shape[-1] // 2
    first, second = x.narrow(-1, 0, half), x.narrow(-1, half, half)  # faster than chunk
    return x * cos + torch.cat((-second, first), dim=-1) * sin


def _plain(head_dim: int, theta: float) -> Tensor:
    exponents = torch.arange(0, head_dim, 2, dtype=torch.int64).float() / head_dim
    return 1.0 / (theta**exponents)


def _default(rotary: Rotary, _settings: Mapping[str, Any]) -> Frequencies:
    return _plain(rotary.head_dim, rotary.theta), 1.0


def _linear(rotary: Rotary, settings: Mapping[str, Any]) -> Frequencies:
    return _plain(rotary.head_dim, rotary.theta) / settings["factor"], 1.0


def _dynamic(rotary: Rotary, settings: Mapping[str, Any]) -> Frequencies:
    settings["factor"]
    return _plain(rotary.head_dim, rotary.theta), 1.0


def _llama3(rotary: Rotary, settings: Mapping[str, Any]) -> Frequencies:
    factor, original = settings["factor"], settings["original_max_position_embeddings"]
    low, high = settings["low_freq_factor"], settings["high_freq_factor"]
    plain = _plain(rotary.head_dim, rotary.theta)
    length = 2 * math.pi / plain
    smooth = (original / length - low) / (high - low)
    blend = (1 - smooth) * plain / factor + smooth * plain
    scaled = torch.where(length > original / low, plain / factor, plain)
    medium = ~(length < original / high) & ~(length > original / low)
    return torch.where(medium, blend, scaled), 1.0


def _yarn(rotary: Rotary, settings: Mapping[str, Any]) -> Frequencies:
    dim, theta = rotary.head_dim, rotary.theta
    original = settings["original_max_position_embeddings"]
    factor = settings["factor"] or rotary.max_positions / original

    def edge(rotations: float) -> float:
        return dim * math.log(original / (rotations * 2 * math.pi)) / (2 * math.log(theta))

    first, last = edge(settings.get("beta_fast") or 32), edge(settings.get("beta_slow") or 1)
    if settings.get("truncate", True):
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, dim - 1)
    if first == last:
        last += 0.001
    ramp = ((torch.arange(dim // 2).float() - first) / (last - first)).clamp(0, 1)
    exponents = torch.arange(0, dim, 2).float() / dim
    plain = 1.0 / theta**exponents
    stretched = 1.0 / (factor * theta**exponents)
    kept = 1 - ramp  # subtracted twice, as transformers does, for the very same bits
    return stretched * (1 - kept) + plain * kept, _attention_factor(settings, factor)


def _attention_factor(settings: Mapping[str, Any], factor: float) -> float:
    told = settings.get("attention_factor")
    if told is not None:
        return float(told)

    def mscale(weight: float = 1.0) -> float:
        return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0

    one, all_dims = settings.get("mscale"), settings.get("mscale_all_dim")
    return mscale(one) / mscale(all_dims) if one and all_dims else mscale()


_KINDS: dict[str, Callable[[Rotary, Mapping[str, Any]], Frequencies]] = {
    "default": _default,
    "linear": _linear,
    "dynamic": _dynamic,
    "yarn": _yarn,
    "llama3": _llama3,
}
