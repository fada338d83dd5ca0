"""Reference-only control for inarch: an adapter without weights."""
