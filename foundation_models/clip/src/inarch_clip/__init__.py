"""CLIP as inarch trees: text and images into one space."""
