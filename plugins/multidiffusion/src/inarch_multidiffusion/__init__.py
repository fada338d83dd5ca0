"""MultiDiffusion for inarch: an adapter without weights."""
