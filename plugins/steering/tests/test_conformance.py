"""A steering vector keeps what any adapter keeps."""

from __future__ import annotations

from inarch.testing import Conformance


class TestSteering(Conformance):
    adapter = "steering"
    families = ("llama",)
    mergeable = False
