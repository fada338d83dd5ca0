"""GGUF checkpoints for inarch: weights, configuration and tokenizer."""
