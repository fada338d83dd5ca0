"""LoRA keeps what any adapter keeps."""

from __future__ import annotations

from inarch.testing import Conformance


class TestLoRA(Conformance):
    adapter = "lora"
    options = {"rank": 2}
    mergeable = True
