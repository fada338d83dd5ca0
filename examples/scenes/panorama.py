"""Windows wider than the model was trained for, FreeU in each, and a style."""

from scene import opened

model, settings = opened("panorama.toml")
side, unit = model.config.unet.sample_size, model.config.factor
image = model.text_to_image(
    "a coast with lighthouses, ink drawing",
    height=side * unit,
    width=2 * side * unit,
    **settings,
)
image.save("panorama.png")
print(f"panorama.png: {image.width} x {image.height}, {model.digest}")
