"""Folders of installed distributions, made by hand, put on the path in place of the real ones."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from inarch.plugins.index import _cached_index

Install = Callable[..., Path]


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty site-packages folder that stands first, with no real inarch package behind it."""
    folder = tmp_path / "site"
    folder.mkdir()
    real = [p for p in sys.path if p and "site-packages" not in p and "inarch" not in p]
    monkeypatch.setattr(sys, "path", [str(folder), *real])
    monkeypatch.setenv("INARCH_CACHE_DIR", str(tmp_path / "cache"))
    _cached_index.cache_clear()
    yield folder
    _cached_index.cache_clear()


@pytest.fixture
def install(site: Path) -> Install:
    """Installs a distribution: a package folder with a manifest, and its metadata."""

    def make(
        name: str, manifest: str | None, *, points: str = "", code: str = "", version: str = "1.0"
    ) -> Path:
        package = name.replace("-", "_")
        folder = site / package
        folder.mkdir()
        (folder / "__init__.py").write_text(code)
        if manifest is not None:
            (folder / "inarch.toml").write_text(manifest)
        info = site / f"{package}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        text = f"[inarch.manifest]\n{package} = {package}:inarch.toml\n{points}"
        (info / "entry_points.txt").write_text(text)
        return folder

    return make
