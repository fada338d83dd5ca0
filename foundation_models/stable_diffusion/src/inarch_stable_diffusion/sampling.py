"""The loop from noise to latents."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from inarch.adapters import Member, Moment
from inarch.errors import InarchError
from inarch.tree import Chain
from inarch.tree.hoist import hoist

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
    _trees: dict[tuple[str, ...], tuple[Chain, dict[str, Any]]] = field(
        default_factory=dict[tuple[str, ...], tuple[Chain, dict[str, Any]]]
    )

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
        noise, exported = self._asked(latents, timestep, index)
        result = without = noise
        if self.guided:
            without, wanted = noise.chunk(2)
            result = without + self.guidance * (wanted - without)
            result = _rescaled(result, wanted, self.rescale) if self.rescale else result
        moment = Moment(
            latents,
            timestep,
            without,
            {
                name: _first_rows(value, len(noise), len(latents))
                for name, value in exported.items()
            },
            self.scheduler,
            lambda other: self._asked(other, timestep, index, plain=True)[0],
        )
        for member in self._acting(index):
            term = member.adapter.guide(moment)
            result = result if term is None else result + term
        return result

    def _acting(self, index: int) -> Iterator[Member]:
        resting = self._resting(index)
        return (m for m in self.model.adapters if not m.merged and m.name not in resting)

    def _asked(
        self, latents: Tensor, timestep: Tensor, index: int, *, plain: bool = False
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """What the UNet gives for latents, and what it exports; without the prompt if `plain`."""
        tree, constants = self._tree(index)
        twice = self.guided and not plain
        rows = torch.cat([latents, latents]) if twice else latents
        rows = self.scheduler.scale_model_input(rows, timestep)
        beside = self.beside
        if self.guided and not twice:
            count = len(latents)
            constants = {n: _first_rows(v, 2 * count, count) for n, v in constants.items()}
            beside = None if beside is None else beside[:count]
        if beside is not None:
            rows = torch.cat([rows, beside], dim=1)
        moving = self._moving(timestep, index, twice=twice)
        given = {n: v for n, v in moving.items() if n in tree.form.needs}
        found = tree(rows, **constants, **given)
        if not tree.form.exports:
            return found, {}
        noise, *values = found
        return noise, dict(zip(tree.form.exports, values, strict=True))

    def _moving(self, timestep: Tensor, index: int, *, twice: bool = False) -> dict[str, Any]:
        """What changes from step to step, for steps that ask for it.

        `halves` is 2 where the first half of the rows is for no prompt, else 1.
        """
        device, count = self.latents.device, len(self.timesteps)
        return {
            "timestep": timestep,
            "halves": 2 if twice else 1,
            "step": torch.tensor(index, device=device),
            "progress": torch.tensor(index / count, device=device),
        }

    def _tree(self, index: int) -> tuple[Chain, dict[str, Any]]:
        """The UNet for a step: without the adapters that rest in it, and what it is given."""
        resting = self._resting(index)
        if resting not in self._trees:
            model = self.model.without(*resting) if resting else self.model
            tree, constants = hoist(model.trees["unet"], self.constants)
            self._check(tree, constants)
            self._trees[resting] = (tree, constants)
        return self._trees[resting]

    def _resting(self, index: int) -> tuple[str, ...]:
        count = len(self.timesteps)
        return self.model.resting(index / count, (index + 1) / count)

    def _check(self, tree: Chain, constants: Mapping[str, Any]) -> None:
        given = {*constants, *self._moving(self.timesteps[0], 0)}
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


def _first_rows(value: Any, rows: int, count: int) -> Any:
    """The first rows of a value that has a row for each of the batch, or the value itself."""
    per_row = isinstance(value, Tensor) and value.dim() > 0 and len(value) == rows
    return value[:count] if per_row else value


def _rescaled(guided: Tensor, wanted: Tensor, share: float) -> Tensor:
    """Source: Lin et al. 2023, arXiv:2305.08891, section 3.4."""
    dims = tuple(range(1, wanted.dim()))
    spread = wanted.std(dim=dims, keepdim=True) / guided.std(dim=dims, keepdim=True)
    return share * (guided * spread) + (1 - share) * guided
