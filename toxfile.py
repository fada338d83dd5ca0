"""Makes an environment `iso-NAME` for each package folder, so that a new package needs no edit."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from tox.plugin import impl

ROOT = Path(__file__).parent


@impl
def tox_extend_envs() -> Iterable[str]:
    folders = [ROOT / "core", *ROOT.glob("foundation_models/*"), *ROOT.glob("plugins/*")]
    return [f"iso-{f.name}" for f in sorted(folders) if (f / "pyproject.toml").is_file()]
