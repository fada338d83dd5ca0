"""LoRA and its kin keep what any adapter keeps."""

from __future__ import annotations

from inarch.testing import Conformance


class TestLoRA(Conformance):
    adapter = "lora"
    options = {"rank": 2}
    mergeable = True


class TestDoRA(Conformance):
    adapter = "lora"
    options = {"rank": 2, "use_dora": True}
    families = ("llama",)
    mergeable = True
    vanishes = False  # the magnitude stays, as in PEFT, whose scale is that of the product
    differentiable = False  # the norm counts as a constant, as the paper's section 4.3 has it


class TestLoHa(Conformance):
    adapter = "lora"
    options = {"rank": 2, "algorithm": "loha"}
    families = ("llama",)
    mergeable = True


class TestLoKr(Conformance):
    adapter = "lora"
    options = {"rank": 2, "algorithm": "lokr"}
    families = ("llama",)
    mergeable = True


class TestPiSSA(Conformance):
    adapter = "lora"
    options = {"rank": 2, "start": "pissa"}
    families = ("llama",)
    mergeable = True
