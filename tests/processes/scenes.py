"""Small adapted models, the same bit for bit in every process, and what is asked of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from torch.nn import functional as F

import inarch
from inarch.testing.tiny import tiny_models

LINEAR = ["attention.query", "attention.key", "attention.value", "attention.output", "mlp.*"]
COLUMNS = ["attention.query", "attention.value", "mlp.up"]


def lora(name: str = "mine", **options: Any) -> Any:
    return inarch.adapter("lora", name=name, **{"targets": LINEAR, "rank": 4, **options})


STACKS: dict[str, Callable[[], list[Any]]] = {
    "none": list,
    "lora": lambda: [lora()],
    "stack": lambda: [
        lora("first", rank=2, bias="all"),
        lora("second", lora_bias=True),
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
    "dora": lambda: [lora("direction", use_dora=True, targets=COLUMNS)],
    "loha": lambda: [lora("hadamard", algorithm="loha")],
    "lokr": lambda: [lora("kronecker", algorithm="lokr", factor=4)],
    "pissa": lambda: [lora("principal", start="pissa")],
    "usual": lambda: [inarch.adapter("lora", name="usual", rank=2)],
    "formless": lambda: [lora("formless", format="kohya", lora_bias=True)],
    "rows": lambda: [lora("direction", use_dora=True)],
    "taps": lambda: [
        inarch.adapter("steering", name="steer", targets=["model.layers.*.mlp.gate"], width=24)
    ],
    "merged": lambda: [lora("inside"), lora("beside", rank=2)],
}


def base(label: str) -> Any:
    """A random Llama of a configuration that the family declares, packed where `packed` ends it."""
    wanted = label.removesuffix(" packed")
    [tiny] = [t for t in tiny_models(families=["llama"]) if t.label == wanted]
    model = tiny.build(seed=3)
    return model if wanted == label else model.packed()


def adapted(label: str, stack: str) -> Any:
    """A model whose every tensor that training moves is random and takes gradients."""
    torch.manual_seed(5)
    model = base(label).adapt(*STACKS[stack]())
    generator = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for member in model.adapters:
            for parameter in member.parameters().values():
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.add_(noise * 0.2)
    if stack == "merged":
        model = model.merge("inside")
    return model


def with_inner(family: str, kind: str) -> Any:
    """A random model with an adapter that brings a tree, and a fresh LoRA in that."""
    torch.manual_seed(5)
    inner = inarch.adapter("lora", name="inner", rank=2)
    model = next(iter(tiny_models(families=[family]))).build(seed=3)
    return model.adapt(inarch.adapter(kind, name="outer", adapters=[inner]))


def ids() -> Tensor:
    return torch.randint(0, 31, (4, 7), generator=torch.Generator().manual_seed(2))


def loss_of(logits: Tensor, rows: Tensor) -> Tensor:
    """A sum, so that those of parts add up to that of the whole."""
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), rows[:, 1:].flatten(), reduction="sum")


def named(model: Any) -> Iterator[tuple[str, torch.nn.Parameter]]:
    for name, tree in model.trees.items():
        for path, parameter in tree.named_parameters():
            yield (f"{name}.{path}" if name else path), parameter


SPLITTABLE = [name for name in STACKS if name not in ("rows", "taps", "formless")]


def content(path: Path) -> Any:
    """A file's bytes; of safetensors, whose header has no order, its parts."""
    if path.suffix != ".safetensors":
        return path.read_bytes()
    with safe_open(path, "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        return file.metadata(), {k: (t.dtype, t.tolist()) for k, t in tensors.items()}
