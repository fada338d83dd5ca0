"""The system is asked for a checkpoint's files before its tree is built."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save_file

import inarch
from inarch.testing import tiny_models


def test_loading_has_the_files_read_ahead_of_building_and_meta_reads_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = list[int]()

    def noted(file: int, start: int, length: int, advice: int) -> None:
        assert (start, length, advice) == (0, 0, 3)
        asked.append(os.fstat(file).st_ino)

    monkeypatch.setattr(os, "posix_fadvise", noted, raising=False)
    monkeypatch.setattr(os, "POSIX_FADV_WILLNEED", 3, raising=False)
    tiny: Any = next(iter(tiny_models(families=["llama"])))
    save_file(tiny.build().tree.state_dict(), tmp_path / "model.safetensors", {"format": "pt"})
    (tmp_path / "config.json").write_text(json.dumps(tiny.config))
    inarch.load(tmp_path, device="meta")
    assert asked == []
    inarch.load(tmp_path)
    assert asked == [(tmp_path / "model.safetensors").stat().st_ino]
