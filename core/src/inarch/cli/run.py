"""`inarch run`"""

from __future__ import annotations

import random
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from inarch.cli.loading import loading_options
from inarch.cli.output import Output, json_option
from inarch.errors import InarchError

if TYPE_CHECKING:
    from inarch.plugins.manifest import ModelEntry


class ByModel(click.Command):
    """A command whose options are those of the model's task, which its package brings."""

    def make_context(
        self,
        info_name: str | None,
        args: list[str],
        parent: click.Context | None = None,
        **extra: Any,
    ) -> click.Context:
        command = _of_package(args)
        if command is None:
            return super().make_context(info_name, args, parent, **extra)
        return command.make_context(info_name, args, parent, **extra)


def _of_package(args: list[str]) -> click.Command | None:
    """The command that the package of the named model brings, if it brings one."""
    from inarch.plugins.hooks import hooked, manager

    if not hooked():
        return None
    entry = next((found for arg in args if (found := _family(arg)) is not None), None)
    if entry is None or not hooked([entry.distribution]):
        return None
    return manager([entry.distribution]).hook.inarch_run(family=entry.id)


def _family(name: str) -> ModelEntry | None:
    """The family of a checkpoint or a stack file; None for what is neither, or can't be read."""
    from inarch.cli.target import wanted
    from inarch.plugins import index

    listed = index()
    known = name in listed.checkpoints or name in listed.models
    if name.startswith("-") or not (known or Path(name).exists()):
        return None
    try:
        source, _ = wanted(name)
        if source in listed.checkpoints:
            return listed.models.get(listed.checkpoints[source].model)
        from inarch.weights import open_checkpoint

        return listed.model_for(open_checkpoint(Path(source)).config, source)
    except InarchError:
        return None


@click.command(cls=ByModel)
@click.argument("model")
@click.option("--prompt", help="Text to continue, as it is.")
@click.option("--message", help="What to say to the model, through its chat template.")
@click.option("--with", "extra", metavar="ADAPTER[=SCALE]", multiple=True, help="Adapt with this.")
@click.option("--max-new-tokens", default=128, show_default=True, type=click.IntRange(1))
@click.option("--greedy", is_flag=True, help="Take the likeliest token each time.")
@click.option("--temperature", default=0.7, show_default=True, type=click.FloatRange(0.0))
@click.option("--top-k", type=click.IntRange(1))
@click.option("--top-p", type=click.FloatRange(0.0, 1.0))
@click.option("--min-p", type=click.FloatRange(0.0, 1.0))
@click.option("--repetition-penalty", type=click.FloatRange(0.0, min_open=True))
@click.option("--seed", type=int, help="Draw the same tokens again.")
@click.option("--compile", is_flag=True, help="Compile the step of a token, for long texts.")
@loading_options
@json_option
def run(
    model: str,
    prompt: str | None,
    message: str | None,
    extra: tuple[str, ...],
    greedy: bool,
    temperature: float,
    device: str,
    dtype: str | None,
    packed: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Generate text with a MODEL (a checkpoint's id or path), a stack file, or a plan.

    A plan, as `inarch plan -o plan.json` writes it, is applied whole, or refused where it is stale.

    A model of another task has options of its own: inarch run MODEL --help

    \b
    inarch run smollm2 --message "Describe the sea." --greedy
    inarch run smollm2 --with pirate --with terse_json=0.8 --message "The sea?"
    """
    if (prompt is None) == (message is None):
        raise click.UsageError("Give either --prompt or --message.")
    given = prompt if prompt is not None else [{"role": "user", "content": message}]
    settings = {key: value for key, value in options.items() if value is not None}
    settings["temperature"] = 0.0 if greedy else temperature
    from inarch.distribute.processes import joined

    started = time.perf_counter()
    with joined(device) as processes:
        place = processes.device if processes else device
        adapted = _opened(model, extra, device=place, dtype=dtype, packed=packed)
        if processes:
            from inarch.distribute import shard

            adapted = shard(adapted, "tensor")
            drawn = random.getrandbits(63) if options["seed"] is None else options["seed"]
            settings["seed"] = processes.as_first(drawn)
        loaded = time.perf_counter()
        silent = processes is not None and not processes.speaks
        pieces: list[str] = []
        for piece in adapted.generate(given, stream=True, **settings):
            pieces.append(piece)
            if not as_json and not silent:
                click.echo(piece, nl=False)
        if silent:
            return
    if not as_json:
        click.echo()
        return
    data = {
        "text": "".join(pieces),
        "adapters": {m.name: m.scale for m in adapted.adapters},
        "seconds": {"load": loaded - started, "generate": time.perf_counter() - loaded},
    }
    Output(True, "run").envelope(data)


def _opened(model: str, extra: tuple[str, ...], **how: Any) -> Any:
    """The adapted model of a command, which must be one that generates text."""
    from inarch.cli.target import opened

    adapted = opened(model, extra, **how)[1]
    if not hasattr(adapted, "generate"):
        raise InarchError(
            "IA704",
            f"`{model}` does not generate text",
            remedy=f"inarch show {adapted.family}",
        )
    return adapted
