"""Pictures of adapted models: one self-contained page, graphs as text, and notebooks."""
