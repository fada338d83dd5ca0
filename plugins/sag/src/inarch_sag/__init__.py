"""Self-attention guidance for inarch: an adapter without weights."""
