"""A reference keeps what any adapter keeps."""

from __future__ import annotations

from inarch.testing import Conformance


class TestReferenceAttention(Conformance):
    adapter = "reference"
    mergeable = False


class TestReferenceStatistics(Conformance):
    adapter = "reference"
    options = {"reference_attn": False, "reference_adain": True, "gn_weight": 2.0}
    mergeable = False
