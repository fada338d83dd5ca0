"""B5: adapt a model of 25 to 1999 layers on the meta device: what adapting costs without the data.

A Llama whose every linear layer but `down_proj` gets a LoRA: six a block and the head, so 739
layers are 123 blocks. The peer gets a fresh model each time, since it changes the one it is given.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import nn

import inarch
from benchmarks import counters, models
from benchmarks.measure import Samples, Setting, bandwidth, fitted, interleaved, spread
from benchmarks.result import Line, Mark, Picture, Result, Table, Workload, result_of, seconds
from inarch.adapters import Model

WORKLOAD = Workload(
    "B5",
    "Adapt 25 to 1999 layers on the meta device",
    "PEFT",
    "exponent 1.0; 739 layers in at most 60 ms, at least 30x faster than PEFT",
    ("transformers", "peft"),
)
BLOCKS = (4, 8, 16, 32, 64, 123, 233, 333)
MARKED = 123
"""Blocks of the 739 layers that the mark is of."""
PER_BLOCK = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj")
TARGETS = ("attention.*", "mlp.gate", "mlp.up", "head")


def layers(blocks: int) -> int:
    return len(PER_BLOCK) * blocks + 1


def adapt(base: Model) -> Model:
    return base.adapt(inarch.adapter("lora", rank=8, targets=TARGETS))


def counted(blocks: int) -> int:
    """The function calls that adapting so many blocks makes."""
    base = models.on_meta("llama", models.llama_config(64, blocks))
    adapt(base)  # what is made once a process
    return counters.calls(lambda: adapt(base))


def counted_exponent(blocks: tuple[int, ...] = (16, 32, 64, 123)) -> float:
    """The exponent of the function calls that adapting makes, over the number of layers."""
    made = [counted(count) for count in blocks]
    return fitted("calls", [layers(count) for count in blocks], made).exponent


def calls_a_layer(few: int = 16, many: int = 32) -> float:
    """The function calls for each layer more."""
    return (counted(many) - counted(few)) / (layers(many) - layers(few))


class Bare(nn.Module):
    """A module with the two parameters of a LoRA, and nothing else."""

    def __init__(self) -> None:
        super().__init__()
        self.lora_A = nn.Parameter(torch.empty(8, 64))
        self.lora_B = nn.Parameter(torch.empty(64, 8))


def bare(count: int) -> list[Bare]:
    """What torch alone takes: so many modules, which stand nowhere and are of one shape."""
    with torch.device("meta"):
        return [Bare() for _ in range(count)]


class Theirs:
    """PEFT on a fresh model of transformers, without data either."""

    def __init__(self, blocks: int) -> None:
        import peft
        import transformers

        options = models.llama_config(64, blocks)
        del options["model_type"]
        self.config = transformers.LlamaConfig(**options)
        self.lora = peft.LoraConfig(r=8, lora_alpha=8, target_modules=[*PER_BLOCK, "lm_head"])
        self.made: Any = None

    def prepare(self) -> None:
        import transformers

        self.made = None
        with torch.device("meta"):
            self.made = transformers.LlamaForCausalLM(self.config).requires_grad_(False)

    def adapt(self) -> Any:
        import peft

        with torch.device("meta"):
            return peft.inject_adapter_in_model(self.lora, self.made)


def run(setting: Setting) -> Result:
    """Times of ours over all sizes, of PEFT up to 739 layers, which take it seconds."""
    result = result_of(WORKLOAD, setting, bandwidth(setting))
    sizes = BLOCKS[:2] if setting.quick else BLOCKS
    _compare(setting, sizes[0])
    times = {layers(blocks): _times(setting, blocks) for blocks in sizes}
    for count in times if setting.quick else (layers(MARKED),):
        _mark(result, count, times[count])
    heads = {"bare": "bare modules", "ours": "inarch", "theirs": "PEFT"}
    rows: list[list[str]] = []
    for count, samples in times.items():
        medians = [seconds(samples.median(who)) if who in samples.times else "" for who in heads]
        faster = samples.ratio("theirs", "ours").text() if "theirs" in samples.times else ""
        rows.append([str(count), *medians, faster])
    result.tables.append(Table("A LoRA", ["layers", *heads.values(), "times faster"], rows))
    lines: list[Line] = []
    for who in ("ours", "theirs", "bare"):
        known = {count: one.median(who) for count, one in times.items() if who in one.times}
        lines.append(fitted(heads[who], [*known], [*known.values()]))
    result.pictures.append(Picture("Adapting on meta", "adapted layers", "seconds", lines))
    calls = counted_exponent((2, 4) if setting.quick else (16, 32, 64, 123))
    result.counters["exponent of function calls"] = calls
    result.counters["function calls a layer"] = round(calls_a_layer(), 1)
    result.marks.append(Mark("exponent of function calls", round(calls, 2), 1.0, counted=True))
    result.remarks.append(
        "On the meta device no bytes are moved: the limit is torch's own modules. Bare modules are "
        "as many as the layers, each with two parameters, made one by one and put nowhere."
    )
    return result


def _times(setting: Setting, blocks: int) -> Samples:
    """Ours and bare modules, and PEFT where it doesn't take it too long."""
    base, peer = models.on_meta("llama", models.llama_config(64, blocks)), Theirs(blocks)
    runs: dict[str, Any] = {"ours": partial(adapt, base), "bare": partial(bare, layers(blocks))}
    before: dict[str, Any] = {}
    if blocks <= MARKED:
        runs["theirs"], before["theirs"] = peer.adapt, peer.prepare
    return interleaved(runs, setting, before=before)


def _mark(result: Result, count: int, times: Samples) -> None:
    ms, faster = spread([1000 * t for t in times.times["ours"]]), times.ratio("theirs", "ours")
    result.marks += [
        Mark(f"{count} layers, ms", ms.median, 60, spread=ms),
        Mark(f"{count} layers, times faster than PEFT", faster.median, 30, "at least", faster),
    ]
    beside = times.ratio("theirs", "bare").median
    result.counters["bare modules, times faster than PEFT"] = round(beside, 1)


def _compare(setting: Setting, blocks: int) -> None:
    """Both adapt the same layers, with tensors of the same shapes."""
    base, peer = models.on_meta("llama", models.llama_config(64, blocks)), Theirs(blocks)
    ours = {n: p.shape for n, p in adapt(base).adapter_parameters("lora").items()}
    peer.prepare()
    made = {n.replace(".default.weight", ""): p for n, p in peer.adapt().named_parameters()}
    theirs = {n: p.shape for n, p in made.items() if "lora_" in n}
    setting.compare("adapted layers and shapes", ours == theirs, True)
