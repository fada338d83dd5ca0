"""StyleAligned keeps what any adapter keeps."""

from __future__ import annotations

from inarch.testing import Conformance


class TestStyleAligned(Conformance):
    adapter = "style-aligned"
    mergeable = False
