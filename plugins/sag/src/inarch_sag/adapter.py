"""Self-attention guidance as an adapter: three taps, and a term of each step's guidance.

Source: Hong et al. 2022, "Improving Sample Quality of Diffusion Models Using Self-Attention
Guidance", section 4 and equation 25; blur and threshold as in its official code and in diffusers.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import msgspec
import torch
from torch import Tensor
from torch.nn import functional as F

from inarch.adapters import Adapter, Moment, SiteView, TargetSite
from inarch.errors import InarchError
from inarch.tree import Edit
from inarch.weights import WeightsHeader

_KERNEL, _SIGMA, _THRESHOLD = 9, 1.0, 1.0


class Options(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """What `inarch.adapter("sag", ...)` takes.

    Attributes:
        strength: how far to go away from the blurred prediction.
    """

    strength: float = 0.75

    def __post_init__(self) -> None:
        if not math.isfinite(self.strength):
            raise ValueError("strength is a finite number")


class SelfAttentionGuidance(Adapter):
    """Guides away from what the model predicts when the parts that it attends to are blurred."""

    Options = Options
    options: Options

    def edits(self, sites: SiteView, weights: WeightsHeader | None) -> Iterable[Edit]:
        """Taps at the first self-attention in the middle: query, key, and the picture's size."""
        if weights is not None:
            raise InarchError(
                "IA492", "guidance has no weights", where=str(weights.path), remedy="leave them out"
            )
        [middle] = sites.find(["block.mid"])
        roles = {"query": "self_attention.heads.query", "key": "self_attention.heads.key"}
        for name, role in {**roles, "size": "resnet"}.items():
            yield Edit.tap(
                _first(sites.find([role]), middle.address),
                f"{self.name}_{name}",
                self.name,
                export=True,
            )

    def guide(self, moment: Moment) -> Tensor:
        query, key, size = (moment.exported[f"{self.name}_{n}"] for n in ("query", "key", "size"))
        levels = _levels(moment)
        clean, noise = _parted(moment, levels)
        mask = attended(query, key, (size.shape[2], size.shape[3]))
        mask = F.interpolate(mask.to(clean.dtype), clean.shape[2:])
        degraded = blurred(clean) * mask + clean * (1 - mask)
        again = levels.sqrt() * degraded + (1 - levels).sqrt() * noise
        return self.options.strength * (moment.predicted - moment.ask(again.to(clean.dtype)))


def attended(query: Tensor, key: Tensor, size: tuple[int, int]) -> Tensor:
    """Where the tokens look more than evenly, as [batch, 1, height, width] of booleans.

    Args:
        query, key: [batch, heads, tokens, head_dim].
        size: height and width of the tokens' grid.
    """
    scores = query.float() @ key.float().mT / math.sqrt(query.shape[-1])
    looked_at = scores.softmax(-1).mean(1).sum(1)  # [batch, tokens]
    return (looked_at > _THRESHOLD).view(-1, 1, *size)


def blurred(x: Tensor) -> Tensor:
    """[batch, channels, height, width] under a Gaussian blur of nine pixels."""
    at = torch.linspace(-(_KERNEL - 1) / 2, (_KERNEL - 1) / 2, _KERNEL, device=x.device)
    weights = torch.exp(-0.5 * (at / _SIGMA).square())
    weights = (weights / weights.sum()).to(x.dtype)
    kernel = torch.outer(weights, weights).expand(x.shape[1], 1, -1, -1)
    half = _KERNEL // 2
    return F.conv2d(F.pad(x, (half,) * 4, mode="reflect"), kernel, groups=x.shape[1])


def _levels(moment: Moment) -> Tensor:
    """How much of the picture is left at the moment, as `alphas_cumprod` has it."""
    known = getattr(moment.scheduler, "alphas_cumprod", None)
    plain = float(moment.scheduler.init_noise_sigma) == 1.0
    whole = not torch.is_floating_point(moment.timestep) or bool(moment.timestep.frac() == 0)
    if known is None or not plain or not whole:
        raise InarchError(
            "IA492",
            f"self-attention guidance can't use {type(moment.scheduler).__name__}",
            why="its latents are not a mix of picture and noise by `alphas_cumprod`",
            remedy='scheduler="ddim"',
        )
    return known.to(moment.latents.device)[moment.timestep.long()]


def _parted(moment: Moment, levels: Tensor) -> tuple[Tensor, Tensor]:
    """The picture and the noise that the latents are made of, as the model predicts them."""
    kind = moment.scheduler.config.prediction_type
    x, said, keep, add = moment.latents, moment.predicted, levels.sqrt(), (1 - levels).sqrt()
    if kind == "epsilon":
        return (x - add * said) / keep, said
    if kind == "v_prediction":
        return keep * x - add * said, add * x + keep * said
    return said, (x - keep * said) / add


def _first(sites: Sequence[TargetSite], inside: str) -> str:
    for site in sites:
        if site.address.startswith(f"{inside}."):
            return site.address
    raise InarchError(
        "IA492",
        "the model has no self-attention in the middle",
        where=inside,
        why="the map that guides is that of the middle block",
        remedy="leave the adapter out",
    )
