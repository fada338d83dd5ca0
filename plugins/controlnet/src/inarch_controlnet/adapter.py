"""ControlNet as an adapter: values provided from a copied encoder, added to every skip."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from inarch.adapters import Adapter, AddedInput, Example, OwnTree, Request, SiteView, Span
from inarch.nn.picture import rows_of_pictures
from inarch.tree import Chain, Edit, Seq, Use
from inarch.tree.substitute import substitute
from inarch.weights import WeightsHeader
from inarch_controlnet.edges import embedding
from inarch_controlnet.encoder import Encoder
from inarch_controlnet.file import ControlNetFile, write
from inarch_controlnet.lowrank import low_rank
from inarch_controlnet.variant import Blocks


class Options(Span, forbid_unknown_fields=True, frozen=True):
    """What `inarch.adapter("controlnet", ...)` takes beside weights, a name and a scale.

    Attributes:
        guess_mode: act on the prompt's half of guidance only, and less on early skips.
        widths: of the picture's embedding, where it is yet to be trained.
        channels: of the picture, likewise.
    """

    guess_mode: bool = False
    widths: tuple[int, ...] = (16, 32, 96, 256)
    channels: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.widths) < 1 or min(self.widths) < 1 or self.channels not in (1, 3):
            raise ValueError("widths has a width at least, and a picture 1 channel or 3")


class ControlNet(Adapter):
    """A copy of the encoder that reads a picture, with weights of its own."""

    Options = Options
    options: Options
    for_training = ("widths", "channels")

    def __init__(self, name: str, options: Options) -> None:
        super().__init__(name, options)
        self.file = ControlNetFile(None, {})
        self.base: Mapping[str, Any] = {}
        self.tree = ""
        self.own: OwnTree | None = None
        self.channels = options.channels
        self.halvings = len(options.widths) - 1

    @property
    def picture(self) -> str:
        return f"{self.name}_image"

    @property
    def prompted(self) -> bool:
        """Whether it acts on the rows for a prompt alone."""
        return self.options.guess_mode or self.file.pooled

    def edits(self, sites: SiteView, weights: WeightsHeader | None) -> Iterable[Edit]:
        encoder = Encoder.of(sites)
        self.tree = encoder.tree
        self.base = sites.settings.get(encoder.tree, sites.settings)
        self.file = file = ControlNetFile(weights, {} if weights is None else weights.settings)
        hint = self._hint(encoder)
        yield self._provide("hint", (f"{self.name}_hint",), Seq(Use(self.picture), hint))
        own = self._own_encoder(sites, encoder)
        tower = own.copied(
            self.name,
            channels=file.latent_channels,
            factors=self._factors(len(encoder.skips) + 1),
            pooled=file.pooled,
            prompted=self.prompted,
            sites=sites,
        )
        tower = self._low_rank(tower, sites, encoder)
        self.own = OwnTree(tower, own.roles(sites))
        names = tuple(f"{self.name}_{i}" for i in range(len(encoder.skips) + 1))
        yield self._provide("control", names, tower, encoder if own is encoder else None)
        for skip, name in zip(encoder.skips, names, strict=False):
            yield Edit.add(skip.address, Use(name), self.name)
        yield Edit.add(encoder.address(encoder.middle), Use(names[-1]), self.name)

    def _own_encoder(self, sites: SiteView, encoder: Encoder) -> Encoder:
        """The model's encoder, or one with the transformers that the file has in other places."""
        model = Blocks.of(name for name, _ in encoder.chain.named_parameters())
        blocks = self.file.blocks
        same_skips = blocks is not None and blocks.layers == model.layers
        if blocks is None or not same_skips or blocks == model or not self.base:
            return encoder
        own = blocks.settings(self.base, self.file.settings)
        whole = encoder.tree in sites.settings
        varied = sites.variant({**sites.settings, encoder.tree: own} if whole else own)
        self.base = own
        return Encoder.of(varied)

    def _hint(self, encoder: Encoder) -> Chain:
        channels, widths = self.file.hint or (self.options.channels, self.options.widths)
        self.channels, self.halvings = channels, len(widths) - 1
        return embedding(channels, widths, encoder.width, flipped=self.file.flipped)

    def _factors(self, count: int) -> list[float]:
        """Of the scale, for each value: from a tenth to all of it in guess mode."""
        if not self.options.guess_mode or self.file.pooled:
            return [1.0] * count
        return [10.0 ** (i / (count - 1) - 1.0) for i in range(count)]

    def _low_rank(self, tower: Chain, sites: SiteView, encoder: Encoder) -> Chain:
        """The copy with layers over the base's weights, where the file has factors for them."""
        ranks = self.file.ranks(name for name, _ in tower.named_parameters())
        layers: dict[str, nn.Module] = {}
        for local, rank in ranks.items():
            site = sites.all.get(encoder.address(local))
            if site is not None and site.module is not None:
                layers[local] = low_rank(site.module, site.address, rank)
        return substitute(tower, layers) if layers else tower

    def _provide(
        self, label: str, names: tuple[str, ...], step: Any, copied: Encoder | None = None
    ) -> Edit:
        module = step if isinstance(step, nn.Module) else step.steps[-1]
        parameters = [name for name, _ in module.named_parameters()]
        copies: dict[str, str] = {}
        reads: tuple[str, ...] = ()
        if copied is not None and (self.file.header is None or self.file.is_lora):
            own = {name for name, _ in copied.chain.named_parameters()}
            copies = {n: copied.address(n) for n in parameters if n in own}
        if copied is not None:
            reads = tuple(copied.address(part) for part in copied.parts)
        asked = (self.picture,) if label == "hint" else ("prompted",) if self.prompted else ()
        return Edit(
            address=self.tree,
            kind="provide",
            adapter=self.name,
            names=names,
            step=step,
            inputs=asked,
            reads=reads,
            fills=self.file.fills(parameters, hint=label == "hint"),
            copies=copies,
            label=label,
        )

    def own_tree(self) -> OwnTree | None:
        return self.own

    # What a user gives for it

    def inputs(self) -> Sequence[AddedInput]:
        return (AddedInput(self.picture, f"[batch, {self.channels}, height, width] in 0..1"),)

    def read_input(self, added: AddedInput, value: Any, request: Request) -> Mapping[str, Any]:
        return {
            added.name: rows_of_pictures(value, request, channels=self.channels, name=added.name)
        }

    def acts(self, start: float, end: float) -> bool:
        return self.options.holds(start, end)

    def example_inputs(self, example: Example) -> Mapping[str, Any]:
        if example.tree != self.tree:
            return {}
        values = (v for v in example.inputs.values() if isinstance(v, torch.Tensor))
        latents = next(value for value in values if value.dim() == 4)
        batch, _, height, width = latents.shape
        like: dict[str, Any] = {"device": latents.device, "dtype": latents.dtype}
        size = [1, self.channels, height << self.halvings, width << self.halvings]
        waves = torch.arange(math.prod(size), device="cpu").mul(0.37).sin().abs()
        return {self.picture: waves.reshape(size).to(**like), "prompted": (batch, batch)}

    def write(self, folder: Path, edges: Mapping[str, nn.Module], about: Mapping[str, str]) -> None:
        """Save as diffusers does, a Control-LoRA as one file; see `inarch_controlnet.file`."""
        parts = {address.rpartition(".")[2]: module for address, module in edges.items()}
        tensors = dict(parts["control"].named_parameters())
        hints = dict(parts["hint"].named_parameters())
        widths = [len(h) for n, h in hints.items() if n.endswith("bias") and n != "conv_out.bias"]
        known = {
            "conditioning_channels": self.channels,
            "conditioning_embedding_out_channels": widths[:1] + widths[2::2],
        }
        if self.file.is_lora:
            known = {}
        write(folder, tensors, hints, self.file, self.base, known, about)
