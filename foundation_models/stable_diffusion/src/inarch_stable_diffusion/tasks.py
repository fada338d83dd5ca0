"""What Stable Diffusion does: images from text, from images, and within masks."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from inarch.adapters import Request
from inarch.errors import InarchError
from inarch_stable_diffusion import pixels
from inarch_stable_diffusion.noise import Generator, normal
from inarch_stable_diffusion.prompt import Encoded, encode
from inarch_stable_diffusion.rows import refuse_rows
from inarch_stable_diffusion.sampling import Callback, Run, Step
from inarch_stable_diffusion.schedulers import scheduler_for, timesteps_for

if TYPE_CHECKING:
    from inarch_stable_diffusion.model import StableDiffusion

Texts = str | Sequence[str]
# What an adapter may ask for, where the user doesn't.
ASKED = ("steps", "guidance", "scheduler", "clip_skip")
OUTPUTS = ("image", "latents", "tensor")


@dataclass(kw_only=True)
class Wish:
    """What a user asks for, checked: see `StableDiffusion.text_to_image`."""

    prompt: Texts
    negative_prompt: Texts | None = None
    steps: int | None = None
    guidance: float | None = None
    guidance_rescale: float = 0.0
    seed: int | Sequence[int] | None = None
    latents: Tensor | None = None
    height: int | None = None
    width: int | None = None
    count: int = 1
    scheduler: Any = None
    eta: float = 0.0
    clip_skip: int | None = None
    strength: float = 1.0
    original_size: tuple[int, int] | None = None
    crop: tuple[int, int] = (0, 0)
    target_size: tuple[int, int] | None = None
    output: str = "image"
    tile: int | bool | None = None
    callback: Callback | None = None
    preview: Callable[[Any, int], Any] | None = None
    progress: bool | None = None
    inputs: Mapping[str, Any] = field(default_factory=dict[str, Any])


class Task:
    """One run of a model, prepared."""

    def __init__(self, model: StableDiffusion, wish: Wish) -> None:
        wish = _asked(wish, model.asks)
        self.model, self.wish = model, wish
        config = model.config
        self.prompts, negative = _texts(wish)
        self.zeros = config.zero_negative and all(text is None for text in negative)
        self.negative = [text or "" for text in negative]
        self.batch = len(self.prompts) * wish.count
        usual = 5.0 if config.unet.added is not None else 7.5
        self.guidance = usual if wish.guidance is None else float(wish.guidance)
        self.guided = self.guidance > 1.0
        size = config.unet.sample_size
        high, wide = (size, size) if isinstance(size, int) else size
        self.height = wish.height or high * config.factor
        self.width = wish.width or wide * config.factor
        weight = next(model.trees["unet"].parameters())
        self.device, self.dtype = weight.device, weight.dtype
        _check(wish, self.height, self.width, config.factor)
        refuse_rows(model, len(self.prompts), self.batch, guided=self.guided)
        self.shape = (
            self.batch,
            config.vae.latent_channels if config.vae is not None else config.unet.out_channels,
            self.height // config.factor,
            self.width // config.factor,
        )
        self.generator = _generator(wish.seed, self.batch)
        self.scheduler = scheduler_for(dict(config.scheduler), wish.scheduler)
        self.timesteps = timesteps_for(self.scheduler, wish.steps, wish.strength, self.device)
        request = Request(self.height, self.width, self.batch, self.guided, self.device, self.dtype)
        self.inputs = model.read_inputs(wish.inputs, request)

    def noise(self) -> Tensor:
        """Standard normal latents, one seed's the same on every device."""
        return normal(self.shape, self.generator, self.device, self.dtype)

    def conditions(self) -> dict[str, Any]:
        """What the UNet is told in every step."""
        negative = None if not self.guided else self.negative
        wanted, unwanted = encode(
            self.model,
            self.prompts,
            negative,
            clip_skip=self.wish.clip_skip,
            zeros=self.zeros,
            inputs=self.inputs,
        )
        count = self.wish.count
        parts: list[Encoded] = [wanted.repeated(count)]
        if unwanted is not None:
            parts.insert(0, unwanted.repeated(count))
        told: dict[str, Any] = {
            "text": torch.cat([part.text for part in parts]).to(self.device, self.dtype),
            **self.inputs,
        }
        pooled = [part.pooled for part in parts if part.pooled is not None]
        if self.model.config.unet.added is not None and pooled:
            told["text_embeds"] = torch.cat(pooled).to(self.device, self.dtype)
            told["time_ids"] = self._sizes(unwanted is not None)
        return told

    def _sizes(self, guided: bool) -> Tensor:
        """What XL is told of the image: its original size, where it was cropped, its size."""
        own = (self.height, self.width)
        original, wish = self.wish.original_size or own, self.wish
        last = (6.0,) if self.model.config.aesthetics else (wish.target_size or own)
        rows = [(*original, *wish.crop, *last)] * self.batch
        if guided:
            worse = (2.5,) if self.model.config.aesthetics else last
            rows = [(*original, *wish.crop, *worse)] * self.batch + rows
        return torch.tensor(rows, dtype=self.dtype, device=self.device)

    def run(
        self,
        latents: Tensor,
        beside: Tensor | None = None,
        after: Callable[[Tensor, int], Tensor] | None = None,
    ) -> Any:
        """From the first latents to what was asked for."""
        wish = self.wish
        if beside is not None and self.guided:
            beside = torch.cat([beside, beside])
        run = Run(
            self.model,
            self.scheduler,
            self.timesteps,
            latents,
            self.conditions(),
            self.guided,
            self.guidance,
            wish.guidance_rescale,
            beside,
            after,
            wish.eta,
            self.generator,
            self._callbacks(),
            wish.progress,
            lambda name: self.encoded(_as_many(self.inputs[name], self.batch, name) * 2 - 1),
        )
        return self.given(run.latents_at_end())

    def _callbacks(self) -> list[Callback]:
        wish = self.wish
        found: list[Callback] = [] if wish.callback is None else [wish.callback]
        show = wish.preview
        if show is not None:
            autoencoder = self.model.autoencoder

            def draw(step: Step) -> None:
                show(pixels.preview(autoencoder, step.latents), step.index)

            found.append(draw)
        return found

    @torch.no_grad()
    def given(self, latents: Tensor) -> Any:
        """The latents as the user wants them."""
        if self.wish.output == "latents":
            return latents
        images = pixels.decoded(self.model.autoencoder, latents, self.wish.tile)
        if self.wish.output == "tensor":
            return images
        made = pixels.to_pillow(images)
        single = isinstance(self.wish.prompt, str) and self.wish.count == 1
        return made[0] if single else made

    @torch.no_grad()
    def encoded(self, images: Tensor) -> Tensor:
        """Images in -1..1 to latents of the UNet, [batch, 4, height, width]."""
        autoencoder = self.model.autoencoder
        images = images.to(autoencoder.weight)
        if isinstance(self.generator, list):
            images = _as_many(images, self.batch, "image")
            rows = [autoencoder.encode(images[i : i + 1]) for i in range(self.batch)]
            drawn = [m.sample(g) for m, g in zip(rows, self.generator, strict=True)]
            latents = torch.cat(drawn)
        else:
            latents = autoencoder.encode(images).sample(self.generator)
        return autoencoder.to_unet(latents).to(self.device, self.dtype)


def _asked(wish: Wish, asks: Mapping[str, Any]) -> Wish:
    """The wish with what the model's adapters ask for where the user says nothing.

    Raises:
        InarchError: IA550 for what no image is made by.
    """
    unknown = [name for name in asks if name not in ASKED]
    if unknown:
        raise InarchError(
            "IA550",
            f"an adapter asks for `{unknown[0]}`, which is no setting of an image",
            where=f"{unknown[0]} = {asks[unknown[0]]!r}",
            why=f"it may ask for: {', '.join(ASKED)}",
            remedy="leave it out of what the adapter asks for: its option or file says asks",
        )
    usual = {"steps": 30, **asks}
    told = {name: value for name, value in usual.items() if getattr(wish, name) is None}
    return replace(wish, **told)


def text_to_image(model: StableDiffusion, wish: Wish) -> Any:
    """See `StableDiffusion.text_to_image`."""
    _only(model, 0, "text_to_image")
    task = Task(model, wish)
    return task.run(_first(task) * task.scheduler.init_noise_sigma)


def image_to_image(model: StableDiffusion, wish: Wish, image: Any) -> Any:
    """See `StableDiffusion.image_to_image`."""
    _only(model, 0, "image_to_image")
    task = _sized(model, wish, image)
    pictures = pixels.image_of(image, task.height, task.width)
    start = _as_many(task.encoded(pictures), task.batch, "image")
    noise = task.noise() if wish.latents is None else _first(task)
    first = task.timesteps[:1].repeat(task.batch)
    return task.run(task.scheduler.add_noise(start, noise, first))


def inpaint(model: StableDiffusion, wish: Wish, image: Any, mask: Any) -> Any:
    """See `StableDiffusion.inpaint`."""
    wide = _beside(model) > 0
    if wide:
        _only(model, model.config.unet.out_channels + 1, "inpaint")
    task = _sized(model, wish, image)
    pictures = pixels.image_of(image, task.height, task.width)
    area = pixels.mask_of(mask, task.height, task.width)
    whole = wish.strength >= 1.0
    known = None if wide and whole else _as_many(task.encoded(pictures), task.batch, "image")
    noise = _first(task)
    if whole or known is None:
        latents = noise * task.scheduler.init_noise_sigma
    else:
        latents = task.scheduler.add_noise(known, noise, task.timesteps[:1].repeat(task.batch))
    small = _as_many(pixels.shrunk(area, *task.shape[2:]), task.batch, "mask")
    small = small.to(task.device, task.dtype)
    if wide:
        shown = _as_many(task.encoded(pictures * (area < 0.5).to(pictures)), task.batch, "image")
        return task.run(latents, torch.cat([small, shown], dim=1))

    def keep(now: Tensor, made: int) -> Tensor:
        """Outside of the mask the image, with as much noise as there is yet."""
        original = known
        if made < len(task.timesteps):
            at = task.timesteps[made : made + 1]
            original = task.scheduler.add_noise(known, noise, at)
        return (1 - small) * original + small * now

    return task.run(latents, after=keep)


def _first(task: Task) -> Tensor:
    """The noise to begin with: the user's, or drawn.

    Raises:
        InarchError: IA505 for latents of another shape.
    """
    given = task.wish.latents
    if given is None:
        return task.noise()
    if tuple(given.shape) != task.shape:
        raise InarchError(
            "IA505",
            "these latents are not of the image that is asked for",
            where="latents",
            why=f"they are {list(given.shape)}, and {list(task.shape)} is needed",
            remedy="pass the height and width in pixels that they are for",
        )
    return given.to(task.device, task.dtype)


def _sized(model: StableDiffusion, wish: Wish, image: Any) -> Task:
    """A task whose image is as large as the one given, where no size is asked for."""
    if wish.height is None or wish.width is None:
        height, width = pixels.size_of(image, model.config.factor)
        wish.height, wish.width = wish.height or height, wish.width or width
    return Task(model, wish)


def _as_many(rows: Tensor, batch: int, name: str) -> Tensor:
    """Rows repeated up to a batch.

    Raises:
        InarchError: IA505 where they don't divide it.
    """
    if batch % len(rows):
        raise InarchError(
            "IA505",
            f"{len(rows)} rows of `{name}` can't serve {batch} images",
            where=name,
            remedy=f"pass one, or {batch}",
        )
    return rows.repeat(batch // len(rows), 1, 1, 1)


def _beside(model: StableDiffusion) -> int:
    """How many channels come in beside the latents."""
    return model.config.unet.in_channels - model.config.unet.out_channels


def _only(model: StableDiffusion, beside: int, task: str) -> None:
    if _beside(model) != beside:
        raise InarchError(
            "IA506",
            f"this model can't do `{task}`",
            why=f"its UNet takes {model.config.unet.in_channels} channels, and {task} gives it "
            f"{model.config.unet.out_channels + beside}",
            remedy="model.inpaint(prompt, image=..., mask=...)"
            if task != "inpaint"
            else "load a model for images, or one for inpainting",
        )


def _texts(wish: Wish) -> tuple[list[str], list[Any]]:
    listed = isinstance(wish.prompt, list | tuple)
    prompts: list[Any] = list(wish.prompt) if listed else [wish.prompt]
    given = wish.negative_prompt
    many = given is not None and not isinstance(given, str)
    negative: list[Any] = list(given) if many else [given] * len(prompts)  # pyright: ignore
    texts = [*prompts, *(n for n in negative if n is not None)]
    if not prompts or not all(isinstance(text, str) for text in texts):
        raise InarchError(
            "IA505",
            "a prompt is text, or a list of texts",
            where="prompt",
            remedy='text_to_image("a lighthouse in a storm")',
        )
    if len(negative) != len(prompts):
        raise InarchError(
            "IA505",
            f"{len(negative)} negative prompts don't go with {len(prompts)} prompts",
            where="negative_prompt",
            remedy="pass one text for all, or one for each prompt",
        )
    return prompts, negative


def _check(wish: Wish, height: int, width: int, factor: int) -> None:
    wrong, remedy = "", "leave it out for what is usual"
    if wish.output not in OUTPUTS:
        wrong = f"output is one of {', '.join(OUTPUTS)}, not {wish.output!r}"
    elif wish.steps < 1 or wish.count < 1:
        wrong = f"there is at least one step and one image, not {wish.steps} and {wish.count}"
    elif not 0.0 <= wish.strength <= 1.0:
        wrong = f"strength is from 0 to 1, not {wish.strength}"
    elif height < factor or width < factor or height % factor or width % factor:
        wrong = f"height and width are multiples of {factor}, not {height} and {width}"
        near = [max(factor, round(n / factor) * factor) for n in (height, width)]
        remedy = f"height={near[0]}, width={near[1]}"
    elif wish.guidance is not None and not math.isfinite(wish.guidance):
        wrong = f"guidance is a number, not {wish.guidance}"
    elif wish.clip_skip is not None and wish.clip_skip < 0:
        wrong = f"clip_skip is at least 0, not {wish.clip_skip}"
    if wrong:
        raise InarchError("IA550", "there is no such image to be made", why=wrong, remedy=remedy)


def _generator(seed: int | Sequence[int] | None, batch: int) -> Generator:
    """One for all, or one for each image, always of the CPU, whose numbers no device changes."""
    if isinstance(seed, Sequence):
        if len(seed) != batch:
            raise InarchError(
                "IA550",
                f"{len(seed)} seeds can't serve {batch} images",
                where="seed",
                remedy=f"pass one seed, or {batch}",
            )
        return [torch.Generator().manual_seed(int(one)) for one in seed]
    generator = torch.Generator()
    if seed is None:
        generator.seed()
    else:
        generator.manual_seed(int(seed))
    return generator
