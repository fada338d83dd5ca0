"""What is counted rather than timed, so that it can be asserted on any machine."""

from __future__ import annotations

import math

import pytest
import torch

from benchmarks import (
    b02_lora,
    b05_adapt,
    b06_lifecycle,
    b07_swap,
    b08_merge,
    b10_loading,
    b11_compile,
    b12_discovery,
    models,
)
from benchmarks.compiling import SUBJECTS
from benchmarks.measure import Setting


def test_a_lora_adds_two_operations_to_its_layer() -> None:
    assert b02_lora.added_operations(1) == 2


def test_eight_loras_add_as_many_operations_as_one_once_they_are_put_together() -> None:
    assert b02_lora.added_operations(8) == 2


def test_twenty_swaps_to_other_ranks_and_alphas_compile_nothing() -> None:
    assert b07_swap.recompilations(20) == 0


def test_adapting_grows_as_the_layers_do() -> None:
    assert 0.5 < b05_adapt.counted_exponent((8, 16, 32, 64)) < 1.02


def test_adapting_a_layer_takes_few_function_calls() -> None:
    assert b05_adapt.calls_a_layer() < 180


def test_adapting_rescaling_and_dropping_cost_the_same_with_fifty_loaded() -> None:
    grown = b06_lifecycle.growth((1, 50))
    assert max(grown.values()) <= 1.01


def test_a_stack_of_fifty_is_not_made_anew_for_one_adapter_more_or_less() -> None:
    few, many = (b06_lifecycle.growth((1, n), b06_lifecycle.Stacked, 4) for n in (10, 50))
    assert many["rescale"] <= 1.01
    for action, most in (("adapt", 0.7), ("drop", 0.9)):
        assert math.log(many[action] / few[action]) / math.log(50 / 10) < most, action
    assert many["adapt"] < 4
    assert many["drop"] < 10


@pytest.mark.parametrize("dtype", b08_merge.DTYPES, ids=str)
def test_a_hundred_merges_leave_every_bit_of_the_base(dtype: torch.dtype) -> None:
    assert b08_merge.changed(dtype, 100) == 0


def test_a_thousand_distributions_are_answered_for_from_the_files_of_sixty() -> None:
    with models.folder() as where:
        few, many = (b12_discovery.installed(count, where) for count in (60, 1000))
        for environment in (few, many):
            b12_discovery.answered(environment)
        less, more = b12_discovery.counted(few), b12_discovery.counted(many)
    assert more[0] == less[0], "files and folders opened"
    assert (more[1] - less[1]) / 940 < 20, "function calls for each distribution more"
    assert (less[2], more[2]) == (0, 0), "torch was imported"


@pytest.mark.parametrize(("label", "width"), [("Llama", 512), ("UNet", 96)])
def test_loading_makes_no_second_copy(label: str, width: int) -> None:
    setting = Setting()
    with models.folder() as where:
        b10_loading.KINDS[label].saved(width, setting, where)
        assert b10_loading.copies("inarch", label, where, setting) < 1.1


@pytest.mark.parametrize(("label", "plain"), [("Llama", 1), ("UNet", 2)])
def test_compiling_makes_one_graph_for_each_structure_and_none_for_further_adapters(
    label: str, plain: int
) -> None:
    found = b11_compile.counted(SUBJECTS[label](Setting(quick=True)), 20)
    assert found["breaks"] == 0
    assert found["whole"] == 1
    assert (found["blocks"], found["structures"]) == (3, 3)
    assert (found["first"], found["adapted structures"], found["cycles"]) == (plain, plain, 0)
