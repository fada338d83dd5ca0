"""(IA)^3 for inarch: learned factors of activations, PEFT folders read and written."""
