"""B13: one step of training a LoRA: its time, its peak of memory, what it saves for the backward.

A Llama with a LoRA on every linear layer; forward, loss, backward and AdamW of the adapter's
parameters, the base frozen. At the first step, both libraries' losses and gradients are equal.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks import counters, models
from benchmarks.measure import Setting, bandwidth, interleaved, tensor_bytes
from benchmarks.result import Limit, Mark, Result, Table, Workload, result_of, seconds

WORKLOAD = Workload(
    "B13",
    "A LoRA training step: time, peak memory, saved tensors",
    "PEFT",
    "at least 1.1x faster, no more memory",
    ("transformers", "peft"),
)
SIZES = {"narrow": (128, 8, 2, 32), "wide": (512, 4, 4, 64)}
"""Width, layers, batch, tokens: one where dispatch counts and one where arithmetic does."""


class Trainer:
    """A model, a way to run it, and the optimizer of its adapter."""

    def __init__(
        self,
        run: Callable[[Tensor], Tensor],
        parameters: Mapping[str, nn.Parameter],
        fixed: Sequence[Tensor],
        ids: Tensor,
    ) -> None:
        self.run, self.parameters, self.fixed, self.ids = run, parameters, fixed, ids
        self.optimizer = torch.optim.AdamW(parameters.values(), lr=1e-4)

    def loss(self) -> Tensor:
        logits = self.run(self.ids)[:, :-1]
        return F.cross_entropy(logits.flatten(0, 1).float(), self.ids[:, 1:].flatten())

    def step(self) -> None:
        self.loss().backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def gradients(self) -> list[Tensor]:
        """Of A and B, layer by layer, without changing a parameter."""
        return list(torch.autograd.grad(self.loss(), list(self.parameters.values())))

    def saved(self) -> tuple[int, int]:
        """How many tensors a forward saves for the backward, and the bytes of those it made."""
        kept: list[Tensor] = []
        own = {p.untyped_storage()._cdata for p in self.fixed}
        with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
            loss = self.loss()
        made = [t for t in kept if t.untyped_storage()._cdata not in own]
        size = tensor_bytes(made)
        del loss
        return len(kept), size


def run(setting: Setting) -> Result:
    result = result_of(WORKLOAD, setting, bandwidth(setting))
    rows: list[list[str]] = []
    sizes = {"narrow": (32, 2, 2, 8)} if setting.quick else SIZES
    for name, size in sizes.items():
        ours, theirs = _pair(setting, *size)
        setting.compare(f"{name}: loss", ours.loss(), theirs.loss())
        gradients = [trainer.gradients() for trainer in (ours, theirs)]
        setting.compare(f"{name}: gradients", *gradients, reordered=True, half=1e-1)
        saved = [trainer.saved() for trainer in (ours, theirs)]
        ours.step()
        theirs.step()
        peaks = [counters.peak_bytes(t.step, setting.device) for t in (ours, theirs)]
        times = interleaved({"ours": ours.step, "theirs": theirs.step}, setting)
        faster = times.ratio("theirs", "ours")
        result.marks += [
            Mark(f"{name}: times faster", faster.median, 1.1, "at least", faster),
            Mark(f"{name}: peak memory over PEFT's", round(peaks[0] / peaks[1], 4), 1.0),
        ]
        for label, (count, held), peak in zip(("inarch", "PEFT"), saved, peaks, strict=True):
            result.counters[f"{name}: saved tensors, {label}"] = count
            result.counters[f"{name}: MB of saved tensors, {label}"] = round(held / 1e6, 3)
            result.counters[f"{name}: MB at the peak, {label}"] = round(peak / 1e6, 3)
        weights = tensor_bytes(ours.fixed)
        result.limits.append(
            Limit(f"{name}: a step", 2 * weights, times.median("ours"), result.bandwidth)
        )
        medians = [seconds(times.median(n)) for n in ("ours", "theirs")]
        shape = "d = {}, {} layers, batch {}, {} tokens".format(*size)
        rows.append([name, shape, *medians, faster.text()])
    columns = ["", "size", "inarch", "PEFT", "times faster"]
    result.tables.append(Table("A step, rank 8", columns, rows))
    return result


def _pair(
    setting: Setting, width: int, layers: int, batch: int, tokens: int
) -> tuple[Trainer, Trainer]:
    config = models.llama_config(width, layers)
    base = models.built("llama", config, setting)
    ids = models.token_ids(batch, tokens, setting)
    with models.folder() as where:
        folders = models.saved(base, ["one"], where, rank=8)
        model = models.adapted(base, folders)
        peer: Any = models.in_peft(models.in_transformers(base, config, setting), folders)
    model.adapters["one"].trainable = True
    peer.train()  # there is no dropout: as a training loop would have it
    own = model.adapter_parameters("one")
    theirs = {
        n.removeprefix("base_model.model.").replace(".one.weight", ""): p.requires_grad_(True)
        for n, p in peer.named_parameters()
        if "lora_" in n
    }
    theirs = {n: theirs[n] for n in own}
    weights = [list(one.state_dict().values()) for one in (model.tree, peer)]
    return (
        Trainer(model, own, weights[0], ids),
        Trainer(lambda ids: peer(input_ids=ids, use_cache=False).logits, theirs, weights[1], ids),
    )
