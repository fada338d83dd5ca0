"""ControlNet keeps what any adapter keeps."""

from __future__ import annotations

from inarch.testing import Conformance


class TestControlNet(Conformance):
    adapter = "controlnet"
    options = {"widths": (2, 3)}
    mergeable = False
