"""The loop from noise to latents."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

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
        with tqdm(total=count, unit="it", disable=hidden, leave=False) as bar:
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
        """What the model takes to be noise, guided."""
        tree, constants = self._tree(index)
        rows = torch.cat([latents, latents]) if self.guided else latents
        rows = self.scheduler.scale_model_input(rows, timestep)
        if self.beside is not None:
            rows = torch.cat([rows, self.beside], dim=1)
        moving = self._moving(timestep, index)
        given = {n: v for n, v in moving.items() if n in tree.form.needs}
        noise = tree(rows, **constants, **given)
        if not self.guided:
            return noise
        without, wanted = noise.chunk(2)
        guided = without + self.guidance * (wanted - without)
        return _rescaled(guided, wanted, self.rescale) if self.rescale else guided

    def _moving(self, timestep: Tensor, index: int) -> dict[str, Any]:
        """What changes from step to step, for steps that ask for it."""
        device, count = self.latents.device, len(self.timesteps)
        return {
            "timestep": timestep,
            "step": torch.tensor(index, device=device),
            "progress": torch.tensor(index / count, device=device),
        }

    def _tree(self, index: int) -> tuple[Chain, dict[str, Any]]:
        """The UNet for a step: without the adapters that rest in it, and what it is given."""
        count = len(self.timesteps)
        resting = self.model.resting(index / count, (index + 1) / count)
        if resting not in self._trees:
            model = self.model.without(*resting) if resting else self.model
            tree, constants = hoist(model.trees["unet"], self.constants)
            self._check(tree, constants)
            self._trees[resting] = (tree, constants)
        return self._trees[resting]

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


def _rescaled(guided: Tensor, wanted: Tensor, share: float) -> Tensor:
    """Source: Lin et al. 2023, arXiv:2305.08891, section 3.4."""
    dims = tuple(range(1, wanted.dim()))
    spread = wanted.std(dim=dims, keepdim=True) / guided.std(dim=dims, keepdim=True)
    return share * (guided * spread) + (1 - share) * guided
