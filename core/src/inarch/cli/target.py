"""The model that a command's MODEL or STACK means, loaded and adapted."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from inarch.errors import InarchError
from inarch.plugins import index
from inarch.stack import AdapterSpec, adapter, load_stack, stack_of_picture

if TYPE_CHECKING:
    from inarch.adapters.model import Model


def opened(
    name: str,
    extra: Iterable[str] = (),
    *,
    device: str = "cpu",
    dtype: str | None = None,
    packed: bool = False,
    channels_last: bool = False,
) -> tuple[Model, Model]:
    """The base and the adapted model of a checkpoint, or of a stack file, with `extra` adapters.

    Args:
        name: what `inarch.load` takes, a stack file, a plan that `inarch plan -o` wrote, or a PNG
            that `inarch run` wrote.
        extra: `pirate`, or with a scale `pirate=0.5`.
        device, dtype, packed, channels_last: as `inarch.load` takes them.

    Raises:
        InarchError: IA703 for a stack that names no model or an id that has no weights, IA802 for
            a plan that is stale.
    """
    from inarch.loading import load as loaded

    load = partial(loaded, device=device, dtype=dtype, packed=packed, channels_last=channels_last)
    if name.endswith(".json"):
        from inarch.resolve.plan import Plan, read_plan

        plan: Plan = read_plan(Path(name))
        base = load(plan.model.source)
        adapted = plan.apply(base)
        more = [_spec(text) for text in extra]
        return base, adapted.adapt(*more) if more else adapted
    source, specs = wanted(name, extra)
    base = load(source)
    return base, base.adapt(*specs) if specs else base


def wanted(name: str, extra: Iterable[str] = ()) -> tuple[str, list[AdapterSpec]]:
    """What to load and what to adapt it with, for a checkpoint, a stack file, or a picture.

    Raises:
        InarchError: IA703 for a stack that names no model or an id that has no weights.
    """
    specs: list[AdapterSpec] = []
    source = name
    if name.endswith((".toml", ".png")):
        stack = stack_of_picture(name) if name.endswith(".png") else load_stack(name)
        specs += stack.specs
        if stack.model is None:
            raise InarchError(
                "IA703",
                "the stack names no model",
                where=name,
                remedy='begin the file with: model = "smollm2"',
            )
        source = stack.model
    listed = index()
    if source in listed.models and not Path(source).exists():
        own = [c.id for c in listed.checkpoints.values() if c.model == source]
        raise InarchError(
            "IA703",
            f"`{source}` is a foundation model, and its weights are needed",
            why="a checkpoint is a folder, or one that a package ships"
            + (f": {', '.join(own)}" if own else ""),
            remedy=f"inarch show {own[0] if own else source}",
        )
    return source, [*specs, *(_spec(text) for text in extra)]


def _spec(text: str) -> AdapterSpec:
    name, _, scale = text.partition("=")
    try:
        return adapter(name, scale=float(scale) if scale else 1.0)
    except ValueError:
        raise InarchError(
            "IA703", f"`{scale}` is no scale", where=text, remedy=f"write {name}=0.5"
        ) from None
