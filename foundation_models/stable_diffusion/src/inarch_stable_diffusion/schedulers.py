"""Schedulers: diffusers' own, by name or as the checkpoint has them, one fresh for every run."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

import torch

from inarch.errors import InarchError

# What the published checkpoints say, for those that come without a scheduler's configuration.
_USUAL = {
    "_class_name": "DDIMScheduler",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}
# As users know them from other tools, each with the settings that make it.
_ALIASES: dict[str, tuple[str, dict[str, Any]]] = {
    "euler a": ("EulerAncestralDiscreteScheduler", {}),
    "dpm++ 2m": ("DPMSolverMultistepScheduler", {}),
    "dpm++ 2m karras": ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}),
    "dpm++ 2m sde": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    "dpm++ sde": ("DPMSolverSinglestepScheduler", {}),
    "euler karras": ("EulerDiscreteScheduler", {"use_karras_sigmas": True}),
    "unipc": ("UniPCMultistepScheduler", {}),
    "plms": ("PNDMScheduler", {"skip_prk_steps": True}),
}


def scheduler_for(config: dict[str, Any], wanted: Any = None) -> Any:
    """A fresh scheduler.

    Args:
        config: of the checkpoint's `scheduler` folder; may be empty.
        wanted: None for the checkpoint's own; a name (`ddim`, `euler`, `dpm++ 2m karras`, or a
            class of diffusers), which takes the checkpoint's settings; a mapping of `name` and
            settings that go before those; or a scheduler of diffusers, of which a fresh copy is
            made.

    Raises:
        InarchError: IA551 for a name that diffusers does not have.
    """
    import diffusers

    own = {**_USUAL, **config} if config else dict(_USUAL)
    more: dict[str, Any] = {}
    if isinstance(wanted, Mapping):
        more = {key: value for key, value in wanted.items() if key != "name"}
        wanted = wanted.get("name")
    if wanted is not None and not isinstance(wanted, str):
        if not hasattr(wanted, "set_timesteps") or not hasattr(wanted, "config"):
            raise _unknown(repr(wanted), [])
        return type(wanted).from_config(wanted.config)
    name, settings = _ALIASES.get(_plain(wanted), (wanted, {})) if wanted else (None, {})
    kinds = {n: k for n in dir(diffusers) if n.endswith("Scheduler") for k in [n]}
    name = own["_class_name"] if name is None else _found(name, list(kinds))
    if name not in kinds:
        raise _unknown(str(name), list(kinds))
    given = {key: value for key, value in own.items() if not key.startswith("_")}
    made = getattr(diffusers, name).from_config({**given, **settings, **more})
    if not hasattr(made, "init_noise_sigma") or not hasattr(made, "scale_model_input"):
        raise InarchError(
            "IA551",
            f"`{name}` is no scheduler for this model",
            why="it mixes picture and noise in another way than the model was trained with",
            remedy='scheduler="euler"',
        )
    return made


def _plain(name: str) -> str:
    return " ".join(name.lower().replace("_", " ").replace("-", " ").split())


def _found(wanted: str, kinds: list[str]) -> str:
    """A class of diffusers by its name, with or without what all their names have."""
    bare = _plain(wanted).replace(" ", "")
    for kind in sorted(kinds, key=len):
        short = kind.removesuffix("Scheduler").lower()
        if bare in (kind.lower(), short, short.replace("discrete", "").replace("multistep", "")):
            return kind
    raise _unknown(wanted, kinds)


def _unknown(wanted: str, kinds: list[str]) -> InarchError:
    known = [*_ALIASES, *(k.removesuffix("Scheduler") for k in kinds)]
    lower = {name.lower(): name for name in known}
    near = [lower[n] for n in difflib.get_close_matches(wanted.lower(), list(lower), 3, 0.4)]
    return InarchError(
        "IA551",
        f"there is no scheduler `{wanted}`",
        why="it is neither one of diffusers nor a name it is known by",
        remedy=f"did you mean: {', '.join(near)}" if near else 'scheduler="euler"',
    )


def timesteps_for(
    scheduler: Any, steps: int, strength: float, device: torch.device
) -> torch.Tensor:
    """The timesteps of a run, from noise or, where `strength` is below 1, from part of the way.

    Raises:
        InarchError: IA550 where so few of the steps would be left that there are none.
    """
    scheduler.set_timesteps(steps, device=device)
    begin = steps - min(int(steps * strength), steps)
    if begin >= steps:
        raise InarchError(
            "IA550",
            f"a strength of {strength} leaves none of {steps} steps",
            why=f"the last {strength:.0%} of the steps are run",
            remedy=f"steps={int(1 / strength) + 1}, or a greater strength"
            if strength > 0
            else "a greater strength",
        )
    order = getattr(scheduler, "order", 1)
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(begin * order)
    return scheduler.timesteps[begin * order :]
