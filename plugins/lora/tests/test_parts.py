"""Beside a split layer, each process's part of an edge makes its part of what the whole does."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from inarch.adapters.placement import Split, Unplaceable
from inarch.distribute.parts import layer_placements, part_of_module
from inarch.nn import TransposedLinear
from inarch_lora.edges import edge_for
from inarch_lora.terms import Term

INPUTS, OUTPUTS, RANK, PARTS = 8, 12, 3, 2
LORA = {"lora_A": (RANK, INPUTS), "lora_B": (OUTPUTS, RANK)}
LOHA = {f"hada_w{n}_{s}": size for n in (1, 2) for s, size in (("a", (12, 3)), ("b", (3, 8)))}
TERMS: dict[str, dict[str, Any]] = {
    "lora": {"algorithm": "lora", "shapes": LORA},
    "both biases": {
        "algorithm": "lora",
        "shapes": {**LORA, "lora_B_bias": (OUTPUTS,), "bias": (OUTPUTS,)},
    },
    "dora": {"algorithm": "lora", "shapes": LORA, "decompose": "peft"},
    "pissa": {"algorithm": "lora", "shapes": LORA, "start": "pissa"},
    "decomposed outputs": {
        "algorithm": "lora",
        "shapes": {**LORA, "dora_scale": (OUTPUTS, 1)},
        "decompose": "lycoris",
    },
    "decomposed inputs": {
        "algorithm": "lora",
        "shapes": {**LORA, "dora_scale": (1, INPUTS)},
        "decompose": "lycoris",
    },
    "loha": {"algorithm": "loha", "shapes": LOHA},
    "lokr": {"algorithm": "lokr", "shapes": {"lokr_w1": (4, 2), "lokr_w2": (3, 4)}},
    "lokr of products": {
        "algorithm": "lokr",
        "shapes": {
            "lokr_w1_a": (4, RANK),
            "lokr_w1_b": (RANK, 2),
            "lokr_w2_a": (3, RANK),
            "lokr_w2_b": (RANK, 4),
        },
    },
    "oft": {
        "algorithm": "oft",
        "shapes": {"oft_blocks": (4, 3, 3), "oft_rescale": (OUTPUTS, 1)},
        "scaling": 0.0,
    },
    "bounded oft": {"algorithm": "oft", "shapes": {"oft_blocks": (4, 3, 3)}, "scaling": 0.01},
    "full": {"algorithm": "full", "shapes": {"diff": (OUTPUTS, INPUTS), "diff_b": (OUTPUTS,)}},
    "bias": {"algorithm": "bias", "shapes": {"bias": (OUTPUTS,)}},
}


class Meeting:
    """Adds up what threads have, each of which is one of the processes."""

    def __init__(self) -> None:
        self.barrier, self.values = threading.Barrier(PARTS), [torch.empty(0)] * PARTS

    def total(self, value: Tensor, *, part: int) -> Tensor:
        self.values[part] = value
        self.barrier.wait(20)
        summed = torch.stack(self.values).sum(0)
        self.barrier.wait(20)
        return summed


def edge_beside(layer: nn.Module, **term: Any) -> Any:
    """An edge of random parameters, as a file would fill it."""
    edge: Any = edge_for(layer, Term(address="layer", rank=RANK, **term))
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in edge.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    edge.settle(layer, loaded=True)
    edge.rescale(0.7)
    return edge


def parts_of(edge: Any, layer: nn.Module, kind: Any) -> list[tuple[Any, Any]]:
    """Each process's part of the layer and of the edge beside it."""
    found: list[tuple[Any, Any]] = []
    meeting = Meeting()
    for part in range(PARTS):
        total = partial(meeting.total, part=part)
        split = Split(kind, part, PARTS, total=total)
        own = part_of_module(layer, layer_placements(layer, split), split)
        found.append((own, part_of_module(edge, edge.placements(split), split, own)))
    return found


def joined(parts: list[tuple[Any, Any]], x: Tensor, kind: str) -> Tensor:
    """What processes make together of an input."""
    own = [x] * PARTS if kind == "columns" else x.chunk(PARTS, -1)
    with ThreadPoolExecutor(PARTS) as threads:
        terms = list(threads.map(lambda v, pair: pair[1](v, plus=pair[0](v)), own, parts))
    return torch.cat(terms, -1) if kind == "columns" else torch.stack(terms).sum(0)


@pytest.mark.parametrize("kind", ["columns", "rows"])
@pytest.mark.parametrize("name", TERMS)
def test_parts_and_their_gradients_make_what_the_whole_makes(name: str, kind: str) -> None:
    torch.manual_seed(0)
    layer, x = nn.Linear(INPUTS, OUTPUTS), torch.randn(2, 5, INPUTS)
    edge = edge_beside(layer, **TERMS[name])
    whole = edge(x, plus=layer(x))
    assert (whole - layer(x)).abs().max() > 0.05
    parts = parts_of(edge, layer, kind)
    together = joined(parts, x, kind)
    torch.testing.assert_close(together, whole)
    expected = torch.autograd.grad(whole.square().sum(), list(edge.parameters()))
    together.square().sum().backward()
    rules = edge.placements(Split(kind, 0, PARTS))  # type: ignore[arg-type]
    for (path, _), gradient in zip(edge.named_parameters(), expected, strict=True):
        own = [part.get_parameter(path).grad for _, part in parts]
        given = torch.cat(own, rules[path].dim) if rules[path].kind == "shard" else own[0]
        torch.testing.assert_close(given, gradient, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["columns", "rows"])
@pytest.mark.parametrize("name", ["lora", "pissa", "full"])
def test_parts_beside_gpt_2s_layer_are_cut_the_other_way(name: str, kind: str) -> None:
    torch.manual_seed(0)
    layer, x = TransposedLinear(INPUTS, OUTPUTS), torch.randn(2, 5, INPUTS)
    term = dict(TERMS[name])
    if name == "full":
        term["shapes"] = {"diff": (INPUTS, OUTPUTS), "diff_b": (OUTPUTS,)}
    edge = edge_beside(layer, **term)
    whole = edge(x, plus=layer(x))
    torch.testing.assert_close(joined(parts_of(edge, layer, kind), x, kind), whole)


def test_an_edge_between_split_layers_is_refused() -> None:
    edge = edge_beside(nn.Linear(INPUTS, OUTPUTS), **TERMS["lora"])
    with pytest.raises(Unplaceable, match="does not say"):
        edge.placements(Split("inside", 0, PARTS))
