"""Every installed adapter over two processes: the outputs and gradients of one, or a refusal."""

from __future__ import annotations

from typing import Any

import pytest
from scenes import kinds_for
from starting import asked_of

FAMILIES = ("clip", "llama", "stable-diffusion")
ASKED = [
    (family, kind, plan)
    for family in FAMILIES
    for kind in kinds_for(family)
    for plan in ("tensor", "fsdp")
]
REFUSED = {("stable-diffusion", "sag", "tensor"): "attn1.query"}
"""It reads the map of all heads at once."""

pytestmark = pytest.mark.xdist_group("two processes")


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return asked_of(2, [("every", *one) for one in ASKED], tmp_path_factory.mktemp("every"))


@pytest.mark.parametrize("case", ASKED, ids="-".join)
def test_two_processes_give_what_one_gives_and_its_gradients(
    case: tuple[str, str, str], found: list[dict[str, Any]]
) -> None:
    for one in found:
        result = one["-".join(("every", *case))]
        if case in REFUSED:
            assert result["refused"] == "IA881"
            assert REFUSED[case] in result["where"]
            assert result["remedy"] == "shard with fsdp or replicate"
        else:
            assert result["names"]
            assert result["far"] < 1e-5
