"""T2I-Adapter as an adapter: features of a picture, added after the blocks on the way down."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from inarch.adapters import Adapter, AddedInput, Example, Request, SiteView, Span, TargetSite
from inarch.errors import InarchError
from inarch.nn.picture import rows_of_pictures
from inarch.tree import Edit, Seq, Use
from inarch.weights import WeightsHeader
from inarch_t2i_adapter.body import BodyConfig, body
from inarch_t2i_adapter.file import config_of, write


class Options(Span, forbid_unknown_fields=True, frozen=True):
    """What `inarch.adapter("t2i-adapter", ...)` takes beside weights, a name and a scale.

    Attributes:
        kind: of the network, for one that is to be trained.
        channels: of its picture, likewise.
        layers: residual layers before each feature, likewise; 2, and 4 for light.
        downscale: pixels of the picture in one of the first feature; 8, and 16 for full_xl.
    """

    kind: Literal["full", "full_xl", "light"] = "full"
    channels: int = 3
    layers: int | None = None
    downscale: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        sizes = [size for size in (self.layers, self.downscale) if size is not None]
        if self.channels not in (1, 3) or min(sizes, default=1) < 1:
            raise ValueError("a picture has 1 channel or 3; layers and downscale are at least 1")

    def config(self, widths: Sequence[int]) -> BodyConfig:
        """The sizes of a network for a model whose blocks have these channels."""
        light, large = self.kind == "light", self.kind == "full_xl"
        return BodyConfig(
            in_channels=self.channels,
            channels=tuple(widths[:-1] if light else widths),
            num_res_blocks=self.layers or (4 if light else 2),
            downscale_factor=self.downscale or (16 if large else 8),
            adapter_type=f"{self.kind}_adapter" if not large else "full_adapter_xl",  # type: ignore
        )


class T2IAdapter(Adapter):
    """A small network that reads a picture once, whatever the step of sampling is."""

    Options = Options
    options: Options
    conversion = (
        'safetensors.torch.save_file(torch.load(PATH, weights_only=True), "it.safetensors")'
    )
    for_training = ("kind", "channels", "layers", "downscale")

    def __init__(self, name: str, options: Options) -> None:
        super().__init__(name, options)
        self.config = BodyConfig()
        self.tree = ""

    @property
    def picture(self) -> str:
        return f"{self.name}_image"

    def edits(self, sites: SiteView, weights: WeightsHeader | None) -> Iterable[Edit]:
        targets = _targets(sites)
        self.tree = targets[0][0].tree
        widths = [width for _, width in targets]
        layout = None
        if weights is not None:
            self.config, layout = config_of(weights)
        else:
            self.config = self.options.config(_for_features(widths, self.options.kind))
        _check(self.config.features, widths)
        network = body(self.config, self.name)
        parameters = [name for name, _ in network.named_parameters()]
        names = tuple(f"{self.name}_{i}" for i in range(len(self.config.features)))
        yield Edit(
            address=self.tree,
            kind="provide",
            adapter=self.name,
            names=names,
            step=Seq(Use(self.picture), network),
            inputs=(self.picture,),
            fills={} if layout is None else {n: layout.key(n) for n in parameters},
            label="features",
        )
        for (site, _), name in zip(targets, names, strict=False):
            yield Edit.add(site.address, Use(name), self.name)

    # What a user gives for it

    def inputs(self) -> Sequence[AddedInput]:
        shape = f"[batch, {self.config.in_channels}, height, width] in 0..1"
        return (AddedInput(self.picture, shape),)

    def read_input(self, added: AddedInput, value: Any, request: Request) -> Mapping[str, Any]:
        square = self.config.downscale_factor
        if request.height % square or request.width % square:
            raise InarchError(
                "IA505",
                f"`{added.name}` can't be {request.height} by {request.width} pixels",
                where=added.name,
                why=f"the T2I-Adapter reads squares of {square} by {square}",
                remedy=f"ask for a height and width that are multiples of {square}",
            )
        channels = self.config.in_channels
        return {added.name: rows_of_pictures(value, request, channels=channels, name=added.name)}

    def acts(self, start: float, end: float) -> bool:
        return self.options.holds(start, end)

    def example_inputs(self, example: Example) -> Mapping[str, Any]:
        if example.tree != self.tree:
            return {}
        values = (v for v in example.inputs.values() if isinstance(v, torch.Tensor))
        latents = next(value for value in values if value.dim() == 4)
        large = self.config.adapter_type == "full_adapter_xl"
        square = self.config.downscale_factor // (2 if large else 1)
        height, width = (n * square for n in latents.shape[2:])
        size = [1, self.config.in_channels, height, width]
        waves = torch.arange(math.prod(size), device="cpu").mul(0.37).sin().abs().reshape(size)
        return {self.picture: waves.to(latents.device, latents.dtype)}

    def write(self, folder: Path, edges: Mapping[str, nn.Module], about: Mapping[str, str]) -> None:
        """Save as diffusers does; see `inarch_t2i_adapter.file`."""
        [network] = edges.values()
        write(folder, dict(network.named_parameters()), self.config, about)


def _targets(sites: SiteView) -> list[tuple[TargetSite, int]]:
    """Where features are added, the middle last, with the channels that flow there.

    The sum is what the block's last skip holds: it follows the last transformer of a block, or,
    in a block without one, what halves it, or its last layer.
    """
    found: list[TargetSite] = []
    for block in sites.find(["block.down"]):
        inside = [_inside(sites, role, block) for role in ("transformer", "downsample", "resnet")]
        last = next((some[-1] for some in inside if some), None)
        if last is None:
            raise InarchError(
                "IA456",
                "the model has a block on the way down that no feature can follow",
                where=block.address,
                why="it holds no site of the roles `transformer`, `downsample` or `resnet`",
                remedy="use a model whose blocks on the way down hold one of these",
            )
        found.append(last)
    found.append(sites.find(["block.mid"])[0])
    return [(site, _width(sites, site)) for site in found]


def _inside(sites: SiteView, role: str, block: TargetSite) -> list[TargetSite]:
    if role not in sites.roles:
        return []
    try:
        every = sites.find([role])
    except InarchError:  # a role that matches nothing in this model
        return []
    return [site for site in every if site.address.startswith(f"{block.address}.")]


def _width(sites: SiteView, target: TargetSite) -> int:
    """The channels of the last convolution at or before the end of a site."""
    width, inside = 0, False
    for site in sites.all.values():
        here = site.address == target.address or site.address.startswith(f"{target.address}.")
        if inside and not here:
            break
        inside = inside or here
        if isinstance(site.module, nn.Conv2d):
            width = site.module.out_channels
    return width


def _for_features(widths: list[int], kind: str) -> list[int]:
    """The channels of an untrained network: one for each block, XL's one more for the middle."""
    return widths if kind == "full_xl" else widths[:-1]


def _check(features: Sequence[int], widths: Sequence[int]) -> None:
    if len(features) > len(widths) or any(f != w for f, w in zip(features, widths, strict=False)):
        raise InarchError(
            "IA456",
            "the features don't fit the model's blocks",
            why=f"they have {list(features)} channels, the blocks and the middle {list(widths)}",
            remedy="use a T2I-Adapter that was trained for this family",
        )
