"""SAG keeps what any adapter keeps."""

from __future__ import annotations

from inarch.testing import Conformance


class TestSAG(Conformance):
    adapter = "sag"
    mergeable = False
