"""A small Llama with two adapters that meet, and a browser where there is one."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import inarch
from inarch.plugins import index
from inarch_llama.model import Llama

SWITCHES = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
CONFIG = {
    "model_type": "llama",
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}


@pytest.fixture(scope="session")
def base() -> Llama:
    torch.manual_seed(0)
    config = Llama.parse_config(CONFIG)
    trees = Llama.build(config)
    for tree in trees.values():
        tree.requires_grad_(False).eval()
    return Llama(trees, config, roles=index().models["llama"].roles, family="llama")


@pytest.fixture(scope="session")
def model(base: Llama) -> Llama:
    return base.adapt(
        inarch.adapter("lora", name="pirate", targets=["mlp.*"], rank=2),
        inarch.adapter("lora", name="terse", targets=["attention.query", "mlp.up"], rank=3),
    )


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Debian's Chromium without a window; tests that need it are skipped where it is absent."""
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("needs Debian's chromium and chromium-driver")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for argument in SWITCHES:
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield browser
    browser.quit()


@pytest.fixture
def shots(request: pytest.FixtureRequest) -> Path:
    """Where screenshots are kept, to be looked at: one folder a test run."""
    folder = Path(request.config.rootpath) / "build" / "screenshots"
    folder.mkdir(parents=True, exist_ok=True)
    return folder
