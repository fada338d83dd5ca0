"""Textual inversion keeps what any adapter keeps."""

from __future__ import annotations

from inarch.testing import Conformance


class TestTextualInversion(Conformance):
    adapter = "textual-inversion"

    # No example has a learned word in it; test_words.py holds what they do.
    test_a_step_lowers_the_loss_it_was_made_for = None
    test_a_trained_one_has_an_effect = None
    test_differently_trained_ones_differ = None
    test_in_bfloat16_it_takes_the_base_s_dtype = None
    test_only_its_parameters_move_in_a_step = None
