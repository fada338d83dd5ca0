"""LoRA for inarch: PEFT folders read and written, training included."""
