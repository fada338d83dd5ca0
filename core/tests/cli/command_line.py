"""Running commands in this process, and packages as pip would install them."""

from __future__ import annotations

from pathlib import Path

import pytest

from inarch.cli.main import main

BROKEN = "raise RuntimeError('imported')"


def run(*args: str) -> int:
    with pytest.raises(SystemExit) as stop:
        main(list(args))
    return int(stop.value.code or 0)


def install(site: Path, name: str, manifest: str, points: str = "", code: str = "") -> None:
    package = name.replace("-", "_")
    (site / package).mkdir()
    (site / package / "__init__.py").write_text(code)
    (site / package / "inarch.toml").write_text(manifest)
    info = site / f"{package}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    text = f"[inarch.manifest]\n{package} = {package}:inarch.toml\n{points}"
    (info / "entry_points.txt").write_text(text)
