"""Two ControlNets hold the composition, two LoRAs the style."""

from scene import opened

model, settings = opened("edges_and_depth.toml")
image = model.text_to_image(
    "a lighthouse on a cliff, ink drawing",
    negative_prompt="blurry",
    canny_image="pictures/edges.png",
    depth_image="pictures/depth.png",
    **settings,
)
image.save("edges_and_depth.png")
print(f"edges_and_depth.png: {image.width} x {image.height}, {model.digest}")
