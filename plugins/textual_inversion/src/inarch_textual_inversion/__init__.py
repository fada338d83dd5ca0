"""Textual inversion for inarch: learned words, in every published layout."""
