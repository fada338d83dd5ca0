"""T2I-Adapter keeps what any adapter keeps."""

from __future__ import annotations

from inarch.testing import Conformance


class TestT2IAdapter(Conformance):
    adapter = "t2i-adapter"
    options = {"layers": 1, "downscale": 2}
    mergeable = False
