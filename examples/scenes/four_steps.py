"""A distilled LoRA asks for its scheduler, guidance and steps; a style and a word go with it."""

from scene import opened

model, settings = opened("four_steps.toml")
image = model.text_to_image("a <coat> on a chair, ink drawing", **settings)
image.save("four_steps.png")
print(f"four_steps.png: {image.width} x {image.height}, {model.digest}")
