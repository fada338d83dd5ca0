"""Reference-only control as an adapter: in each step the model looks at a picture first.

The picture is noised as the one in the making is, and the model is asked about it. What its
self-attentions hold of it, and the statistics of its layers, then enter the step itself as inputs
of the tree.

Source: Zhang's reference-only control in sd-webui-controlnet, discussions 1236 and 1280; equal to
diffusers' community pipeline `stable_diffusion_reference`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from inarch.adapters import Adapter, AddedInput, Ahead, Edge, Example, Request, SiteView, Span
from inarch.errors import InarchError
from inarch.nn.picture import rows_of_pictures
from inarch.tree import Edit, Identity, Parallel, Seq, Use
from inarch.tree.steps import Step
from inarch.weights import WeightsHeader
from inarch_reference import places
from inarch_reference.edges import ReferenceAttention, ReferenceStatistics, style_of


class Options(Span, forbid_unknown_fields=True, frozen=True):
    """What `inarch.adapter("reference", ...)` takes beside a name and a scale.

    Attributes:
        reference_attn: whether self-attentions look at the reference.
        reference_adain: whether layers take its statistics.
        style_fidelity: from 0, where the prompt counts more, to 1, where the reference does.
            So much is kept from the rows for no prompt, which guidance goes away from.
        attention_weight: the share of the self-attentions that look at it, the widest first.
        gn_weight: which blocks take its statistics: all at 2, at 0 the middle alone.
        encoded: whether it is given as `NAME_latents` instead of `NAME_image`.
    """

    reference_attn: bool = True
    reference_adain: bool = False
    style_fidelity: float = 0.5
    attention_weight: float = 1.0
    gn_weight: float = 1.0
    encoded: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.reference_attn or self.reference_adain):
            raise ValueError("without reference_attn and reference_adain nothing is left of it")
        if not 0.0 <= self.style_fidelity <= 1.0:
            raise ValueError("style_fidelity is from 0 to 1")
        if not (0.0 < self.attention_weight <= 1.0 and 0.0 <= self.gn_weight <= 2.0):
            raise ValueError("attention_weight is above 0 and at most 1, gn_weight from 0 to 2")


class Reference(Adapter):
    """Lets a picture in the making look at another one."""

    Options = Options
    options: Options

    def __init__(self, name: str, options: Options) -> None:
        super().__init__(name, options)
        self.tree = ""
        self.channels = self.beside = 0
        self.seen: dict[str, tuple[str, str, int]] = {}
        self.styles: dict[str, tuple[str, int]] = {}

    @property
    def given(self) -> str:
        return f"{self.name}_latents" if self.options.encoded else f"{self.name}_image"

    def edits(self, sites: SiteView, weights: WeightsHeader | None) -> Iterable[Edit]:
        if weights is not None:
            raise InarchError(
                "IA495",
                "a reference has no weights",
                where=str(weights.path),
                remedy=f"leave them out, and give the picture as {self.given}=...",
            )
        [enter], [leave] = sites.find(["conv.in"]), sites.find(["conv.out"])
        self.tree, self.channels = enter.tree, leave.module.out_channels  # type: ignore[union-attr]
        self.beside = enter.module.in_channels - self.channels  # type: ignore[union-attr]
        options, name = self.options, self.name
        unprompted = 1.0 - options.style_fidelity
        if options.reference_attn:
            found = places.attentions(sites, options.attention_weight)
            for i, (key, value, attend) in enumerate(found):
                inputs = (f"{name}_seen_{i}", "prompted")
                self.seen[inputs[0]] = (key.address, value.address, places.width(key))
                step = _told(inputs, ReferenceAttention(unprompted))
                yield Edit.add(attend.address, step, name, inputs=inputs)
        if options.reference_adain:
            for i, layer in enumerate(places.layers(sites, options.gn_weight)):
                inputs = (f"{name}_style_{i}", "prompted")
                self.styles[inputs[0]] = (layer.address, places.channels(sites, layer))
                step = _told(inputs, ReferenceStatistics(unprompted))
                yield Edit.after(layer.address, step, name, inputs=inputs)

    # What a user gives for it

    def inputs(self) -> Sequence[AddedInput]:
        if self.options.encoded:
            shape = f"[batch, {self.channels}, height / 8, width / 8], as the model's latents"
            return (AddedInput(self.given, shape),)
        return (AddedInput(self.given, "[batch, 3, height, width] in 0..1"),)

    def read_input(self, added: AddedInput, value: Any, request: Request) -> Mapping[str, Any]:
        if self.options.encoded:
            return {added.name: self._latents(value, request)}
        once = replace(request, guided=False)
        return {added.name: rows_of_pictures(value, once, name=added.name)}

    def _latents(self, value: Any, request: Request) -> Tensor:
        right = isinstance(value, Tensor) and value.dim() == 4 and value.shape[1] == self.channels
        if not right or len(value) not in (1, request.batch):
            shape = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise InarchError(
                "IA505",
                f"`{self.given}` are no latents that can be used",
                where=self.given,
                why=f"they are {shape}, and [1 or {request.batch}, {self.channels}, height, width] "
                "is needed",
                remedy="pass what output='latents' gave, or leave out `encoded` and pass a picture",
            )
        return value.to(request.device, request.dtype).expand(request.batch, -1, -1, -1)

    def acts(self, start: float, end: float) -> bool:
        return self.options.holds(start, end)

    # What it sees before each step

    def prepare(self, ahead: Ahead) -> Mapping[str, Any]:
        """What the model makes of the reference at the moment, for both halves of guidance."""
        encoded = self.options.encoded
        clean: Tensor = ahead.inputs[self.given] if encoded else ahead.encoded(self.given)
        noisy = ahead.scheduler.add_noise(clean, ahead.noise(), ahead.timestep.reshape(1))
        sites = [address for key, value, _ in self.seen.values() for address in (key, value)]
        sites += [address for address, _ in self.styles.values()]
        found = ahead.look(noisy, sites, self._shown(clean))
        values = {n: torch.stack([found[k], found[v]], 1) for n, (k, v, _) in self.seen.items()}
        return values | {n: style_of(found[address]) for n, (address, _) in self.styles.items()}

    def _shown(self, clean: Tensor) -> Tensor | None:
        """What a model for inpainting sees beside the latents: all of the reference, unmasked."""
        masks = self.beside - self.channels
        if masks < 1:
            return None
        return torch.cat([torch.zeros_like(clean[:, :masks]), clean], dim=1)

    def example_inputs(self, example: Example) -> Mapping[str, Any]:
        """A reference of six tokens, at every attention and layer."""
        if example.tree != self.tree:
            return {}
        values = (v for v in example.inputs.values() if isinstance(v, Tensor))
        latents = next(value for value in values if value.dim() == 4)
        batch, like = len(latents), {"device": latents.device, "dtype": latents.dtype}

        def waves(*shape: int) -> Tensor:
            count = torch.Size(shape).numel()
            return torch.arange(count, device="cpu").mul(0.37).sin().reshape(shape).to(**like)

        found: dict[str, Any] = {"prompted": (batch, batch)}
        found |= {n: waves(batch, 2, 6, width) for n, (_, _, width) in self.seen.items()}
        for name, (_, channels) in self.styles.items():
            found[name] = waves(batch, 2, channels, 1, 1).abs()
        return found


def _told(inputs: Sequence[str], edge: Edge) -> Step:
    """An edge that is given named values beside what flows."""
    return Seq(Parallel(Identity(), *map(Use, inputs)), edge)
