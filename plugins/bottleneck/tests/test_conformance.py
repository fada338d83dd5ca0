"""Bottlenecks keep what any adapter keeps."""

from __future__ import annotations

from inarch.testing import Conformance


class TestHoulsby(Conformance):
    adapter = "bottleneck"
    options = {"kind": "houlsby", "reduction": 4, "norm_before": True, "scaling": "learned"}
    mergeable = False


class TestParallel(Conformance):
    adapter = "bottleneck"
    options = {"kind": "parallel", "attention": True, "norm_after": True}
    mergeable = False
