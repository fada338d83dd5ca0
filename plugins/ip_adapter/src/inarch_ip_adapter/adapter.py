"""IP-Adapter as an adapter: tokens of pictures, attended to at every cross attention."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from inarch.adapters import Adapter, AddedInput, Example, Request, SiteView, Span, TargetSite
from inarch.errors import InarchError
from inarch.nn.picture import pictures
from inarch.tree import Edit, Identity, Parallel, Seq, Use
from inarch.tree.address import compiled
from inarch.weights import WeightsHeader, write_adapter
from inarch_ip_adapter.attention import LowRank, MaskedPictureAttention, PictureAttention
from inarch_ip_adapter.picture import Encoder
from inarch_ip_adapter.projection import PREFIX, Projection, projection, projection_of

LAYERS = "ip_adapter."
_LORA = re.compile(r"ip_adapter\.(\d+)\.(to_q|to_k|to_v|to_out)_lora\.(down|up)\.weight")
_SITES = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out": "output"}


class Options(Span, forbid_unknown_fields=True, frozen=True):
    """What `inarch.adapter("ip-adapter", ...)` takes beside weights, a name and a scale.

    Attributes:
        image_encoder: the folder of the vision tower it was trained with; without one it is
            given `NAME_embedding` instead of `NAME_image`.
        blocks: factors of the scale by address pattern of the blocks or attentions they are for
            (`unet.down_blocks.2`); all that match none do nothing. None is 1 everywhere.
        masked: whether each picture acts in an area of its own, given as `NAME_mask`.
        shortcut: of FaceID Plus, its second version.
        embedding: the width of a picture's embedding, for one that is to be trained.
        tokens: of each picture, likewise.
    """

    image_encoder: str | None = None
    blocks: dict[str, float] | None = None
    masked: bool = False
    shortcut: bool = False
    embedding: int = 1024
    tokens: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.embedding < 1 or self.tokens < 1:
            raise ValueError("embedding and tokens are at least 1")


class IPAdapter(Adapter):
    """Pictures as prompts. Several of them add up, since each asks with the original queries."""

    Options = Options
    options: Options
    for_training = ("embedding", "tokens")
    paths = ("image_encoder",)

    def __init__(self, name: str, options: Options) -> None:
        super().__init__(name, options)
        self.projection = Projection("plain", options.embedding, 1, options.tokens)
        self.encoder = Encoder(options.image_encoder)
        self.tree = ""
        self.keys: dict[str, str] = {}
        self.left_out = False

    def edits(self, sites: SiteView, weights: WeightsHeader | None) -> Iterable[Edit]:
        layers = _in_file_order(sites, "cross_attention.attend")
        self.tree = layers[0].tree
        context = _beside(sites, layers[0], "cross_attention.key").weight.shape[1]
        if weights is None:
            options = self.options
            self.projection = Projection("plain", options.embedding, context, options.tokens)
        else:
            self.projection = projection_of(weights)
            _check_count(weights, len(layers))
        yield self._tokens(weights is not None)
        for i, site in enumerate(layers):
            yield from self._layer(sites, site, 2 * i + 1, weights)
        if weights is not None:
            yield from self._loras(sites, weights)

    def _tokens(self, filled: bool) -> Edit:
        c, name = self.projection, self.name
        tree = projection(c, name, shortcut=self.options.shortcut)
        fills = {n: f"{PREFIX}{n}" for n, _ in tree.named_parameters()} if filled else {}
        self.keys = {
            f"{self._at('tokens')}.{n}": f"{PREFIX}{n}" for n, _ in tree.named_parameters()
        }
        beside = (f"{name}_patches",) if c.kind == "faceid_plus" else ()
        return Edit(
            address=self.tree,
            kind="provide",
            adapter=name,
            names=(f"{name}_tokens",),
            step=Seq(Use(f"{name}_embedding"), tree),
            inputs=(f"{name}_embedding", *beside),
            fills=fills if filled else {},
            label="tokens",
        )

    def _at(self, local: str) -> str:
        return f"{self.tree}.{local}" if self.tree else local

    def _layer(
        self, sites: SiteView, site: TargetSite, number: int, weights: WeightsHeader | None
    ) -> Iterator[Edit]:
        parts = ("to_k_ip.weight", "to_v_ip.weight")
        fills = {part: f"{LAYERS}{number}.{part}" for part in parts}
        factor = self._factor(site.address)
        if factor == 0.0:
            self.left_out = True
            if weights is not None:
                weights.used |= set(fills.values())
            return
        key = _beside(sites, site, "cross_attention.key")
        kind = MaskedPictureAttention if self.options.masked else PictureAttention
        edge = kind(self.projection.context, len(key.weight), factor)
        given = [Use(f"{self.name}_tokens")]
        given += [Use(f"{self.name}_mask")] if self.options.masked else []
        key_at = _beside_address(sites, site, "cross_attention.key")
        self.keys |= {f"{site.address}.{n}": k for n, k in fills.items()}
        yield Edit.add(
            site.address,
            Seq(Parallel(Identity(), *given), edge),
            self.name,
            inputs=(f"{self.name}_mask",) if self.options.masked else (),
            fills=fills if weights is not None else {},
            copies={} if weights is not None else {"to_k_ip.weight": f"{key_at}.weight"},
            reads=() if weights is not None else (key_at,),
        )

    def _factor(self, address: str) -> float:
        """Of the scale at an address: the last pattern's that is for it or a block around it."""
        if self.options.blocks is None:
            return 1.0
        levels = address.split(".")
        around = [".".join(levels[: i + 1]) for i in range(len(levels))]
        found = 0.0
        for pattern, factor in self.options.blocks.items():
            match = compiled(pattern).fullmatch
            if any(match(level) for level in around):
                found = factor
        return found

    def _loras(self, sites: SiteView, weights: WeightsHeader) -> Iterator[Edit]:
        """The LoRA that FaceID's files hold, for attentions to the text and to the image itself."""
        found: dict[tuple[int, str], dict[str, str]] = {}
        for key in sorted(weights.keys()):
            match = _LORA.fullmatch(key)
            if match:
                part = found.setdefault((int(match[1]), match[2]), {})
                part[f"{match[3]}.weight"] = key
        layers = _in_file_order(sites, "attention.attend") if found else []
        for (number, part), fills in found.items():
            if number >= len(layers) or len(fills) < 2:
                raise _other_family(weights, f"it has {', '.join(fills.values())}")
            at = _beside_address(sites, layers[number], f"attention.{_SITES[part]}")
            rank, inputs = weights.shape(fills["down.weight"])
            edge = LowRank(inputs, weights.shape(fills["up.weight"])[0], rank)
            self.keys |= {f"{at}.{n}": k for n, k in fills.items()}
            yield Edit.add(at, edge, self.name, fills=fills)

    # What a user gives for it

    def inputs(self) -> Sequence[AddedInput]:
        c, name = self.projection, self.name
        patches = "patches, " if c.of_patches else ""
        shape = f"[batch, pictures, {patches}{c.embedding}]"
        found = [AddedInput(f"{name}_embedding", shape)]
        if c.patches:  # of the face beside its embedding
            found.append(AddedInput(f"{name}_patches", f"[batch, pictures, patches, {c.patches}]"))
        if self.options.image_encoder is not None:
            found[-1] = AddedInput(f"{name}_image", "[pictures, 3, height, width] in 0..1")
        if self.options.masked:
            found.append(AddedInput(f"{name}_mask", "[pictures, 1, height, width] in 0..1"))
        return found

    def read_input(self, added: AddedInput, value: Any, request: Request) -> Mapping[str, Any]:
        where = (request.device, request.dtype)
        if added.name == f"{self.name}_mask":
            size = (request.height, request.width)
            areas = pictures(value, *size, channels=1, name=added.name)
            return {added.name: (areas >= 0.5).to(*where).transpose(0, 1)}
        if added.name == f"{self.name}_image":
            wanted, unwanted = self.encoder.embeddings(value, self.projection, request.device)
            rows = torch.cat([unwanted, wanted]) if request.guided else wanted
            several = request.guided or self.projection.patches
            repeated = rows.repeat_interleave(request.batch, dim=0) if several else rows
            part = "patches" if self.projection.patches else "embedding"
            return {f"{self.name}_{part}": repeated.to(*where)}
        return {added.name: self._given(added, value, request).to(*where)}

    def _given(self, added: AddedInput, value: Any, request: Request) -> Tensor:
        """An embedding for each row: as it is, or with zeros for the rows of no prompt."""
        c = self.projection
        width = c.patches if added.name == f"{self.name}_patches" else c.embedding
        dims = 4 if c.of_patches or width != c.embedding else 3
        if not isinstance(value, Tensor) or value.dim() != dims or value.shape[-1] != width:
            shape = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise InarchError(
                "IA505",
                f"`{added.name}` is no embedding of pictures",
                where=added.name,
                why=f"it is {shape}, and {added.shape} is needed",
                remedy="pass what the encoder of this IP-Adapter gives",
            )
        if request.guided and len(value) == 2 * request.batch:
            return value
        if len(value) not in (1, request.batch):
            raise InarchError(
                "IA505",
                f"`{added.name}` holds {len(value)} rows for {request.batch} results",
                where=added.name,
                remedy="pass one row, one for each result, or as many again for no prompt before",
            )
        if not request.guided and not c.patches:
            return value
        rows = value.expand(request.batch, *value.shape[1:])
        if not request.guided:
            return rows
        return torch.cat([torch.zeros_like(rows), rows])

    def acts(self, start: float, end: float) -> bool:
        return self.options.holds(start, end)

    def example_inputs(self, example: Example) -> Mapping[str, Any]:
        if example.tree != self.tree:
            return {}
        values = [v for v in example.inputs.values() if isinstance(v, Tensor)]
        like = next(v for v in values if v.dim() == 4)
        c = self.projection

        def waves(*shape: int) -> Tensor:
            count = torch.arange(torch.Size(shape).numel(), device="cpu").mul(0.3).sin()
            return count.reshape(shape).to(like.device, like.dtype)

        middle = (3,) if c.of_patches else ()
        found = {f"{self.name}_embedding": waves(len(like), 2, *middle, c.embedding)}
        if c.kind == "faceid_plus":
            found[f"{self.name}_patches"] = waves(len(like), 2, 3, c.patches)
        if self.options.masked:
            found[f"{self.name}_mask"] = waves(1, 2, *like.shape[2:]).abs()
        return found

    def write(self, folder: Path, edges: Mapping[str, nn.Module], about: Mapping[str, str]) -> None:
        """Save one safetensors file with `image_proj.` and `ip_adapter.` keys.

        Raises:
            InarchError: IA463 where `blocks` left some attentions out.
        """
        if self.left_out:
            raise InarchError(
                "IA463",
                f"the IP-Adapter `{self.name}` can't be saved: `blocks` left attentions out",
                where=str(folder),
                remedy="adapt without `blocks` and save that",
            )
        tensors = {
            self.keys[f"{address}.{name}"]: parameter
            for address, edge in edges.items()
            for name, parameter in edge.named_parameters()
        }
        write_adapter(folder / "ip_adapter.safetensors", tensors, about)


def _in_file_order(sites: SiteView, role: str) -> list[TargetSite]:
    """The attentions as files count them: down, up, and the middle last."""
    found = sites.find([role])
    middle = sites.find(["block.mid"])[0].address if "block.mid" in sites.roles else ""
    last = [site for site in found if middle and site.address.startswith(f"{middle}.")]
    return [site for site in found if site not in last] + last


def _beside_address(sites: SiteView, site: TargetSite, role: str) -> str:
    """The address of a role within the attention that a site is in."""
    attention = site.address.rpartition(".")[0]
    return next(s.address for s in sites.find([role]) if s.address.startswith(f"{attention}."))


def _beside(sites: SiteView, site: TargetSite, role: str) -> Any:
    return sites.all[_beside_address(sites, site, role)].module


def _check_count(weights: WeightsHeader, count: int) -> None:
    keys = weights.keys()
    numbers = {int(k.split(".")[1]) for k in keys if k.endswith(".to_k_ip.weight")}
    if numbers != set(range(1, 2 * count, 2)):
        raise _other_family(weights, f"it has weights for {len(numbers)} of {count} attentions")


def _other_family(weights: WeightsHeader, why: str) -> InarchError:
    return InarchError(
        "IA462",
        "the IP-Adapter is for a model with other attentions",
        where=str(weights.path),
        why=why,
        remedy="pass the file for this family of models",
    )
