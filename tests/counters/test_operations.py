"""What is counted rather than timed, so that it can be asserted on any machine."""

from __future__ import annotations

from benchmarks import b02_lora, b05_adapt


def test_a_lora_adds_two_operations_to_its_layer() -> None:
    assert b02_lora.added_operations(1) == 2


def test_adapting_grows_as_the_layers_do() -> None:
    assert 0.9 < b05_adapt.counted_exponent((8, 16, 32, 64)) < 1.02
