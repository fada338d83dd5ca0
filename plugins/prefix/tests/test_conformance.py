"""Virtual tokens keep what any adapter keeps."""

from __future__ import annotations

from inarch.testing import Conformance


class TestPrefix(Conformance):
    adapter = "prefix"
    options = {"tokens": 3}
    mergeable = False


class TestPromptTuning(Conformance):
    adapter = "prompt-tuning"
    options = {"tokens": 3}
    mergeable = False
