"""`inarch run` for a model that makes images."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from inarch.cli.loading import loading_options
from inarch.cli.output import Output, json_option
from inarch.errors import InarchError
from inarch_stable_diffusion import record

if TYPE_CHECKING:
    from PIL.Image import Image

    from inarch.distribute.processes import Processes
    from inarch_stable_diffusion.model import StableDiffusion


_Asked = tuple[float, int]  # an adapter's scale and a seed


@click.command("run")
@click.argument("model")
@click.option("--prompt", help="What the image is to show; weights as in (word:1.3).")
@click.option("--negative-prompt", help="What to keep away from.")
@click.option("--image", type=click.Path(), help="An image to be made anew.")
@click.option("--mask", type=click.Path(), help="White where --image is to be made anew.")
@click.option("--strength", type=click.FloatRange(0.0, 1.0), help="How much of --image to change.")
@click.option("--steps", type=click.IntRange(1), help="30, or what an adapter asks for.")
@click.option("--guidance", type=float, help="How closely to follow the prompt.")
@click.option("--guidance-rescale", type=click.FloatRange(0.0, 1.0))
@click.option("--seed", type=int, help="The same noise again; drawn and told by default.")
@click.option("--seeds", help="Several, as 1,2,5 or 1-4: a column of the grid for each.")
@click.option("--scales", metavar="NAME=0,0.5,1", help="Of an adapter: a row of the grid for each.")
@click.option("--height", type=click.IntRange(1))
@click.option("--width", type=click.IntRange(1))
@click.option("--scheduler", help="Of diffusers, such as euler or 'dpm++ 2m karras'.")
@click.option("--eta", type=click.FloatRange(0.0))
@click.option("--clip-skip", type=click.IntRange(0), help="Layers of the text encoder left out.")
@click.option("--with", "extra", metavar="ADAPTER[=SCALE]", multiple=True, help="Adapt with this.")
@click.option(
    "--input", "given", metavar="NAME=VALUE", multiple=True, help="Of an adapter: a file or number."
)
@click.option(
    "--again", type=click.Path(path_type=Path), help="Make the image of this PNG again, with MODEL."
)
@click.option("--out", type=click.Path(path_type=Path), help="The image's file; a PNG says how.")
@loading_options
@click.option("--channels-last", is_flag=True, help="Lay out convolutions for tensor cores.")
@json_option
def run(
    model: str,
    extra: tuple[str, ...],
    given: tuple[str, ...],
    seed: int | None,
    seeds: str | None,
    scales: str | None,
    again: Path | None,
    out: Path | None,
    device: str,
    dtype: str | None,
    packed: bool,
    channels_last: bool,
    as_json: bool,
    **settings: Any,
) -> None:
    """Make an image with a MODEL (a folder or file), a stack file, or a PNG that was made so.

    A PNG holds the stack and the settings that made it, which options change. Under torchrun each
    process makes its part of several images; the layers are split over all for one.

    \b
    inarch run sdxl/ --prompt "a lighthouse in a storm" --out lighthouse.png
    inarch run scene.toml --prompt "a boat" --input canny_image=edges.png --out boat.png
    inarch run scene.toml --prompt "a boat" --seeds 1-4 --scales style=0,0.5,1 --out grid.png
    inarch run boat.png --steps 50 --out finer.png
    """
    from inarch.cli.target import opened, wanted
    from inarch.distribute.processes import joined

    again = Path(model) if again is None and model.endswith(".png") else again
    if again is None and (settings["prompt"] is None or out is None):
        raise click.UsageError("Give --prompt and --out, or --again with an image.")
    recorded = {} if again is None else record.recorded(again)
    told = recorded.get("settings", {})
    chosen = {**told, **{name: value for name, value in settings.items() if value is not None}}
    chosen |= {"inputs": {**told.get("inputs", {}), **dict(map(_pair, given))}}
    columns = _seeds(seed, seeds, told.get("seeds", told.get("seed")))
    out = out or Path(f"{again.stem}-again.png" if again is not None else "image.png")
    started = time.perf_counter()
    how = {"packed": packed, "channels_last": channels_last}
    output = Output(as_json, "run")
    made: list[Any] = []
    with joined(device) as processes:
        own = device if processes is None else processes.device
        _, adapted = opened(model, extra, device=own, dtype=dtype, **how)
        silent = processes is not None and not processes.speaks
        for fact in () if silent else record.changed(recorded, adapted):
            output.note(f"note: {fact}")
        loaded = time.perf_counter()
        name, rows = _scales(scales, told.get("scales") or {}, adapted)
        columns = columns if processes is None else processes.as_first(columns)
        every = [(scale, one) for scale in rows for one in columns]
        adapted, own_part = _shared(processes, adapted, every)
        images: list[Image] = []
        quiet = {"progress": False} if silent else {}
        for scale, one in own_part:
            if name is not None:
                adapted.adapters[name].scale = scale
            images.append(_made(adapted, {**chosen, **quiet}, one, made.append))
        if processes is not None and len(every) > 1:
            images = processes.gathered(images)
        if silent:
            return
    about = {**chosen, "seed": columns[0]}
    if len(images) > 1:
        about |= {"seeds": columns, "scales": {name: rows} if name is not None else {}}
    told = record.record(adapted, wanted(model)[0], _task(chosen), about)
    record.save(grid(images, len(columns)), out, told)
    if not as_json:
        click.echo(str(out))
        return
    seconds = {"load": loaded - started, "sample": time.perf_counter() - loaded}
    seconds["per_step"] = seconds["sample"] / len(made)
    output.envelope({"image": str(out), **_data(adapted, told, about, columns), "seconds": seconds})


def _data(
    model: StableDiffusion, told: Mapping[str, Any], about: Mapping[str, Any], seeds: Sequence[int]
) -> dict[str, Any]:
    """What JSON tells of the pictures beside where they are and how long they took."""
    return {
        "seeds": seeds,
        "adapters": {member.name: member.scale for member in model.adapters},
        "digest": model.digest,
        "fingerprint": told["fingerprint"],
        "settings": json.loads(json.dumps(about, default=str)),
    }


def _shared(
    processes: Processes | None, model: StableDiffusion, images: Sequence[_Asked]
) -> tuple[StableDiffusion, Sequence[_Asked]]:
    """The model and which images it is to make: of one, every process makes its part."""
    if processes is None:
        return model, images
    if len(images) > 1:
        return model, processes.share(images)
    from inarch.distribute import shard

    return shard(model, "tensor"), images


def _task(chosen: Mapping[str, Any]) -> str:
    if chosen.get("mask") is not None:
        if chosen.get("image") is None:
            raise click.UsageError("--mask needs --image.")
        return "inpaint"
    return "text_to_image" if chosen.get("image") is None else "image_to_image"


_NOT_SETTINGS = ("inputs", "prompt", "seed", "seeds", "scales")


def _made(
    model: StableDiffusion, chosen: Mapping[str, Any], seed: int, each: Callable[[Any], Any]
) -> Image:
    task = _task(chosen)
    kept = {n: v for n, v in chosen.items() if n not in _NOT_SETTINGS}
    if task == "text_to_image" and kept.pop("strength", None) is not None:
        raise click.UsageError("--strength needs --image.")
    inputs = {name: _read(value) for name, value in chosen["inputs"].items()}
    return getattr(model, task)(chosen["prompt"], seed=seed, callback=each, **kept, **inputs)


def _pair(text: str) -> tuple[str, str]:
    name, mark, value = text.partition("=")
    if not mark or not name:
        raise click.UsageError(f"--input is NAME=VALUE, such as canny_image=edges.png, not {text}")
    return name, value


def _read(value: Any) -> Any:
    """A number where it is one, else a file or a text, as it stands."""
    try:
        return float(value)
    except ValueError:
        return value


def _seeds(seed: int | None, seeds: str | None, told: Any) -> list[int]:
    """The seeds asked for, or those of the image that is made again; else one that is drawn."""
    if seeds is None and seed is not None:
        return [seed]
    if seeds is None and told is not None:
        return list(told) if isinstance(told, list) else [told]
    if seeds is None:
        import torch

        return [torch.Generator().seed() % 2**32]
    if seed is not None:
        raise click.UsageError("Give --seed or --seeds.")
    found: list[int] = []
    try:
        for part in seeds.split(","):
            first, dash, last = part.partition("-")
            found += range(int(first), int(last) + 1) if dash else [int(first)]
    except ValueError:
        raise click.UsageError(f"--seeds is 1,2,5 or 1-4, not {seeds}") from None
    if not found:
        raise click.UsageError(f"--seeds names no seed: {seeds}")
    return found


def _scales(
    text: str | None, told: Mapping[str, list[float]], model: StableDiffusion
) -> tuple[str | None, list[float]]:
    """An adapter and its scales: those asked for, or of the image that is made again."""
    if text is None:
        return next(((name, list(rows)) for name, rows in told.items()), (None, [1.0]))
    name, _, values = text.partition("=")
    model.adapters[name]
    try:
        return name, [float(value) for value in values.split(",")]
    except ValueError:
        raise InarchError(
            "IA550",
            "these are no scales",
            where=f"--scales {text}",
            why="they are numbers with commas between",
            remedy=f"--scales {name}=0,0.5,1",
        ) from None


def grid(images: list[Image], columns: int) -> Image:
    """Images of one size as one, so many beside each other."""
    from PIL import Image

    if len(images) == 1:
        return images[0]
    width, height = images[0].size
    sheet = Image.new("RGB", (width * columns, height * -(-len(images) // columns)))
    for i, image in enumerate(images):
        sheet.paste(image, (i % columns * width, i // columns * height))
    return sheet
