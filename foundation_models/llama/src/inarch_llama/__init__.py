"""LLaMA, Mistral and SmolLM2 as inarch trees."""
