"""IP-Adapter keeps what any adapter keeps."""

from __future__ import annotations

from inarch.testing import Conformance


class TestIPAdapter(Conformance):
    adapter = "ip-adapter"
    options = {"embedding": 5, "tokens": 2}
    mergeable = False
