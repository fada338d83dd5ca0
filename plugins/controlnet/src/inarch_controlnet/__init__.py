"""ControlNet and Control-LoRA for inarch: image models that follow a picture."""
