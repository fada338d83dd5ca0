"""Adaptation of foundation models as packages: declarative trees, adapters as edits."""
