"""LoRA and its relatives for inarch: PEFT, diffusers and kohya files read and written."""
