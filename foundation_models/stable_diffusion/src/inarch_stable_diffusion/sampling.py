"""The loop from noise to latents."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from inarch.adapters import Ahead, Member, Moment
from inarch.errors import InarchError
from inarch.nn.capture import capturing
from inarch.tree import Chain
from inarch.tree.hoist import hoist
from inarch_stable_diffusion.noise import normal

if TYPE_CHECKING:
    from inarch_stable_diffusion.model import StableDiffusion


@dataclass(frozen=True, slots=True)
class Step:
    """One step of sampling, after it was made.

    Attributes:
        index: from 0.
        steps: how many there are.
        timestep: where the model was asked.
        latents: [batch, 4, height, width], as they are now.
    """

    index: int
    steps: int
    timestep: Tensor
    latents: Tensor


Callback = Callable[[Step], Any]
_Which = tuple[tuple[str, ...], tuple[str, ...]]  # without some adapters, and seen at some sites


@dataclass(slots=True)
class Run:
    """All that a loop needs.

    Attributes:
        model: whose UNet runs, with its adapters.
        scheduler: of diffusers, with its timesteps set.
        timesteps: those that are run.
        latents: [batch, channels, height, width], as the scheduler takes them at first.
        constants: inputs that are the same in every step; with guidance, of twice the batch: for
            no prompt first.
        guided: whether the UNet runs for no prompt too.
        guidance: how far to go from no prompt to the prompt, and beyond.
        rescale: how far to go back to the spread of the prompt's own prediction (arXiv:2305.08891).
        beside: channels that come in beside the latents, or None.
        after: what is made of the latents after each step, such as keeping what is masked; told
            how many steps were made.
        eta: of DDIM.
        generator: for schedulers that add noise.
        callbacks: told of every step; one that gives False ends the run there.
        encode: pictures that were given for an input, by its name, to latents of every image.
    """

    model: StableDiffusion
    scheduler: Any
    timesteps: Tensor
    latents: Tensor
    constants: Mapping[str, Any]
    guided: bool
    guidance: float
    rescale: float = 0.0
    beside: Tensor | None = None
    after: Callable[[Tensor, int], Tensor] | None = None
    eta: float = 0.0
    generator: Any = None
    callbacks: list[Callback] = field(default_factory=list[Callback])
    progress: bool | None = None
    encode: Callable[[str], Tensor] | None = None
    _trees: dict[_Which, tuple[Chain, dict[str, Any]]] = field(
        default_factory=dict[_Which, tuple[Chain, dict[str, Any]]]
    )
    _encodings: dict[str, Tensor] = field(default_factory=dict[str, Tensor])

    @torch.no_grad()
    def latents_at_end(self) -> Tensor:
        """Run every step; interrupting leaves the model as it was.

        Raises:
            InarchError: IA507 for an input of the UNet that nobody gave.
        """
        from tqdm.auto import tqdm

        latents, count = self.latents, len(self.timesteps)
        extra = self._extra()
        hidden = None if self.progress is None else not self.progress
        with tqdm(total=count, unit="it", disable=hidden) as bar:
            for index, timestep in enumerate(self.timesteps):
                noise = self._predicted(latents, timestep, index)
                latents = self.scheduler.step(noise, timestep, latents, **extra, return_dict=False)[
                    0
                ].to(self.latents.dtype)
                if self.after is not None:
                    latents = self.after(latents, index + 1)
                bar.update()
                step = Step(index, count, timestep, latents)
                told = [callback(step) for callback in self.callbacks]
                if any(answer is False for answer in told):
                    break
        return latents

    def _predicted(self, latents: Tensor, timestep: Tensor, index: int) -> Tensor:
        """What the model takes to be noise, guided by prompts and by adapters."""
        brought = self._brought(timestep, index)
        noise, exported = self._asked(latents, timestep, index, brought)
        result = without = noise
        if self.guided:
            without, wanted = noise.chunk(2)
            result = without + self.guidance * (wanted - without)
            result = _rescaled(result, wanted, self.rescale) if self.rescale else result
        moment = Moment(
            latents,
            timestep,
            without,
            _first_rows(exported, len(noise), len(latents)),
            self.scheduler,
            lambda other: self._asked(other, timestep, index, brought, plain=True)[0],
        )
        for member in self._acting(index):
            term = member.adapter.guide(moment)
            result = result if term is None else result + term
        return result

    def _acting(self, index: int) -> Iterator[Member]:
        """Those that act in a step, in canonical order: what they draw and add knows no other."""
        resting = self._resting(index)
        members = (self.model.adapters[name] for name in self.model.order.names)
        return (m for m in members if not m.merged and m.name not in resting)

    def _brought(self, timestep: Tensor, index: int) -> dict[str, Any]:
        """What adapters bring into a step, having looked at other latents first."""
        like = self.latents
        ahead = Ahead(
            timestep,
            self.constants,
            self.scheduler,
            lambda: normal(like.shape, self.generator, like.device, like.dtype),
            self._encoded,
            partial(self._looked, timestep, index),
        )
        acting = self._acting(index)
        return {n: v for member in acting for n, v in member.adapter.prepare(ahead).items()}

    def _encoded(self, name: str) -> Tensor:
        if name not in self._encodings:
            if self.encode is None:
                raise TypeError("this run was given no way to encode pictures")
            self._encodings[name] = self.encode(name)
        return self._encodings[name]

    def _looked(
        self,
        timestep: Tensor,
        index: int,
        latents: Tensor,
        addresses: Sequence[str],
        beside: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """See `inarch.adapters.guidance.Look`."""
        reading = {m.name for m in self._acting(index) if m.adapter.inputs()}
        left_out = (*self._resting(index), *sorted(reading))
        sites = tuple(address.removeprefix("unet.") for address in addresses)
        tree, constants = self._tree((left_out, sites))
        if beside is not None and self.guided:
            beside = torch.cat([beside, beside])
        _, seen = self._run(tree, constants, latents, timestep, index, beside, twice=self.guided)
        return {f"unet.{site}": seen[f"captured_{i}"] for i, site in enumerate(sites)}

    def _asked(
        self,
        latents: Tensor,
        timestep: Tensor,
        index: int,
        brought: Mapping[str, Any],
        *,
        plain: bool = False,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """What the UNet gives for latents, and what it exports; without the prompt if `plain`."""
        tree, constants = self._tree((self._resting(index), ()), brought)
        beside, twice = self.beside, self.guided and not plain
        constants = {**constants, **brought}
        if self.guided and not twice:
            count = len(latents)
            constants = _first_rows(constants, 2 * count, count)
            beside = None if beside is None else beside[:count]
        return self._run(tree, constants, latents, timestep, index, beside, twice=twice)

    def _run(
        self,
        tree: Chain,
        constants: Mapping[str, Any],
        latents: Tensor,
        timestep: Tensor,
        index: int,
        beside: Tensor | None,
        *,
        twice: bool,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """What a tree gives for latents as the scheduler has them, and what it exports."""
        rows = torch.cat([latents, latents]) if twice else latents
        rows = self.scheduler.scale_model_input(rows, timestep)
        if beside is not None:
            rows = torch.cat([rows, beside], dim=1)
        moving = self._moving(timestep, index, twice=twice, rows=len(rows))
        given = {n: v for n, v in moving.items() if n in tree.form.needs}
        found = tree(rows, **constants, **given)
        if not tree.form.exports:
            return found, {}
        noise, *values = found
        return noise, dict(zip(tree.form.exports, values, strict=True))

    def _moving(
        self, timestep: Tensor, index: int, *, twice: bool = False, rows: int = 1
    ) -> dict[str, Any]:
        """What changes from step to step, for steps that ask for it.

        `halves` is 2 where the first half of the rows is for no prompt, else 1. `prompted` is how
        many of the rows, the last ones, are for a prompt, and how many there are.
        """
        wanted = rows // 2 if twice else 0 if self.guided else rows
        device, count = self.latents.device, len(self.timesteps)
        return {
            "timestep": timestep,
            "halves": 2 if twice else 1,
            "prompted": (wanted, rows),
            "step": torch.tensor(index, device=device),
            "progress": torch.tensor(index / count, device=device),
        }

    def _tree(
        self, which: _Which, brought: Mapping[str, Any] | None = None
    ) -> tuple[Chain, dict[str, Any]]:
        """The UNet without some adapters, seen at some sites, and what it is always given."""
        if which not in self._trees:
            left_out, sites = which
            model = self.model.without(*left_out) if left_out else self.model
            tree, constants = hoist(model.trees["unet"], self.constants)
            self._check(tree, {*constants, *(brought or {})})
            self._trees[which] = (capturing(tree, sites)[0], constants)
        return self._trees[which]

    def _resting(self, index: int) -> tuple[str, ...]:
        count = len(self.timesteps)
        return self.model.resting(index / count, (index + 1) / count)

    def _check(self, tree: Chain, names: set[str]) -> None:
        given = {*names, *self._moving(self.timesteps[0], 0)}
        missing = [name for name in tree.form.needs if name not in given]
        if missing:
            asking = tree.inputs.get(missing[0], ())
            raise InarchError(
                "IA507",
                f"the UNet needs `{missing[0]}`",
                where=", ".join(f"unet.{address}" for address in asking[:3]),
                why="its value is not among the inputs given",
                remedy=f"{missing[0]}=...",
            )

    def _extra(self) -> dict[str, Any]:
        known = inspect.signature(self.scheduler.step).parameters
        given = {"eta": self.eta, "generator": self.generator}
        return {name: value for name, value in given.items() if name in known}


def _first_rows(values: Mapping[str, Any], rows: int, count: int) -> dict[str, Any]:
    """Values by name, of those that have a row for each of the batch the first rows."""
    return {
        name: value[:count]
        if isinstance(value, Tensor) and value.dim() > 0 and len(value) == rows
        else value
        for name, value in values.items()
    }


def _rescaled(guided: Tensor, wanted: Tensor, share: float) -> Tensor:
    """Source: Lin et al. 2023, arXiv:2305.08891, section 3.4."""
    dims = tuple(range(1, wanted.dim()))
    spread = wanted.std(dim=dims, keepdim=True) / guided.std(dim=dims, keepdim=True)
    return share * (guided * spread) + (1 - share) * guided
