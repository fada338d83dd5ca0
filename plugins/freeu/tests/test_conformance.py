"""FreeU keeps what any adapter keeps."""

from __future__ import annotations

from inarch.testing import Conformance


class TestFreeU(Conformance):
    adapter = "freeu"
    mergeable = False
