"""`inarch train`, and how the command line comes by it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from inarch.cli.output import Output, json_option
from inarch.errors import InarchError
from inarch.plugins.hooks import hook

if TYPE_CHECKING:
    from inarch.nn import LanguageModel
    from inarch.stack import AdapterSpec


@click.command()
@click.argument("model")
@click.option("--adapter", default="lora", show_default=True, help="The plugin to train with.")
@click.option("--name", help="The adapter's name; by default the plugin's id.")
@click.option("--weights", help="Go on from these weights of it; by default it starts fresh.")
@click.option(
    "--with", "extra", metavar="ADAPTER[=SCALE]", multiple=True, help="Act too, and stay as is."
)
@click.option("--data", required=True, type=click.Path(path_type=Path), help="JSON lines.")
@click.option(
    "--out",
    required=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="A folder.",
)
@click.option("--option", "options", multiple=True, metavar="KEY=VALUE", help="Of the plugin.")
@click.option("--rank", type=click.IntRange(1), help="The same as --option rank=N.")
@click.option("--steps", default=200, show_default=True, type=click.IntRange(1))
@click.option("--batch-size", default=4, show_default=True, type=click.IntRange(1))
@click.option("--accumulate", default=1, show_default=True, type=click.IntRange(1))
@click.option("--learning-rate", default=1e-3, show_default=True, type=float)
@click.option(
    "--schedule",
    default="cosine",
    show_default=True,
    type=click.Choice(["cosine", "linear", "constant"]),
)
@click.option("--max-length", default=512, show_default=True, type=click.IntRange(2))
@click.option("--save-every", default=50, show_default=True, type=click.IntRange(1))
@click.option("--seed", default=0, show_default=True, type=int)
@click.option("--device", default="cpu", show_default=True)
@click.option("--dtype", help="Of the base; the file's own by default.")
@click.option(
    "--parallel",
    type=click.Choice(["replicate", "fsdp", "tensor"]),
    help="How processes that torchrun started share the model; each has all of it by default.",
)
@click.option("--resume", is_flag=True, help="Go on where the run in --out stopped.")
@json_option
def train(
    model: str,
    adapter: str,
    name: str | None,
    weights: str | None,
    extra: tuple[str, ...],
    data: Path,
    out: Path,
    options: tuple[str, ...],
    rank: int | None,
    device: str,
    dtype: str | None,
    parallel: Literal["replicate", "fsdp", "tensor"] | None,
    as_json: bool,
    **settings: Any,
) -> int:
    """Train an adapter for MODEL on a file of examples, and save it in --out.

    \b
    inarch train smollm2 --data pirate.jsonl --out pirate --rank 8 --steps 200
    inarch train smollm2 --with pirate --data both.jsonl --out json --name json

    A line of the file is {"messages": [...]}, {"prompt": ..., "completion": ...} or {"text": ...}.
    Ctrl-C saves; the same command with --resume goes on. Several processes share the work:

    
    torchrun --nproc-per-node 2 -m inarch train smollm2 --data my.jsonl --out mine
    """
    import inarch
    from inarch.distribute.processes import joined
    from inarch_training import train as run

    given = dict(_option(text) for text in options)
    if rank is not None:
        given["rank"] = rank
    spec = inarch.adapter(adapter, weights=weights, name=name, **given)
    output = Output(as_json, "train")
    with joined(device, wanted=f"--parallel {parallel}" if parallel else "") as processes:
        silent = processes is not None and not processes.speaks
        place = processes.device if processes else device
        adapted = _opened(model, extra, spec, place, dtype, settings["seed"])
        *_, member = adapted.adapters
        count = sum(p.numel() for p in member.parameters().values())
        if not as_json and not silent:
            sites = len(member.modules)
            output.note(f"training {member.name}: {count:,} parameters at {sites} sites")
        if processes:
            adapted = inarch.shard(adapted, parallel or "replicate")
        with _progress(settings["steps"], silent=as_json or silent) as on_step:
            result = run(adapted, data, adapter=member.name, out=out, on_step=on_step, **settings)
    if silent:
        return 130 if result.interrupted else 0
    if as_json:
        output.envelope(
            {
                "folder": str(result.folder),
                "steps": result.steps,
                "parameters": count,
                "first_loss": result.losses[0],
                "last_loss": result.losses[-1],
                "interrupted": result.interrupted,
            }
        )
    else:
        _report(output, result)
    return 130 if result.interrupted else 0


def _opened(
    model: str,
    extra: tuple[str, ...],
    spec: AdapterSpec,
    device: str,
    dtype: str | None,
    seed: int,
) -> LanguageModel:
    """The model of a command, with what acts beside and with the adapter that is to be trained."""
    import torch

    from inarch.cli.target import opened
    from inarch.nn import LanguageModel

    base, beside = opened(model, extra, device=device, dtype=dtype)
    if not isinstance(base, LanguageModel) or not isinstance(beside, LanguageModel):
        raise InarchError(
            "IA704",
            f"`{model}` is no language model, so there is no text to train on",
            where=model,
            remedy="inarch models",
        )
    torch.manual_seed(seed)
    return beside.adapt(spec)


def _report(output: Output, result: Any) -> None:
    first, last = result.losses[0], result.losses[-1]
    output.note(f"{result.steps} steps, loss {first:.3f} to {last:.3f}: {result.folder}")
    if result.interrupted:
        output.note("interrupted and saved; go on with the same command and --resume")


def _option(text: str) -> tuple[str, Any]:
    """`key=value`, the value read as TOML where it is some, else as text."""
    import tomllib

    key, equals, value = text.partition("=")
    if not equals:
        raise click.UsageError(f"--option takes KEY=VALUE, not {text!r}.")
    try:
        return key, tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return key, value


class _progress:  # noqa: N801 - used as a context manager, like a function
    """A bar with the loss on a terminal; a line every tenth of the way elsewhere."""

    def __init__(self, steps: int, *, silent: bool) -> None:
        self.steps, self.silent = steps, silent
        self.bar: Any = None

    def __enter__(self) -> Callable[[int, float], None]:
        if not self.silent and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
            from rich.progress import TimeRemainingColumn as Remaining

            columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[facts]}"))
            self.bar = Progress(*columns, Remaining(), console=Console(stderr=True))
            self.bar.start()
            self.task = self.bar.add_task("", total=self.steps, facts="")
        return self.step

    def step(self, number: int, loss: float) -> None:
        if self.bar is not None:
            speed = self.bar.tasks[0].speed
            facts = f"loss {loss:.3f}" + (f", {speed:.2f} steps/s" if speed else "")
            self.bar.update(self.task, completed=number, facts=facts)
        elif not self.silent and number % max(1, self.steps // 10) == 0:
            click.echo(f"step {number} of {self.steps}: loss {loss:.3f}", err=True)

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.stop()


class _Commands:
    """This package's answer to the hooks of inarch."""

    @hook
    def inarch_commands(self) -> list[click.Command]:
        return [train]


commands = _Commands()
