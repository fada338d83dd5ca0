"""StyleAligned for inarch: an adapter without weights."""
