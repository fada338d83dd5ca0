"""Small adapted models, the same bit for bit in every process, and what is asked of them."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

import inarch
from inarch.plugins import index
from inarch.plugins.fit import misfit
from inarch.testing.subject import flat, inputs_of
from inarch.testing.tiny import tiny_models
from inarch_training import Example

LINEAR = ["attention.query", "attention.key", "attention.value", "attention.output", "mlp.*"]


def lora(name: str = "mine", **options: Any) -> Any:
    return inarch.adapter("lora", name=name, **{"targets": LINEAR, "rank": 4, **options})


def from_file(name: str, of: Callable[[int, int], dict[str, Tensor]]) -> Any:
    """An adapter from a file in LyCORIS's form, of tensors for each layer's outputs and inputs."""
    tensors: dict[str, Tensor] = {}
    for layer in range(2):
        for at in ("self_attn.q_proj", "self_attn.o_proj", "mlp.up_proj", "mlp.down_proj"):
            outputs, inputs = SIZES[at.rpartition(".")[2]]
            key = f"lycoris_model_layers_{layer}_{at.replace('.', '_')}"
            tensors |= {f"{key}.{part}": t for part, t in of(outputs, inputs).items()}
    path = Path(tempfile.mkdtemp()) / f"{name}.safetensors"
    save_file(tensors, path)
    return inarch.adapter("lora", name=name, weights=path)


SIZES = {"q_proj": (16, 16), "o_proj": (16, 16), "up_proj": (24, 16), "down_proj": (16, 24)}


def decomposed(along: str) -> Any:
    """LoHa whose weight's magnitude is one of outputs or of inputs."""

    def tensors(outputs: int, inputs: int) -> dict[str, Tensor]:
        halves = {
            f"hada_w{n}_{s}": size
            for n in (1, 2)
            for s, size in zip("ab", [(outputs, 2), (2, inputs)], strict=True)
        }
        made = {name: torch.randn(size) * 0.5 for name, size in halves.items()}
        scale = (outputs, 1) if along == "outputs" else (1, inputs)
        return {**made, "dora_scale": torch.rand(scale) + 0.5, "alpha": torch.tensor(2.0)}

    return from_file(along, tensors)


def rotated(bound: float) -> Any:
    """OFT in blocks of four, held to a norm where there is a bound."""
    return from_file(
        "rotated",
        lambda outputs, _: {
            "oft_blocks": torch.randn(outputs // 4, 4, 4),
            "alpha": torch.tensor(bound),
        },
    )


STACKS: dict[str, Callable[[], list[Any]]] = {
    "none": list,
    "lora": lambda: [lora()],
    "stack": lambda: [
        lora("first", rank=2, bias="all"),
        lora("second"),
        inarch.adapter("ia3", name="factors", scale=0.5),
        inarch.adapter("bottleneck", name="narrow", reduction=4),
        inarch.adapter("steering", name="steer", targets=["block", "mlp.down"], after=["factors"]),
        inarch.adapter("steering", name="upwards", targets=["mlp.up"], width=24),
    ],
    "factors": lambda: [
        inarch.adapter(
            "ia3",
            name="factors",
            targets=LINEAR,
            feedforward=["mlp.down", "mlp.up"],
        )
    ],
    "prefix": lambda: [inarch.adapter("prefix", tokens=3), lora()],
    "prompt": lambda: [inarch.adapter("prompt-tuning", name="prompt", tokens=3), lora()],
    "dora": lambda: [lora("direction", use_dora=True)],
    "outputs": lambda: [decomposed("outputs")],
    "inputs": lambda: [decomposed("inputs")],
    "rotated": lambda: [rotated(0.0)],
    "bounded": lambda: [rotated(0.002)],
    "tokens": lambda: [lora("tokens", targets=["embedding.tokens", "head", "mlp.down"])],
    "directions": lambda: [lora("directions", targets=["embedding.tokens"], use_dora=True)],
    "loha": lambda: [lora("hadamard", algorithm="loha")],
    "lokr": lambda: [lora("kronecker", algorithm="lokr", factor=4)],
    "pissa": lambda: [lora("principal", start="pissa")],
    "usual": lambda: [inarch.adapter("lora", name="usual", rank=2)],
    "formless": lambda: [lora("formless", format="kohya", lora_bias=True)],
    "taps": lambda: [
        inarch.adapter("steering", name="steer", targets=["model.layers.*.mlp.gate"], width=24)
    ],
    "once": lambda: [inarch.adapter("steering", name="mine", targets=["mlp.down"])],
    "dropped": lambda: [lora(targets=["attention.*", "mlp.*", "head"], dropout=0.5)],
    "several": lambda: [
        lora("first", rank=2),
        lora("second"),
        inarch.adapter("ia3", name="factors"),
    ],
    "merged": lambda: [
        lora("inside", bias="all"),
        lora("beside", rank=2, bias="all"),
        lora("direction", use_dora=True),
    ],
}


def base(label: str) -> Any:
    """A random Llama of a configuration that the family declares, packed where `packed` ends it."""
    wanted = label.removesuffix(" packed")
    [tiny] = [t for t in tiny_models(families=["llama"]) if t.label == wanted]
    model = tiny.build(seed=3)
    return model if wanted == label else model.packed()


@torch.no_grad()
def moved(model: Any) -> Any:
    """The model, its adapters' parameters no longer where they began."""
    generator = torch.Generator().manual_seed(11)
    for member in model.adapters:
        for parameter in member.parameters().values():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.add_(noise * 0.2)
    return model


def adapted(label: str, stack: str) -> Any:
    """A model whose every tensor that training moves is random and takes gradients."""
    torch.manual_seed(5)
    model = moved(base(label).adapt(*STACKS[stack]()))
    if stack == "merged":
        model = model.merge("inside")
    return model


EVERYWHERE = [
    *("attention.query", "attention.key", "attention.value", "attention.output", "mlp.*"),
    *("text.attention.*", "text.mlp.*"),
]
IMAGE_STACKS: dict[str, Callable[[], list[Any]]] = {
    "lora": lambda: [
        lora("first", targets=[t for t in EVERYWHERE if t != "text.attention.*"]),
        lora("second", targets=["resnet.conv", "transformer.in", "mlp.up"]),
        inarch.adapter(
            "ia3",
            name="factors",
            targets=["mlp.up", "mlp.down", "attention.value"],
            feedforward=["mlp.down"],
            after=["first", "second"],
        ),
    ],
    "dora": lambda: [lora("directions", use_dora=True, targets=["attention.output", "mlp.*"])],
    "hadamard": lambda: [
        lora("hadamard", algorithm="loha", targets=["mlp.*", "attention.output"]),
        lora("kronecker", algorithm="lokr", factor=4, targets=["mlp.*"]),
    ],
}


def image_model(label: str, stack: str) -> Any:
    """A random Stable Diffusion, adapted, of which everything learns."""
    torch.manual_seed(5)
    [tiny] = [t for t in tiny_models(families=["stable-diffusion"]) if t.label == label]
    model = tiny.build(seed=3, dtype=torch.float64)  # where sums in another order are close
    return learning(model.adapt(*IMAGE_STACKS[stack]()))


def kinds_for(family: str) -> list[str]:
    """Every installed adapter that fits a family, with each of its examples."""
    listed = index()
    return [
        f"{kind}: {label}" if label else kind
        for kind, entry in sorted(listed.adapters.items())
        if not misfit(entry, listed.models[family])
        for label in ("", *entry.examples)
    ]


def with_one(family: str, kind: str) -> Any:
    """A random model with one untrained adapter that was moved, of which everything learns."""
    name, _, label = kind.partition(": ")
    options = index().adapters[name].examples.get(label, {})
    base = next(iter(tiny_models(families=[family]))).build(seed=1, dtype=torch.float64)
    torch.manual_seed(5)
    return learning(base.adapt(inarch.adapter(name, name="one", **options)))


def answered(model: Any) -> tuple[list[Tensor], Tensor]:
    """What every tree gives for the model's examples, and a sum to be made small."""
    values = [v for tree, given in inputs_of(model) for v in flat(model.trees[tree](**given))]
    learnt = [v.square().sum() for v in values if v.requires_grad]
    return [v.detach() for v in values], torch.stack(learnt).sum()


READERS: dict[str, Callable[[], list[Any]]] = {
    "style": list,
    "control": lambda: [inarch.adapter("controlnet", name="read", end=0.5, widths=(4, 8))],
    "reference": lambda: [
        inarch.adapter("reference", name="read"),
        inarch.adapter("style-aligned", name="aligned"),
    ],
}


def painter(path: str, stack: str) -> Any:
    """A pipeline from a folder with a style and perhaps what reads a picture."""
    torch.manual_seed(5)
    style = lora("style", targets=[*EVERYWHERE, "resnet.conv"])
    return learning(inarch.load(path).adapt(style, *READERS[stack]()))


@torch.no_grad()
def picture_of(model: Any) -> Tensor:
    """Two steps from noise, in which ControlNets see a ramp."""
    ramp = torch.linspace(0, 1, 16 * 24).reshape(1, 1, 16, 24).expand(1, 3, 16, 24)
    inputs = {"read_image": ramp} if "read" in model.adapters.names else {}
    settings: dict[str, Any] = {"steps": 2, "height": 16, "width": 24, "seed": 3}
    return model.text_to_image("a red boat", output="tensor", **settings, **inputs)


def learning(model: Any) -> Any:
    """The model with all its adapters' parameters moved, and gradients asked of everything."""
    for tree in moved(model).trees.values():
        tree.requires_grad_(True)
    return model


def drawn_of(model: Any, part: int = 0, parts: int = 1) -> tuple[list[Tensor], Tensor]:
    """What its trees give for some rows of their examples, and a sum to be made small."""
    values: list[Tensor] = []
    for example in model.examples():
        own = {n: v.chunk(parts)[part] if v is not None else v for n, v in example.inputs.items()}
        given = model.trees[example.tree](**own)
        values += given if isinstance(given, tuple) else [given]
    return [v.detach() for v in values], torch.stack([v.square().sum() for v in values]).sum()


def with_inner(family: str, kind: str) -> Any:
    """A random model with an adapter that brings a tree, and a fresh LoRA in that."""
    torch.manual_seed(5)
    inner = inarch.adapter("lora", name="inner", rank=2)
    model = next(iter(tiny_models(families=[family]))).build(seed=3)
    return model.adapt(inarch.adapter(kind, name="outer", adapters=[inner]))


def ids() -> Tensor:
    return torch.randint(0, 31, (4, 7), generator=torch.Generator().manual_seed(2))


def examples() -> list[Example]:
    """What a run trains on."""
    return [Example(tuple(row), tuple(row)) for row in ids().tolist()]


def loss_of(logits: Tensor, rows: Tensor) -> Tensor:
    """A sum, so that those of parts add up to that of the whole."""
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), rows[:, 1:].flatten(), reduction="sum")


def named(model: Any) -> Iterator[tuple[str, torch.nn.Parameter]]:
    for name, tree in model.trees.items():
        for path, parameter in tree.named_parameters():
            yield (f"{name}.{path}" if name else path), parameter


SPLITTABLE = [n for n in STACKS if n not in ("taps", "formless", "several", "dropped")]


def content(path: Path) -> Any:
    """A file's bytes; of safetensors, whose header has no order, its parts."""
    if path.suffix != ".safetensors":
        return path.read_bytes()
    with safe_open(path, "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        return file.metadata(), {k: (t.dtype, t.tolist()) for k, t in tensors.items()}
