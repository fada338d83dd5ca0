"""Multidiffusion keeps what any adapter keeps."""

from __future__ import annotations

from inarch.testing import Conformance


class TestMultidiffusion(Conformance):
    adapter = "multidiffusion"
    options = {"window": 8, "stride": 4}  # smaller than the picture, or it does nothing
    mergeable = False
