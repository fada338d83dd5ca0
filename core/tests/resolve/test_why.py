"""`tree --why` tells who put what at a site, in which order, and why."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from stacks import made

from inarch.adapters import Model
from inarch.cli.why import told, why
from inarch.errors import InarchError

FC = "layers.0.inner.fc"


def test_edits_are_told_in_their_order_with_the_reason_and_the_lines(
    base: Model, installed: Callable[..., Any], capsys: Any
) -> None:
    installed(ia3={"after": ["plain"], "distribution": "inarch-ia3", "version": "3"})
    model = base.adapt(
        made("a", f"scale {FC}", use="ia3"), made("z", f"add {FC}"), made("m", "add head")
    )
    data = told(model, FC)
    assert [(edit["adapter"], edit["kind"]) for edit in data["edits"]] == [
        ("z", "add"),
        ("a", "scale"),
    ]
    assert data["edits"][1]["plugin"] == "ia3 (inarch-ia3 3)"
    [verdict] = data["verdicts"]
    assert (verdict["pair"], verdict["verdict"]) == (["z", "a"], "ordered")
    assert data["source"] == [
        "fc = self.fc(x)",
        "fc__z = self.fc__z(x)",
        "x_2 = fc + fc__z",
        "fc__a = self.fc__a(x)",
        "fc = x_2 * fc__a",
    ]
    why(model, FC, False)
    out = capsys.readouterr().out
    assert "1. z adds" in out
    assert "2. a scales" in out
    assert "ia3 declares after plain" in out


def test_a_site_nobody_touched_says_so(base: Model, capsys: Any) -> None:
    why(base, "head", False)
    assert capsys.readouterr().out.splitlines()[:2] == [
        "head: Linear",
        "no adapter has an edit here",
    ]


def test_an_address_that_is_none_is_refused_with_the_nearest(base: Model) -> None:
    with pytest.raises(InarchError) as caught:
        why(base, "layers.0.inner.fd", False)
    assert (caught.value.code, FC in caught.value.remedy) == ("IA702", True)
