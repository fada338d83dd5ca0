"""Stable Diffusion keeps what any foundation model keeps."""

from __future__ import annotations

from inarch.testing import ModelConformance


class TestStableDiffusion(ModelConformance):
    family = "stable-diffusion"
