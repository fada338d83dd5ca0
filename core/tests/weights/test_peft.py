"""Which layers PEFT's settings name, and the names that say the same of a model."""

from __future__ import annotations

from typing import Any

import pytest

from inarch.weights.peft import matches, target_names, targeted

LAYERS = [f"model.layers.{i}.{n}" for i in range(3) for n in ("attn.q_proj", "attn.v_proj", "fc")]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"target_modules": ["q_proj"]}, LAYERS[0::3]),
        ({"target_modules": ["proj"]}, []),
        ({"target_modules": r".*\.1\..*"}, LAYERS[3:6]),
        ({"target_modules": ["fc"], "layers_to_transform": [0, 2]}, [LAYERS[2], LAYERS[8]]),
        ({"target_modules": ["fc"], "layers_to_transform": 1}, [LAYERS[5]]),
        ({"target_modules": ["fc"], "layers_to_transform": 1, "layers_pattern": "blocks"}, []),
        ({"target_modules": [LAYERS[0], "fc"], "layers_to_transform": 1}, [LAYERS[0], LAYERS[5]]),
        ({"target_modules": ["fc"], "exclude_modules": ["layers.0.fc"]}, [LAYERS[5], LAYERS[8]]),
        ({"target_modules": None}, []),
    ],
)
def test_settings_name_the_layers_peft_would_adapt(
    settings: dict[str, Any], expected: list[str]
) -> None:
    assert [a for a in LAYERS if targeted(settings, a)] == expected


def test_short_names_are_used_only_where_they_mean_the_very_same_layers() -> None:
    assert target_names(LAYERS[0::3], LAYERS) == ["q_proj"]
    assert target_names(LAYERS[0:1], LAYERS) == LAYERS[0:1]
    assert all(matches(target_names(LAYERS[4:7], LAYERS), a) == (a in LAYERS[4:7]) for a in LAYERS)
