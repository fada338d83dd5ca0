"""FreeU for inarch: an adapter without weights."""
