"""The conformance kit: what every adapter and every foundation model keeps, as tests to inherit.

An adapter's package gets all of them from five lines::

    from inarch.testing import Conformance

    class TestLoRA(Conformance):
        adapter = "lora"
        options = {"rank": 4}

They run on tiny random models of every installed family that the adapter fits, and beside every
other adapter that is installed. A foundation model's package inherits from `ModelConformance`.
"""

from __future__ import annotations

import importlib.util

from inarch.errors import InarchError

for _name in ("pytest", "hypothesis"):
    if importlib.util.find_spec(_name) is None:
        raise InarchError(
            "IA851",
            f"the conformance kit needs {_name}",
            where="inarch.testing",
            why="it is no dependency of inarch itself",
            remedy="pip install 'inarch[testing]'",
        )

import pytest  # noqa: E402

_TESTS = ("algebra", "bystander", "files", "footprint", "matrix", "model", "running", "training")
pytest.register_assert_rewrite(*(f"inarch.testing.{name}" for name in _TESTS))

from inarch.testing.bystander import Bystander  # noqa: E402
from inarch.testing.conformance import Conformance  # noqa: E402
from inarch.testing.model import ModelConformance  # noqa: E402
from inarch.testing.subject import outputs, same_bits, trained  # noqa: E402
from inarch.testing.tiny import Tiny, tiny_models  # noqa: E402

__all__ = [
    "Bystander",
    "Conformance",
    "ModelConformance",
    "Tiny",
    "outputs",
    "same_bits",
    "tiny_models",
    "trained",
]
