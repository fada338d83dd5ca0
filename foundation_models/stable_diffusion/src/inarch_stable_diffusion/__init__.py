"""Stable Diffusion 1, 2 and XL as inarch trees, with their pipelines."""
