"""MultiDiffusion as an adapter: the latents become windows, and windows become the latents again.

The windows are rows of the UNet's batch. Schedulers are linear in what a model predicts, so the
mean of the predictions is the mean of the windows' next steps: the paper's equation 5.

Source: Bar-Tal et al. 2023, "MultiDiffusion: Fusing Diffusion Paths for Controlled Image
Generation", section 4.1.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

import msgspec

from inarch.adapters import Adapter, SiteView
from inarch.errors import InarchError
from inarch.tree import Edit, Identity, Parallel, Seq, Use
from inarch.tree.steps import Step
from inarch.weights import WeightsHeader
from inarch_multidiffusion.windows import Windows, joined, parted, repeated, size_of


class Options(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """What `inarch.adapter("multidiffusion", ...)` takes, in latents (8 pixels each).

    Attributes:
        window: height and width of a window: what the model was trained on, 64 for SD 1.
        stride: from one window to the next.
        circular: let windows go on at the left where they end at the right, for a full turn.
    """

    window: int = 64
    stride: int = 16
    circular: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.stride <= self.window:
            raise ValueError("stride is from 1 to window")


class MultiDiffusion(Adapter):
    """Runs a UNet on windows of its latents, and gives the mean where they overlap."""

    Options = Options
    options: Options

    def edits(self, sites: SiteView, weights: WeightsHeader | None) -> Iterable[Edit]:
        if weights is not None:
            raise InarchError(
                "IA494",
                "MultiDiffusion has no weights",
                where=str(weights.path),
                remedy="leave them out",
            )
        o = self.options
        windows = Windows(o.window, o.stride, o.circular)
        [enter], [leave] = sites.find(["conv.in"]), sites.find(["conv.out"])
        sizes = (f"{self.name}_height", f"{self.name}_width")

        def sized(function: object) -> Step:
            """A function of what flows and of the size of the whole."""
            return Seq(Parallel(Identity(), Use(*sizes)), partial(function, windows=windows))  # type: ignore[call-overload]

        tree = enter.tree
        yield Edit(address=tree, kind="provide", adapter=self.name, step=size_of, names=sizes)
        yield Edit.before(enter.address, partial(parted, windows=windows), self.name)
        yield Edit.after(leave.address, sized(joined), self.name)
        for site in sites.find(["time"]):
            yield Edit.after(site.address, sized(repeated), self.name)
        for site in sites.find(["cross_attention.key", "cross_attention.value"]):
            yield Edit.before(site.address, sized(repeated), self.name)
