"""The part of a model that a ControlNet copies, and the copy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from torch import nn

from inarch.adapters import SiteView
from inarch.errors import InarchError
from inarch.tree import Chain, Edit, Identity, Parallel, Seq, Use
from inarch.tree.address import compiled
from inarch.tree.excerpt import excerpt
from inarch.tree.steps import Ref, Step, walk
from inarch_controlnet.edges import ZeroConv, among_zeros, first_channels, last_rows


@dataclass(frozen=True, slots=True)
class Skip:
    """A value that the encoder leaves: the address of its site, its name, and its channels."""

    address: str
    name: str
    width: int


@dataclass(frozen=True, slots=True)
class Encoder:
    """The encoder of a pristine model.

    Attributes:
        tree: the name of its tree.
        chain: that tree.
        entry: the first convolution, from the tree.
        middle: the last block, likewise.
        width: channels of the first convolution.
        skips: what it leaves, in its order.
        bottom: channels of the last block.
    """

    tree: str
    chain: Chain
    entry: str
    middle: str
    width: int
    skips: tuple[Skip, ...]
    bottom: int

    @classmethod
    def of(cls, sites: SiteView) -> Encoder:
        """The encoder that a model's roles name.

        Raises:
            InarchError: IA451 where they name none.
        """
        roles = ("conv.in", "block.mid", "skip")
        absent = [role for role in roles if role not in sites.roles]
        if absent:
            raise _no_encoder(f"it has no role `{absent[0]}`")
        entry, middle = sites.find(["conv.in"])[0], sites.find(["block.mid"])[0]
        named = {site.address for site in sites.find(["skip"])}
        prefix = f"{entry.tree}." if entry.tree else ""
        skips: list[Skip] = []
        width = 0
        for site in sites.all.values():
            if isinstance(site.module, nn.Conv2d):
                width = site.module.out_channels
            if site.address in named:
                skips.append(Skip(site.address, site.address.rpartition(".")[2], width))
        if not isinstance(entry.module, nn.Conv2d) or not skips:
            raise _no_encoder("its first layer is no convolution, or it leaves no skip")
        return cls(
            entry.tree,
            sites.trees[entry.tree],
            entry.address.removeprefix(prefix),
            middle.address.removeprefix(prefix),
            entry.module.out_channels,
            tuple(skips),
            skips[-1].width,
        )

    def address(self, local: str) -> str:
        return f"{self.tree}.{local}" if self.tree else local

    @property
    def parts(self) -> tuple[str, ...]:
        """What is copied: the modules at the tree's first level, up to the middle."""
        refs = [step.name for step in walk(self.chain.program) if isinstance(step, Ref)]
        return tuple(refs[: refs.index(self.middle) + 1])

    def roles(self, sites: SiteView) -> dict[str, str]:
        """The model's roles for this tree, with addresses from it, as the copy has them too."""
        prefix = f"{self.tree}." if self.tree else ""
        return {
            role: pattern.removeprefix(prefix)
            for role, pattern in sites.roles.items()
            if pattern.startswith(prefix)
        }

    def copied(
        self,
        name: str,
        *,
        channels: int | None,
        factors: Sequence[float],
        pooled: bool,
        prompted: bool,
        sites: SiteView,
    ) -> Chain:
        """The encoder's structure, which takes `NAME_hint` in and leaves a value for each skip.

        Args:
            name: the adapter's.
            channels: of the latents it reads, where these are fewer than the model's.
            factors: of the scale, for each skip and for the middle.
            pooled: whether only means over pixels come out.
            prompted: whether it runs on the rows for a prompt alone, and gives zeros for others.
            sites: of the model.
        """
        ends = [*self.skips, Skip("", "", self.bottom)]
        steps: list[Step] = []
        for i, (end, factor) in enumerate(zip(ends, factors, strict=True)):
            label = f"controlnet_down_blocks.{i}" if end.name else "controlnet_mid_block"
            zero = (label, ZeroConv(end.width, factor, pooled=pooled))
            step: Step = Seq(Use(end.name), zero) if end.name else Seq(zero)
            steps.append((f"{name}_{i}", Seq(step, _told(among_zeros)) if prompted else step))
        tower = excerpt(self.chain, self.middle, Parallel(*steps))
        hint, entering = list[Step]([Use(f"{name}_hint")]), list[Step]()
        edits: list[Edit] = []
        if prompted:
            hint.append(_told(last_rows))
            entering.append(_told(last_rows))
            edits += self._narrowed(tower, sites, name)
        entry = tower.module_at(self.entry)
        if channels is not None and isinstance(entry, nn.Conv2d) and channels < entry.in_channels:
            entry.in_channels = channels
            entry.weight = nn.Parameter(entry.weight[:, :channels], requires_grad=False)
            entering.append(partial(first_channels, count=channels))
        edits.append(Edit.add(self.entry, Seq(*hint), name))
        if entering:
            edits.append(Edit.before(self.entry, Seq(*entering), name))
        return tower.edit(edits)

    def _narrowed(self, tower: Chain, sites: SiteView, name: str) -> list[Edit]:
        """What lets the copy see the rows for a prompt alone of the time and of the text."""
        roles = self.roles(sites)
        edits = [Edit.after(roles["time"], _told(last_rows), name)]
        for role in ("cross_attention.key", "cross_attention.value"):
            match = compiled(roles[role]).fullmatch  # which may be nowhere in a tree of its own
            found = (address for address in tower.form.index if match(address))
            edits += [Edit.before(address, _told(last_rows), name) for address in found]
        return edits


def _told(function: Callable[..., object]) -> Step:
    """A function of what flows and of which rows are for a prompt."""
    return Seq(Parallel(Identity(), Use("prompted")), function)  # type: ignore[arg-type]


def _no_encoder(why: str) -> InarchError:
    return InarchError(
        "IA451",
        "this model has no encoder that a ControlNet could copy",
        why=why,
        remedy="inarch show controlnet",
    )
