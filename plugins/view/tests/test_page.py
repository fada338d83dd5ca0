"""The page in a browser: what a person clicks, types and reads on it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

import inarch
from inarch.resolve import resolve
from inarch_view.page import page, plan_page


@pytest.fixture
def opened(browser: Any, model: Any, tmp_path: Path) -> Any:
    file = tmp_path / "page.html"
    file.write_text(page(model, "a small model"), "utf-8")
    browser.set_window_size(1300, 900)
    browser.get(file.as_uri())
    yield browser
    assert [line["message"] for line in browser.get_log("browser")] == []


def rows(browser: Any, text: str) -> list[Any]:
    return [row for row in browser.find_elements(By.CSS_SELECTOR, ".row") if text in words(row)]


def words(element: Any) -> str:
    return " ".join(element.text.split())


def panel(browser: Any) -> str:
    return browser.find_element(By.ID, "panel").text


def test_equal_layers_are_folded_and_unfold_one_by_one(opened: Any, shots: Path) -> None:
    assert len(rows(opened, "(0-3)")) == 1
    opened.save_screenshot(str(shots / "folded.png"))
    opened.find_element(By.CSS_SELECTOR, ".times").click()
    assert not rows(opened, "(0-3)")
    labels = [one.text for one in opened.find_elements(By.CSS_SELECTOR, ".row .label")]
    assert [n for n in labels if n.isdigit()] == ["0", "1", "2", "3"]


def test_a_click_on_a_chain_shows_its_source_before_and_after(opened: Any, shots: Path) -> None:
    rows(opened, "mlp Chain")[0].click()
    text = panel(opened)
    assert "model.layers.{0-3}.mlp" in text
    assert "- return self.down_proj(x)" in " ".join(text.split())
    plus = [one.text for one in opened.find_elements(By.CSS_SELECTOR, "pre .plus")]
    assert any("self.up_proj__pirate__terse_(x, plus=up_proj)" in line for line in plus)
    named = opened.find_elements(By.CSS_SELECTOR, "pre .plus b")
    assert {"up_proj__pirate", "__terse_"} <= {owner.text for owner in named}
    for owner in named:
        name = owner.text.rpartition("__")[2].removesuffix("_")
        button = opened.find_element(By.CSS_SELECTOR, f"button[data-adapter={name}]")
        assert owner.value_of_css_property("color") == button.value_of_css_property("color")
    opened.save_screenshot(str(shots / "source.png"))


def test_a_site_where_two_meet_says_why_that_is_allowed(opened: Any) -> None:
    rows(opened, "up_proj Linear")[0].click()
    text = panel(opened)
    assert "mlp.up" in text
    assert "pirate adds to what the site gives" in text
    assert "terse adds to what the site gives" in text
    assert "commute" in text


def test_search_finds_addresses_and_roles_in_folded_layers(opened: Any) -> None:
    box = opened.find_element(By.ID, "search")
    box.send_keys("layers.2.mlp.up_proj")
    assert opened.find_element(By.CSS_SELECTOR, "[role=status]").text.startswith("3 sites")
    assert "model.layers.2.mlp.up_proj" in panel(opened)
    box.send_keys(Keys.ESCAPE)
    assert not opened.find_elements(By.CSS_SELECTOR, ".row.hit")
    box.send_keys("attention.key")
    assert opened.find_element(By.CSS_SELECTOR, "[role=status]").text == "4 sites"
    box.clear()
    box.send_keys("no such thing")
    assert opened.find_element(By.CSS_SELECTOR, "[role=status]").text == "no site"


def test_an_adapter_can_be_singled_out(opened: Any) -> None:
    opened.find_element(By.CSS_SELECTOR, "button[data-adapter=terse]").click()
    faded = {words(one) for one in opened.find_elements(By.CSS_SELECTOR, ".faded > .row")}
    assert any("down_proj Linear" in text for text in faded)
    assert not any("up_proj Linear" in text for text in faded)


def test_an_input_shows_where_it_flows(opened: Any) -> None:
    buttons = opened.find_elements(By.CSS_SELECTOR, "#inputs button")
    next(one for one in buttons if one.text == "positions").click()
    flowing = opened.find_elements(By.CSS_SELECTOR, ".row.flow .text")
    assert any("use positions" in one.text for one in flowing)


def test_the_keyboard_moves_folds_and_searches(opened: Any) -> None:
    body = opened.find_element(By.CSS_SELECTOR, "li[role=treeitem]")
    body.send_keys(Keys.ARROW_DOWN)
    assert panel(opened).startswith("model")
    opened.switch_to.active_element.send_keys(Keys.ARROW_LEFT)
    assert opened.switch_to.active_element.get_attribute("aria-expanded") == "false"
    opened.switch_to.active_element.send_keys("/")
    assert opened.switch_to.active_element.get_attribute("id") == "search"


def test_a_narrow_page_scrolls_down_only(opened: Any, shots: Path) -> None:
    opened.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": 400, "height": 800, "deviceScaleFactor": 1, "mobile": True},
    )
    try:
        rows(opened, "mlp Chain")[0].click()
        width = opened.execute_script("return document.documentElement.scrollWidth")
        opened.save_screenshot(str(shots / "narrow.png"))
        assert width <= 400
        assert (
            opened.execute_script("return panel.parentElement.getAttribute('role')") == "treeitem"
        )
    finally:
        opened.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_light_and_dark_differ(opened: Any, shots: Path) -> None:
    def ground() -> str:
        return opened.find_element(By.TAG_NAME, "body").value_of_css_property("background-color")

    first = ground()
    opened.find_element(By.ID, "theme").click()
    opened.save_screenshot(str(shots / "other-theme.png"))
    assert ground() != first


def test_a_plan_shows_every_pair_and_its_reason(
    browser: Any, base: Any, tmp_path: Path, shots: Path
) -> None:
    plan = resolve(
        base,
        inarch.adapter("lora", name="one", targets=["mlp.up"]),
        inarch.adapter("lora", name="two", targets=["mlp.*"]),
        inarch.adapter("lora", name="three", targets=["attention.key"]),
    )
    file = tmp_path / "plan.html"
    file.write_text(plan_page(plan), "utf-8")
    browser.set_window_size(1300, 900)
    browser.get(file.as_uri())
    cells = browser.find_elements(By.CSS_SELECTOR, "#matrix button")
    assert len(cells) == 6
    next(c for c in cells if c.get_attribute("title").startswith("one and two")).click()
    assert "each adds" in panel(browser)
    browser.find_element(By.CSS_SELECTOR, "#panel summary").click()
    assert "model.layers.{0-3}.mlp.up_proj x4" in panel(browser)
    browser.save_screenshot(str(shots / "plan.png"))
    assert browser.get_log("browser") == []


def test_three_thousand_modules_open_within_a_second(
    browser: Any, tmp_path: Path, shots: Path
) -> None:
    """Fourteen modules a layer, no two layers alike, so that none fold."""
    import torch

    import inarch
    from inarch.plugins import index
    from inarch_llama.model import Llama

    config = Llama.parse_config(
        {
            "model_type": "llama",
            "vocab_size": 16,
            "hidden_size": 8,
            "intermediate_size": 8,
            "num_hidden_layers": 250,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "max_position_embeddings": 16,
        }
    )
    with torch.device("meta"):
        trees = Llama.build(config)
    model = Llama(trees, config, roles=index().models["llama"].roles, family="llama")
    odd = [f"model.layers.{i}.mlp.up_proj" for i in range(1, 250, 2)]
    adapted = model.adapt(inarch.adapter("lora", name="odd", targets=odd, rank=1))
    assert sum(1 for _ in adapted.tree.modules()) > 3000
    file = tmp_path / "large.html"
    file.write_text(page(adapted), "utf-8")
    browser.get(file.as_uri())
    took = browser.execute_script(
        "const [t] = performance.getEntriesByType('navigation');return t.loadEventEnd - t.startTime"
    )
    browser.save_screenshot(str(shots / "large.png"))
    print(f"opened in {took:.0f} ms")
    assert len(browser.find_elements(By.CSS_SELECTOR, ".row")) > 500
    assert took < 1000
