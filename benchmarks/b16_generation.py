"""B16: tokens a second of generation with a cache, one prompt, the likeliest token each time.

What a token needs at least is to read every weight once, so the limit is the bytes of the weights
over the memory's bandwidth. Equal means the very same tokens.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch

from benchmarks import models
from benchmarks.measure import Samples, Setting, bandwidth, interleaved, tensor_bytes
from benchmarks.result import Limit, Mark, Result, Table, Workload, number, result_of, seconds
from inarch.adapters import Model

WORKLOAD = Workload(
    "B16",
    "Generation with a cache, tokens a second",
    "transformers `generate`",
    "at least 1.3x; the share of weights' bytes over bandwidth reported",
    ("transformers",),
)
SIZES = {"narrow": (256, 12), "wide": (1024, 12)}
"""Width and layers: one where dispatch counts and one where reading the weights does."""


def run(setting: Setting) -> Result:
    result = result_of(WORKLOAD, setting, bandwidth(setting))
    rows: list[list[str]] = []
    for name, (width, layers) in ({"narrow": (64, 2)} if setting.quick else SIZES).items():
        times, tokens, weights = _size(setting, name, width, layers)
        ours = [who for who in times.times if who != "transformers"]
        best = min(ours, key=times.median)
        faster = times.ratio("transformers", best)
        what = f"{name}: tokens a second over transformers' ({best})"
        result.marks.append(Mark(what, faster.median, 1.3, "at least", faster))
        for who in times.times:
            each = times.median(who) / tokens
            faster = times.ratio("transformers", who).text() if who != "transformers" else ""
            size = f"{name}: d = {width}, {layers} layers"
            rows.append([size, who, f"{number(round(1 / each, 1))}/s", seconds(each), faster])
            result.limits.append(Limit(f"{name}, {who}: a token", weights, each, result.bandwidth))
    columns = ["model", "", "tokens", "a token", "over transformers"]
    result.tables.append(Table("Generation, one prompt of 16 tokens", columns, rows))
    return result


def _size(setting: Setting, name: str, width: int, layers: int) -> tuple[Samples, int, int]:
    tokens = 4 if setting.quick else 48
    config = models.llama_config(width, layers)
    base = models.built("llama", config, setting)
    theirs: Any = models.in_transformers(base, config, setting)
    prompt = models.token_ids(1, 16, setting)
    kept = {"max_new_tokens": tokens, "min_new_tokens": tokens, "do_sample": False}

    def generate() -> list[int]:
        mask = torch.ones_like(prompt)
        made = theirs.generate(prompt, attention_mask=mask, pad_token_id=0, **kept)
        return made[0, prompt.shape[1] :].tolist()

    runs = {"inarch": lambda: _ours(base, prompt, tokens), "transformers": generate}
    if _compiles(base) and not setting.quick:
        runs["inarch, compiled"] = lambda: _ours(base, prompt, tokens, compile=True)
    expected = generate()
    for who, call in runs.items():
        setting.compare(f"{name}: tokens of {who}", call(), expected)
    weights = tensor_bytes(list(base.tree.state_dict().values()))
    return interleaved(runs, setting), tokens, weights


def _ours(base: Model, prompt: torch.Tensor, tokens: int, **options: Any) -> list[int]:
    generate: Callable[..., Any] = base.generate_ids  # type: ignore[attr-defined]
    steps = generate(prompt.tolist(), max_new_tokens=tokens, stop=frozenset(), **options)
    return [row[0] for row in steps]


def _compiles(base: Model) -> bool:
    generate: Callable[..., Any] = base.generate_ids  # type: ignore[attr-defined]
    return "compile" in inspect.signature(generate).parameters
