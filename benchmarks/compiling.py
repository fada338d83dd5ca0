"""Small models whose compilations are counted, in both libraries: a Llama and a UNet."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

import inarch
from benchmarks import models
from benchmarks.measure import Setting
from inarch.adapters import Model
from inarch.stack import AdapterSpec

LAYERS = 8


class Backend:
    """A back end that counts the graphs it is given."""

    def __init__(self, name: str) -> None:
        self.name, self.graphs = name, 0

    def __call__(self, graph: torch.fx.GraphModule, examples: list[Any]) -> Callable[..., Any]:
        self.graphs += 1
        if self.name == "eager":
            return graph.forward
        from torch._inductor.compile_fx import compile_fx

        return compile_fx(graph, examples)


def compiled(blocks: Iterable[nn.Module], backend: Backend) -> None:
    for block in blocks:
        block.compile(fullgraph=True, backend=backend)


class Subject(Protocol):
    """A model in both libraries, and how either compiles it and takes LoRAs.

    Attributes:
        label: of the model.
        peer: the library beside ours.
        options: of LoRAs for it.
    """

    label: str
    peer: str
    options: Mapping[str, Any]

    def base(self) -> Model:
        """A fresh model of ours: blocks without an adapter are the base's, compiled in place."""
        ...

    def uneven(self) -> Sequence[AdapterSpec]:
        """LoRAs of some layers in some blocks, so that there are more kinds of block."""
        ...

    def blocks(self, model: Model) -> list[nn.Module]: ...
    def whole(self, model: Model, backend: Backend) -> None:
        """Compile all of ours as one, and run that."""
        ...

    def run(self, model: Model) -> Any: ...
    def theirs(self, base: Model, name: str, folder: Path) -> Any:
        """The peer's model on the base's tensors, with one LoRA."""
        ...

    def compile_theirs(self, theirs: Any, backend: Backend) -> None:
        """Compile the peer's blocks."""
        ...

    def run_theirs(self, theirs: Any) -> Any: ...
    def exchange(self, theirs: Any, old: str, new: str, folder: Path) -> None:
        """Load another LoRA into the peer's model, make that the active one, and delete the old."""
        ...


class LlamaSubject:
    label, peer = "Llama", "PEFT"

    def __init__(self, setting: Setting, width: int = 32, layers: int = LAYERS) -> None:
        self.setting, self.config = setting, models.llama_config(width, layers)
        self.ids = models.token_ids(1, 16, setting)
        self.options: Mapping[str, Any] = {}

    def base(self) -> Model:
        return models.built("llama", self.config, self.setting)

    def uneven(self) -> Sequence[AdapterSpec]:
        first, last = "model.layers.{0,1,2}.self_attn.q_proj", "model.layers.{6,7}.mlp.up_proj"
        return [
            inarch.adapter("lora", name="first", targets=[first], rank=4),
            inarch.adapter("lora", name="last", targets=[last], rank=2),
        ]

    def blocks(self, model: Model) -> list[nn.Module]:
        return [found.module for found in model.tree.select("model.layers.*") if found.module]

    def whole(self, model: Model, backend: Backend) -> None:
        from inarch.nn.attention import causal_mask

        time, device = self.ids.shape[1], self.ids.device
        inputs = {
            "positions": torch.arange(time, device=device)[None],
            "mask": causal_mask(time, time, device=device),
        }
        torch.compile(model.tree, fullgraph=True, backend=backend)(self.ids, **inputs)

    def run(self, model: Model) -> Any:
        return model(self.ids)

    def theirs(self, base: Model, name: str, folder: Path) -> Any:
        return models.in_peft(
            models.in_transformers(base, self.config, self.setting), {name: folder}
        )

    def compile_theirs(self, theirs: Any, backend: Backend) -> None:
        compiled(theirs.base_model.model.model.layers, backend)

    def run_theirs(self, theirs: Any) -> Any:
        return theirs(input_ids=self.ids, use_cache=False).logits

    def exchange(self, theirs: Any, old: str, new: str, folder: Path) -> None:
        theirs.load_adapter(str(folder), new, torch_device=str(self.setting.device))
        theirs.set_adapter(new)
        theirs.delete_adapter(old)


class UNetSubject:
    """A UNet whose blocks are those that `compile_repeated_blocks` compiles: of its transformers.

    It is shallow, so that blocks of equal structure see pictures of equal size: at full depth the
    deepest are like those above them, and either library compiles once more for their size.
    """

    label, peer = "UNet", "diffusers"

    def __init__(self, setting: Setting, channels: int = 8) -> None:
        self.setting, self.channels = setting, channels
        self.inputs = models.unet_inputs(2 * channels, 8, setting)
        targets = models.attention_linears(self.base())
        self.options: Mapping[str, Any] = {"targets": targets, "format": "diffusers"}

    def base(self) -> Model:
        return models.unet_of(self.setting, self.channels, shallow=True)

    def uneven(self) -> Sequence[AdapterSpec]:
        first = "unet.up_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
        last = "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_v"
        return [
            inarch.adapter("lora", name="first", targets=[first], rank=4),
            inarch.adapter("lora", name="last", targets=[last], rank=2),
        ]

    def blocks(self, model: Model) -> list[nn.Module]:
        named = model.trees["unet"].named_modules()
        return [m for n, m in named if n.rpartition(".")[0].endswith("transformer_blocks")]

    def whole(self, model: Model, backend: Backend) -> None:
        x, step, text = self.inputs
        whole = torch.compile(model.trees["unet"], fullgraph=True, backend=backend)
        whole(x, timestep=step, text=text)

    def run(self, model: Model) -> Any:
        x, step, text = self.inputs
        return model.trees["unet"](x, timestep=step, text=text)

    def theirs(self, base: Model, name: str, folder: Path) -> Any:
        theirs = models.in_diffusers(base, self.setting)
        models.load_in_diffusers(theirs, name, folder)
        return theirs.requires_grad_(False).eval()

    def compile_theirs(self, theirs: Any, backend: Backend) -> None:
        theirs.compile_repeated_blocks(fullgraph=True, backend=backend)

    def run_theirs(self, theirs: Any) -> Any:
        return theirs(*self.inputs, return_dict=False)[0]

    def exchange(self, theirs: Any, old: str, new: str, folder: Path) -> None:
        models.load_in_diffusers(theirs, new, folder)
        theirs.set_adapters(new)
        theirs.delete_adapters(old)


SUBJECTS: Mapping[str, Callable[[Setting], Subject]] = {"Llama": LlamaSubject, "UNet": UNetSubject}
