"""What a picture is made of: lines that are the printed tree's, sizes, and inputs."""

from __future__ import annotations

import json
import re
from typing import Any

import inarch
from inarch.plugins.index import Finding
from inarch.resolve import resolve
from inarch.tree import Edit
from inarch_view.account import accounts_of, inputs_of, operations_of
from inarch_view.graph import dot, mermaid
from inarch_view.notebook import fragment
from inarch_view.outline import outlines, roles_of
from inarch_view.page import page


def test_the_lines_of_a_picture_are_those_of_the_printed_tree(model: Any) -> None:
    def printed(line: Any) -> list[str]:
        label = line.label
        if line.folded:
            label = f"({line.folded[0]}-{line.folded[-1]}) x{len(line.folded)}"
        own = f"{label}: {line.text}" if label else line.text
        return [own, *(text for below in line.below for text in printed(below))]

    root = outlines(model)[0][""]
    drawn = [re.sub(r"^[│├└─ ]*", "", line) for line in repr(model.tree).splitlines()]
    assert printed(root) == drawn


def test_an_adapters_account_counts_what_it_brought(model: Any) -> None:
    pirate, terse = accounts_of(model, roles_of(model))
    assert (pirate.edits, terse.edits) == ({"add": 12}, {"add": 8})
    assert pirate.parameters == sum(
        p.numel() for p in model.adapters["pirate"].parameters().values()
    )
    assert pirate.bytes == 4 * pirate.parameters
    assert pirate.roles == ["mlp.gate", "mlp.up", "mlp.down"]


def test_a_new_input_comes_first_and_says_who_asks(base: Any) -> None:
    def shifted(x: Any, *, offset: Any) -> Any:
        return x + offset

    edit = Edit.after("model.norm", shifted, "shift", inputs=("offset",))
    adapted = base.without()
    adapted.trees = {"": base.tree.edit([edit])}
    first = inputs_of(adapted)[0]
    assert (first.name, first.new) == ("offset", True)
    assert first.asked == "model.norm"


def test_data_in_a_page_can_not_end_its_script(base: Any) -> None:
    text = page(base, "</script><b>")
    data = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)
    assert data is not None
    assert json.loads(data.group(1))["title"] == "</script><b>"
    assert "<title>&lt;/script&gt;&lt;b&gt;" in text


def test_a_page_asks_for_nothing_from_anywhere(model: Any) -> None:
    text = page(model)
    assert not re.search(r"""(src|href)=["'](?!data:,)""", text)
    assert "http" not in text


def test_graphs_hold_every_adapter_once_for_folded_layers(model: Any) -> None:
    for graph in (dot(model), mermaid(model)):
        assert graph.count("up_proj__pirate") == 1
        assert graph.count("q_proj__terse") == 1


def test_a_notebook_shows_a_closed_fold(model: Any) -> None:
    html = fragment(model)
    assert html.startswith("<details")
    assert "<details open" not in html
    assert "script" not in html
    assert model._repr_html_() == html


def test_an_unadapted_model_draws_too(base: Any) -> None:
    assert "None: this is the base" in page(base)
    assert base._repr_html_().startswith("<details")


def test_scale_is_shown_as_it_is_now(base: Any) -> None:
    model = base.adapt(inarch.adapter("lora", name="a", scale=0.5))
    model.adapters["a"].scale = 0.25
    assert accounts_of(model, {})[0].scale == 0.25


def test_plans_and_findings_show_themselves_in_notebooks(base: Any) -> None:
    plan = resolve(base, inarch.adapter("lora", name="one"), inarch.adapter("lora", name="two"))
    assert plan._repr_html_().startswith("<details")
    assert "either order is the same program" in plan._repr_html_()
    finding = Finding("IA302", "pkg", "a <b> is malformed", where="here", remedy="mend it")
    assert "a &lt;b&gt; is malformed" in finding._repr_html_()


def test_added_operations_are_two_for_each_layer_of_a_lora(model: Any) -> None:
    assert operations_of(model, "pirate") == 2 * 12
    assert operations_of(model, "terse") == 2 * 8
