"""Adapters add no collective: each block has as many with them as without."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "processes"))

from starting import asked_of

MODEL, BLOCKS = "grouped queries", 2
STACKS = ("none", "lora", "stack", "prefix")
Counts = dict[str, dict[str, int]]

pytestmark = pytest.mark.xdist_group("two processes")


@pytest.fixture(scope="module")
def counts(tmp_path_factory: pytest.TempPathFactory) -> Counts:
    """What one of two processes counted, by plan and stack."""
    asked = [
        ("counted", MODEL, stack, plan)
        for plan in ("tensor", "fsdp", "replicate")
        for stack in (*STACKS, "dora")
    ]
    first, second = asked_of(2, asked, tmp_path_factory.mktemp("collectives"))
    assert first == second
    return {f"{plan} {stack}": first["-".join(one)] for one in asked for _, _, stack, plan in [one]}


@pytest.mark.parametrize("stack", STACKS)
def test_split_layers_have_two_collectives_a_block_each_way(stack: str, counts: Counts) -> None:
    found = counts[f"tensor {stack}"]
    assert (found["forward"], found["backward"]) == (2 * BLOCKS, 2 * BLOCKS)


@pytest.mark.parametrize("stack", STACKS[1:])
def test_fsdp_gathers_and_reduces_no_oftener_for_adapters(stack: str, counts: Counts) -> None:
    assert counts[f"fsdp {stack}"] == counts["fsdp none"]


@pytest.mark.parametrize("stack", STACKS)
def test_gradients_are_added_up_once_a_step(stack: str, counts: Counts) -> None:
    assert {n: c for n, c in counts[f"replicate {stack}"].items() if c} == {"step": 1}
    # Of split layers only adapters have tensors of which each process has a part of the gradient.
    assert counts[f"tensor {stack}"]["step"] == int(stack != "none")


def test_norms_of_dora_beside_rows_are_asked_for_where_it_learns(counts: Counts) -> None:
    found = counts["tensor dora"]
    each = [found[name] / BLOCKS for name in ("first", "forward", "backward", "without gradients")]
    assert each == [4, 4, 2, 2]
