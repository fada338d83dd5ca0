"""SDXL follows a sketch in its first steps, in a style of two LoRAs."""

from scene import opened

model, settings = opened("sketch_xl.toml")
image = model.text_to_image(
    "a paper boat on a quiet sea",
    negative_prompt="ugly",
    sketch_image="pictures/sketch.png",
    **settings,
)
image.save("sketch_xl.png")
print(f"sketch_xl.png: {image.width} x {image.height}, {model.digest}")
