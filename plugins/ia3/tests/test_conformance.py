"""(IA)^3 keeps what any adapter keeps."""

from __future__ import annotations

from inarch.testing import Conformance


class TestIA3(Conformance):
    adapter = "ia3"
    mergeable = True
