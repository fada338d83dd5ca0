"""Whether an adapter fits a model, from what both manifests say of roles."""

from __future__ import annotations

from fnmatch import fnmatchcase

import pytest

from inarch.plugins.fit import misfit
from inarch.plugins.manifest import AdapterEntry, ModelEntry

ROLES = {"attention.query": "q", "cross_attention.key": "k", "mlp.up": "u", "head": "h"}
MODEL = ModelEntry(id="m", model_types=[], roles=ROLES)


@pytest.mark.parametrize(
    "wanted",
    [
        "head",
        "heads",
        "attention.*",
        "attention.",
        "*",
        "*.up",
        "*.query*",
        "ml[p].*",
        "hea?",
        "x*",
    ],
)
def test_a_role_is_met_by_a_name_or_a_pattern_of_names(wanted: str) -> None:
    told = misfit(AdapterEntry(id="a", roles=[wanted]), MODEL)
    assert (told == "") == any(fnmatchcase(role, wanted) for role in ROLES)
    assert wanted in told or told == ""


def test_every_role_that_is_lacking_is_named() -> None:
    entry = AdapterEntry(id="a", roles=["head", "conv.in", "block.*"])
    assert misfit(entry, MODEL) == "m has no role conv.in, block.*"
